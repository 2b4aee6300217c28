// Whole chains: many steps of one energy in one call, the state in registers.
#pragma once

#include "energies.h"
#include "kernels.h"
#include "mlp.h"

namespace langevin {

// What a step is, at g = grad U(x), and its coefficients in their order:
//
//   kOverdamped  x <- clamp(x - a gamma g - a rho x + d gamma^p xi);  a, d, bound
//                as step.h has it
//   kMetropolis  y <- x - a gamma g + d gamma^(1/2) xi, which x becomes or not;  a, d, bound
//                as accept.h has it
//   kKinetic     a pass of kinetic.h, at the g of the step before; g; and another pass;
//                kick, drift, keep, spread, second_kick, second_drift, of the first and the second
//   kEvaluation  nothing: energy and grad become those at x
enum ChainRule { kOverdamped, kMetropolis, kKinetic, kEvaluation };

constexpr int kMostCoefficients = 12;

struct Chain {
  EnergyKind kind;
  int64_t components;
  const double* numbers;  // of the energy, as energies.h lists them
  int64_t count;          // of the numbers
  double factor;          // that it is multiplied by

  ChainRule rule;
  Coefficient with[kMostCoefficients];
  const double* schedule;  // (scheduled, steps): the first so many coefficients, instead; or null
  int64_t scheduled;
  double reference_precision, low, high;
  int twice_noise_power;
  bool per_coordinate, noisy;

  void* x;            // (rows, cols), contiguous, in place
  void *grad, *v;     // of a rule that carries them, likewise
  void* proposal;     // (rows, cols), of the last step
  double* log_ratio;  // (rows,), likewise; before the first step that of the one before
  bool* accepted;     // (rows,)
  int64_t rows, cols, steps;
  Position position;       // of the first step
  uint32_t second_stream;  // of the uniform numbers, or of the second pass
  const bool* frozen;      // (rows,): chains that stay where they are; or null
  bool tolerant;           // of chains that leave the finite numbers

  // Of the last step, (rows,) each in the state's type.
  void* energy;  // U where its gradient was taken; of kMetropolis U of the states, in and out
  void *grad_norm, *gamma;
  bool* finite;  // whether its coordinates were, before the clamp; kMetropolis leaves it

  // Sums over these steps; null where nobody asks: all of them, those of acceptance, the moments.
  int64_t first;                                                // steps that the sums have already
  double *norm_sum, *gamma_sum, *clipped_sum, *acceptance_sum;  // (rows,)
  double *mean, *squares;                                       // (rows, cols)

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
