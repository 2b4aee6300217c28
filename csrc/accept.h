// Accept-or-reject of proposals, as its callers see it.
#pragma once

#include "kernels.h"

namespace langevin {

// x <- y with probability min(1, exp(U(x) - U(y)) q(x | y) / q(y | x)), and so with the gradients
// and the energies;  q(y | x) = N(x - drift gamma g, diffusion^2 gamma), gamma as in the step.
struct Accept {
  void *x, *grad;          // (rows, cols), contiguous: where the chains are
  void* energy;            // (rows,)
  const void *y, *grad_y;  // likewise: where they may go
  const void* energy_y;
  int64_t rows, cols;
  Coefficient drift, diffusion, bound;
  const double* given;  // (rows,): log q(x | y) - log q(y | x), if the caller knows it, or null
  Position uniforms;
  double* log_ratio;  // (rows,): -inf where a proposal is not finite
  bool* accepted;     // (rows,)
};

struct AcceptKernels {
  // Rows [begin, end).
  void (*rows[kStateTypes])(const Accept&, int64_t begin, int64_t end);
};

void run_accept(const AcceptKernels&, StateTypes, const Accept&, int threads);

}  // namespace langevin
