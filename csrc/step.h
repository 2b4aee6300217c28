// The fused step as its callers see it.
#pragma once

#include "kernels.h"

namespace langevin {

// gamma_i = 1 if |g_i| <= bound else bound / |g_i|
// out_i <- clamp(x_i - drift gamma_i g_i - drift rho x_i + diffusion gamma_i^p xi, low, high)
struct Step {
  const void* x;     // (rows, cols), contiguous
  const void* grad;  // likewise
  void* out;         // likewise; x itself, or apart from it
  int64_t rows, cols;
  Coefficient drift, diffusion, bound;
  double reference_precision;  // rho
  double low, high;
  int twice_noise_power;  // 2p: 0, 1 or 2
  bool per_coordinate, noisy;
  Position noise;
  void* grad_norm;  // (rows,) in the state's type; null when nobody asks
  void* gamma;      // likewise
  bool* finite;     // (rows,), true on entry; null when nobody asks
};

enum DTypes { kFloat, kFloatBFloat16, kFloatFloat16, kDouble, kDTypes };  // state, gradient

// The reductions of a long row that several threads share.
struct RowSums {
  double squares, gammas;
};

struct StepKernels {
  // Whole rows [begin, end).
  void (*rows[kDTypes])(const Step&, int64_t begin, int64_t end);
  // Partial sums of blocks [begin, end) of one row, in the state's type, to squares and gammas.
  void (*sums[kDTypes])(const Step&, int64_t row, int64_t begin, int64_t end, void* squares,
                        void* gammas);
  // Combines the row's partial sums (overwriting them) and records its statistics.
  RowSums (*combine[kDTypes])(const Step&, int64_t row, void* squares, void* gammas);
  // Updates blocks [begin, end) of one row whose sums are known.
  void (*blocks[kDTypes])(const Step&, int64_t row, int64_t begin, int64_t end, RowSums);
};

void run_step(const StepKernels&, DTypes, const Step&, int threads);

// Statistics are reductions over the row; without them and without clipping none is needed.
static inline bool needs_sums(const Step& s) {
  const bool clips = s.bound.each || s.bound.value < __builtin_inf();
  return (clips && !s.per_coordinate) || s.grad_norm || s.gamma;
}

}  // namespace langevin
