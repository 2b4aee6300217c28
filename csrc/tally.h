// What is kept of every step of every chain: sums over the steps, and whether all is finite.
#pragma once

#include <cstdint>

namespace langevin {

// Of one step, in the state's type T or in double, (rows,) each; what is not there is null.
template <class T>
struct Recorded {
  const T *grad_norm, *gamma;
  const double *log_ratio, *weight;
};

// Sums over the steps, (rows,) each; the last two belong to log_ratio and weight.
struct Sums {
  double *grad_norm, *gamma, *clipped, *acceptance, *weight;
};

template <class T>
void add(const Recorded<T>&, const Sums&, int64_t rows);

// Whether every chain's flag is set and every energy finite.
template <class T>
bool all_finite(const bool* finite, const T* energy, int64_t rows);

}  // namespace langevin
