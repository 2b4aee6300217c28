// Whole chains: many steps of an analytic energy in one call, the state in registers.
#pragma once

#include "energies.h"
#include "kernels.h"
#include "mlp.h"

namespace langevin {

// x <- clamp(x - drift gamma g - drift rho x + diffusion gamma^p xi) at g = grad U(x), `steps`
// times; the step of step.h in its order of operations, gamma and all.
struct Chain {
  EnergyKind kind;
  int64_t components;
  const double* numbers;  // of the energy, as energies.h lists them
  int64_t count;          // of the numbers

  void* x;  // (rows, cols), contiguous, in place
  int64_t rows, cols, steps;
  Coefficient drift, diffusion, bound;
  const double *drifts, *diffusions;  // (steps,) of a schedule, instead of the numbers; or null
  double reference_precision, low, high;
  int twice_noise_power;
  bool per_coordinate, noisy;
  Position position;   // of the first step
  const bool* frozen;  // (rows,): chains that stay where they are; or null
  bool tolerant;       // of chains that leave the finite numbers: their coordinates become NaN

  // Of the last step, (rows,) each in the state's type: U and its gradient's norm before it.
  void *energy, *grad_norm, *gamma;
  bool* finite;  // whether its coordinates were before the clamp

  // Sums over these steps; all of them null, or the last two.
  int64_t first;                               // how many steps the sums have already
  double *norm_sum, *gamma_sum, *clipped_sum;  // (rows,)
  double *mean, *squares;                      // (rows, cols)

  // States (kept, rows, cols) after every so many of the summed steps; from the first to come.
  void* trajectory;
  int64_t every;
};

struct ChainKernels {
  // Rows [begin, end); how many steps left every chain and its energy finite, or all of them if
  // that is tolerated. With fewer than all the memory written is in no certain state.
  int64_t (*rows[kStateTypes])(const Chain&, int64_t begin, int64_t end);
  int64_t grain[kStateTypes];  // chains that go together
};

int64_t run_chain(const ChainKernels&, StateTypes, const Chain&, int threads);

// Of a network, in single precision; `kind`, `components` and `numbers` are not looked at.
int64_t run_chain(const MlpKernels&, const Mlp&, const Chain&, int threads);

}  // namespace langevin
