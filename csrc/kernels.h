// What all kernels share, and the table of them that an instruction set has.
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

// One thread makes about 1.5e9 elements/s; waking another costs about 5 us.
constexpr int64_t kSerial = 8192;
constexpr int64_t kBlock = 4096;  // elements of one partial sum, and of one piece of a long row

static inline int64_t blocks_of(int64_t cols) { return (cols + kBlock - 1) / kBlock; }

enum StateTypes { kFloatState, kDoubleState, kStateTypes };

struct NoiseKernels {
  // Rows [begin, end) of noise alone.
  void (*normal)(float* out, int64_t cols, int64_t begin, int64_t end, const Position&);
  void (*uniform)(float* out, int64_t cols, int64_t begin, int64_t end, const Position&);
  // At least `count` normals made and added up in registers: the rate no step can exceed.
  float (*normals_in_registers)(int64_t count);
};

// out <- f(x) for n numbers: what csrc/elementary.h makes of them on this instruction set.
struct ElementaryKernels {
  void (*exp)(const float* x, float* out, int64_t n);
  void (*tanh)(const float* x, float* out, int64_t n);
  void (*log)(const float* x, float* out, int64_t n);
  void (*softplus)(const float* x, float* out, int64_t n);
  void (*wide_exp)(const double* x, double* out, int64_t n);
  void (*wide_tanh)(const double* x, double* out, int64_t n);
  void (*wide_log)(const double* x, double* out, int64_t n);
};

struct StepKernels;
struct StepBackwardKernels;
struct KineticKernels;
struct AcceptKernels;
struct ChainKernels;
struct MlpKernels;

// Each of them is defined in a file that is compiled once for each instruction set.
struct Kernels {
  const char* name;
  bool (*supported)();
  const NoiseKernels& noise;
  const StepKernels& step;
  const StepBackwardKernels& step_backward;
  const KineticKernels& kinetic;
  const AcceptKernels& accept;
  const ElementaryKernels& elementary;
  const ChainKernels& chain;
  const MlpKernels& mlp;
};

extern const NoiseKernels avx512_noise, avx2_noise, sse2_noise, generic_noise;
extern const StepKernels avx512_step, avx2_step, sse2_step, generic_step;
extern const StepBackwardKernels avx512_step_backward, avx2_step_backward, sse2_step_backward,
    generic_step_backward;
extern const KineticKernels avx512_kinetic, avx2_kinetic, sse2_kinetic, generic_kinetic;
extern const AcceptKernels avx512_accept, avx2_accept, sse2_accept, generic_accept;
extern const ChainKernels avx512_chain, avx2_chain, sse2_chain, generic_chain;
extern const ElementaryKernels avx512_elementary, avx2_elementary, sse2_elementary,
    generic_elementary;
extern const MlpKernels avx512_mlp, avx2_mlp, sse2_mlp, generic_mlp;

// ---- kernels.cpp: those of this processor -----------------------------------------------------

const Kernels* const* kernels_begin();  // compiled and supported here, best first
const Kernels* const* kernels_end();
const Kernels* kernels_named(const char* name);  // null when there are none here

void run_normal(const Kernels&, float* out, int64_t rows, int64_t cols, const Position&, int);
void run_uniform(const Kernels&, float* out, int64_t rows, int64_t cols, const Position&, int);

}  // namespace langevin
