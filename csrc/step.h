// The fused step as its callers see it: one description, one table of kernels per instruction set.
#pragma once

#include <cstdint>

namespace langevin {

// A position in the stream of noise; the chain of row i is first_chain + i.
struct Position {
  uint64_t seed, step;
  uint32_t stream;
  uint64_t first_chain;
};

// One value for every chain, or (rows,) values in the state's type.
struct Coefficient {
  double value;
  const void* each;
};

// gamma_i = 1 if |g_i| <= bound else bound / |g_i|
// x_i <- clamp(x_i - drift gamma_i g_i - drift rho x_i + diffusion gamma_i^p xi, low, high)
struct Step {
  void* x;           // (rows, cols), contiguous, updated in place
  const void* grad;  // (rows, cols), contiguous
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

// One thread makes about 1.5e9 elements/s; waking another costs about 5 us.
constexpr int64_t kSerial = 8192;
constexpr int64_t kBlock = 4096;  // elements of one partial sum, and of one piece of a long row

enum DTypes { kFloat, kFloatBFloat16, kFloatFloat16, kDouble, kDTypes };  // state, gradient

// The reductions of a long row that several threads share.
struct RowSums {
  double squares, gammas;
};

struct StepKernels {
  const char* name;
  bool (*supported)();
  // Whole rows [begin, end).
  void (*rows[kDTypes])(const Step&, int64_t begin, int64_t end);
  // Partial sums of blocks [begin, end) of one row, in the state's type, to squares and gammas.
  void (*sums[kDTypes])(const Step&, int64_t row, int64_t begin, int64_t end, void* squares,
                        void* gammas);
  // Combines the row's partial sums (overwriting them) and records its statistics.
  RowSums (*combine[kDTypes])(const Step&, int64_t row, void* squares, void* gammas);
  // Updates blocks [begin, end) of one row whose sums are known.
  void (*blocks[kDTypes])(const Step&, int64_t row, int64_t begin, int64_t end, RowSums);
  // Rows [begin, end) of noise alone.
  void (*normal)(float* out, int64_t cols, int64_t begin, int64_t end, const Position&);
  void (*uniform)(float* out, int64_t cols, int64_t begin, int64_t end, const Position&);
  // At least `count` normals made and added up in registers: the rate no step can exceed.
  float (*normals_in_registers)(int64_t count);
};

extern const StepKernels avx512_kernels, avx2_kernels, sse2_kernels, generic_kernels;

// ---- step.cpp: the best kernels of this processor, and the work split among threads ----------

const StepKernels* const* kernels_begin();  // compiled and supported here, best first
const StepKernels* const* kernels_end();
const StepKernels* kernels_named(const char* name);  // null when there are none here

void run_step(const StepKernels&, DTypes, const Step&, int threads);
void run_normal(const StepKernels&, float* out, int64_t rows, int64_t cols, const Position&, int);
void run_uniform(const StepKernels&, float* out, int64_t rows, int64_t cols, const Position&, int);

// Statistics are reductions over the row; without them and without clipping none is needed.
static inline bool needs_sums(const Step& s) {
  const bool clips = s.bound.each || s.bound.value < __builtin_inf();
  return (clips && !s.per_coordinate) || s.grad_norm || s.gamma;
}

}  // namespace langevin
