// The derivative of the fused step, as its callers see it.
#pragma once

#include "step.h"

namespace langevin {

// Gradients of <cotangent, out> in what `step` was given, its own (B,) for every coefficient. With
// G the cotangent inside the clamp and 0 outside, sums over a chain's coordinates, and
// L = -drift <G, g> + p diffusion gamma^(p-1) <G, xi>, the derivative in gamma:
//
//   dx = (1 - drift rho) G
//   dgrad = -drift gamma G - L gamma g / |g|^2,  dbound = L / |g|    where |g| > b; elsewhere L = 0
//   ddrift = -gamma <G, g> - rho <G, x>,  ddiffusion = gamma^p <G, xi>
struct StepBackward {
  Step step;  // in the state's type throughout; its out and statistics are not looked at
  const void* cotangent;               // (rows, cols), contiguous
  void *dx, *dgrad;                    // likewise; dgrad null where nobody asks
  void *ddrift, *ddiffusion, *dbound;  // (rows,), likewise
};

struct StepBackwardKernels {
  // Rows [begin, end).
  void (*rows[kStateTypes])(const StepBackward&, int64_t begin, int64_t end);
};

void run_step_backward(const StepBackwardKernels&, StateTypes, const StepBackward&, int threads);

}  // namespace langevin
