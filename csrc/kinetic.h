// A pass of a splitting scheme over positions and velocities, as its callers see it.
#pragma once

#include "kernels.h"

namespace langevin {

// v <- v - kick g;  x <- x + drift v;  v <- keep v + spread xi;  v <- v - second_kick g;
// x <- x + second_drift v.  What a coefficient that is the number 0 multiplies is left out.
struct Kinetic {
  void *x, *v;       // (rows, cols), contiguous, updated in place
  const void* grad;  // likewise; may be x or v; null when nothing kicks
  int64_t rows, cols;
  Coefficient kick, drift, keep, spread, second_kick, second_drift;
  bool noisy;
  Position noise;
  double* energies;  // (2, rows): |v|^2 / 2 after the noise and at the end; null when nobody asks
  void* grad_norm;   // (rows,) in the state's type; null when nobody asks; so are the next two
  void* gamma;       // filled with 1
  bool* finite;
};

namespace {  // every object file keeps its own copy: they are compiled for different processors

// What a row, or a block of it, adds up to; and whether anything in it is not finite.
template <class T>
struct KineticSums {
  double refreshed, last;  // |v|^2 after the noise and at the end
  T squares;               // |g|^2
  bool bad;
  KineticSums operator+(const KineticSums& b) const {
    return {refreshed + b.refreshed, last + b.last, squares + b.squares, bad || b.bad};
  }
};

}  // namespace

struct KineticKernels {
  // Whole rows [begin, end).
  void (*rows[kStateTypes])(const Kinetic&, int64_t begin, int64_t end);
  // Blocks [begin, end) of one row, and what each of them adds up to.
  void (*blocks[kStateTypes])(const Kinetic&, int64_t row, int64_t begin, int64_t end, void* sums);
  // Combines the row's sums (overwriting them) and records them.
  void (*combine[kStateTypes])(const Kinetic&, int64_t row, void* sums);
};

void run_kinetic(const KineticKernels&, StateTypes, const Kinetic&, int threads);

}  // namespace langevin
