// A pass over numbers per chain: as small as it is, the six calls that it stands for would cost a
// small state more than its step.
#include "tally.h"

#include <cmath>

namespace langevin {
namespace {

// min(1, exp(x)), and NaN of NaN.
double probability(double log_ratio) { return log_ratio >= 0 ? 1 : std::exp(log_ratio); }

}  // namespace

template <class T>
void add(const Recorded<T>& step, const Sums& sums, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    sums.grad_norm[i] += step.grad_norm[i];
    sums.gamma[i] += step.gamma[i];
    sums.clipped[i] += step.gamma[i] < 1;
  }
  if (step.log_ratio)
    for (int64_t i = 0; i < rows; ++i) sums.acceptance[i] += probability(step.log_ratio[i]);
  if (step.weight)
    for (int64_t i = 0; i < rows; ++i) sums.weight[i] += step.weight[i];
}

template <class T>
bool all_finite(const bool* finite, const T* energy, int64_t rows) {
  bool all = true;
  for (int64_t i = 0; i < rows; ++i) all &= finite[i] & (std::isfinite(energy[i]) != 0);
  return all;
}

template void add(const Recorded<float>&, const Sums&, int64_t);
template void add(const Recorded<double>&, const Sums&, int64_t);
template bool all_finite(const bool*, const float*, int64_t);
template bool all_finite(const bool*, const double*, int64_t);

}  // namespace langevin
