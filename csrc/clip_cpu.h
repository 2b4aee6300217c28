// Coefficients of chains and the clipping of gradients, for one value or a register of them.
#pragma once

#include "kernels.h"
#include "lanes.h"

namespace langevin {
namespace {

template <class T>
LANGEVIN_INLINE T coefficient(const Coefficient& c, int64_t row) {
  return c.each ? static_cast<const T*>(c.each)[row] : static_cast<T>(c.value);
}

// gamma of a norm (or of every |g_j|) against its bound.
template <class T, class V>
LANGEVIN_INLINE V clip_factor(V norm, V bound) {
  const V one = V{} + T(1), infinity = V{} + T(__builtin_inf()), nan = V{} + T(__builtin_nan(""));
  V gamma = norm <= bound ? one : bound / norm;
  gamma = norm < infinity ? gamma : nan;
  return bound == infinity ? one : gamma;
}

template <class T, class V>
LANGEVIN_INLINE V noise_factor(V gamma, int twice_power) {
  return twice_power == 0 ? V{} + T(1) : twice_power == 1 ? Register<T>::sqrt(gamma) : gamma;
}

}  // namespace
}  // namespace langevin
