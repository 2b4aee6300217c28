// The analytic energies of langevin_ext/energies/, which has their equations: gradients of many
// chains at a time or of one, on the host and on a GPU.
//
// An energy is made from the numbers that its Python class lists, in the type of the state. A
// `gradient` fills g and returns U with Value, and without it something that is finite in the lanes
// where U is (but for factors of 2 at the end of the range), which may save a logarithm. M names
// the type V of a register of T and what instruction sets spell in their own ways, as `Register`
// does.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "elementary.h"

namespace langevin {

enum EnergyKind {
  kDiagonalGaussian,
  kFullGaussian,
  kRoundMixture,
  kDiagonalMixture,
  kFullMixture,
  kRings,
  kTwoMoons,
  kBanana,
  kFunnel,
  kDoubleWell,
  kQuarticWell,
  kLogistic
};

constexpr int64_t kMostComponents = 64, kMostColumns = 256;

namespace {

// How many coordinates: known when compiled, or not.
template <int D>
LANGEVIN_INLINE int64_t columns(int64_t cols) {
  return D ? D : cols;
}

// 2^x for -125 <= x <= 0, to 4e-9 beside rounding in float32 and 5e-18 in float64: the polynomial
// through 2^r at the Chebyshev nodes of [-1/2, 1/2], times 2^n in its exponent.
template <class V>
LANGEVIN_INLINE V exp2_of(V x) {
  using C = FormatOf<V>;
  const V integer = x + C::to_integer, r = x - (integer - C::to_integer);
  const V r2 = r * r, r4 = r2 * r2;  // pairs of terms: half the latency of Horner's rule
  V p;
  if constexpr (sizeof(typename Number<V>::Element) == sizeof(float))
    p = (r * 6.9314721e-1f + 1.0f) + r2 * (r * 5.5503272e-2f + 2.4022651e-1f) +
        r4 * ((r * 1.3400428e-3f + 9.6180567e-3f) + r2 * 1.5461445e-4f);
  else
    p = (r * 6.9314718055994531e-1 + 1.0) +
        r2 * (r * 5.5504108664821627e-2 + 2.4022650695910160e-1) +
        r4 * ((r * 1.3333558146406471e-3 + 9.6181291075872567e-3) +
              r2 * (r * 1.5252733841556773e-5 + 1.5403530463724354e-4) +
              r4 * ((r * 1.017805708773394e-7 + 1.3215432535932376e-6) +
                    r2 * (r * 4.455817908336064e-10 + 7.074194297288521e-9)));
  return same_bits<V>(same_bits<BitsOf<V>>(p) + (same_bits<BitsOf<V>>(integer) << C::mantissa));
}

constexpr double kLog2E = 1.4426950408889634;

// Of U = -log sum_k 2^l_k: l_k becomes 2^(l_k - top), with the largest of them, no less
// than the least number; `each` of a sum of these is a share.
template <class M>
LANGEVIN_INLINE typename M::V exponentials(typename M::V* l, int64_t terms, typename M::V& each) {
  using V = typename M::V;
  const V least = M::broadcast(sizeof(typename M::T) == 8 ? -1020 : -125);
  V top = l[0], total{};
  for (int64_t k = 1; k < terms; ++k) top = M::at_least(top, l[k]);
  const V from = M::at_least(M::broadcast(std::numeric_limits<typename M::T>::lowest()), top);
  for (int64_t k = 0; k < terms; ++k) total += l[k] = exp2_of(M::at_least(least, l[k] - from));
  each = M::broadcast(1) / total;
  return top;
}

// That U.
template <class M>
LANGEVIN_INLINE typename M::V energy_of(typename M::V top, typename M::V each) {
  return log_of(each) - top * typename M::T(1 / kLog2E);
}

// mean (D), precision (D)
template <class M>
struct DiagonalGaussian {
  using V = typename M::V;
  using T = typename M::T;
  const T *mean, *precision;
  DiagonalGaussian(const T* numbers, int64_t, int64_t cols)
      : mean(numbers), precision(numbers + cols) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    V size{};
    for (int64_t j = 0; j < columns<D>(cols); ++j) {
      const V y = x[j] - mean[j];
      g[j] = y * precision[j];
      size += y * g[j];
    }
    return size * T(0.5);
  }
};

// mean (D), W (D, D) with the precision W^T W
template <class M>
struct FullGaussian {
  using V = typename M::V;
  using T = typename M::T;
  const T *mean, *whitening;
  FullGaussian(const T* numbers, int64_t, int64_t cols)
      : mean(numbers), whitening(numbers + cols) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    const int64_t d = columns<D>(cols);
    V size{};
    for (int64_t j = 0; j < d; ++j) g[j] = V{};
    for (int64_t i = 0; i < d; ++i) {
      const T* row = whitening + i * d;
      V y{};
      for (int64_t j = 0; j < d; ++j) y += (x[j] - mean[j]) * row[j];
      for (int64_t j = 0; j < d; ++j) g[j] += y * row[j];
      size += y * y;
    }
    return size * T(0.5);
  }
};

// log heights (K), means (K, D), then precisions: (K), a number for each component
template <class M>
struct RoundMixture {
  using V = typename M::V;
  using T = typename M::T;
  int64_t terms;
  const T *log_heights, *means, *precisions;
  RoundMixture(const T* numbers, int64_t components, int64_t cols)
      : terms(components),
        log_heights(numbers),
        means(numbers + components),
        precisions(means + components * cols) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    const int64_t d = columns<D>(cols);
    V l[kMostComponents];
    for (int64_t k = 0; k < terms; ++k) {
      V square{};
      for (int64_t j = 0; j < d; ++j) {
        const V y = x[j] - means[k * d + j];
        square += y * y;
      }
      l[k] = M::broadcast(log_heights[k] * T(kLog2E)) - square * (precisions[k] * T(kLog2E / 2));
    }
    V each;
    const V top = exponentials<M>(l, terms, each);
    for (int64_t j = 0; j < d; ++j) g[j] = V{};
    for (int64_t k = 0; k < terms; ++k) {
      const V pull = l[k] * precisions[k];
      for (int64_t j = 0; j < d; ++j) g[j] += pull * (x[j] - means[k * d + j]);
    }
    for (int64_t j = 0; j < d; ++j) g[j] *= each;
    return Value ? energy_of<M>(top, each) : top;
  }
};

// log heights (K), means (K, D), precisions (K, D)
template <class M>
struct DiagonalMixture {
  using V = typename M::V;
  using T = typename M::T;
  int64_t terms;
  const T *log_heights, *means, *precisions;
  DiagonalMixture(const T* numbers, int64_t components, int64_t cols)
      : terms(components),
        log_heights(numbers),
        means(numbers + components),
        precisions(means + components * cols) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    const int64_t d = columns<D>(cols);
    V l[kMostComponents];
    for (int64_t k = 0; k < terms; ++k) {
      V square{};
      for (int64_t j = 0; j < d; ++j) {
        const V y = x[j] - means[k * d + j];
        square += y * y * precisions[k * d + j];
      }
      l[k] = M::broadcast(log_heights[k] * T(kLog2E)) - square * T(kLog2E / 2);
    }
    V each;
    const V top = exponentials<M>(l, terms, each);
    for (int64_t j = 0; j < d; ++j) g[j] = V{};
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t j = 0; j < d; ++j)
        g[j] += l[k] * ((x[j] - means[k * d + j]) * precisions[k * d + j]);
    for (int64_t j = 0; j < d; ++j) g[j] *= each;
    return Value ? energy_of<M>(top, each) : top;
  }
};

// log heights (K), means (K, D), whitening (K, D, D)
template <class M>
struct FullMixture {
  using V = typename M::V;
  using T = typename M::T;
  int64_t terms;
  const T *log_heights, *means, *whitening;
  FullMixture(const T* numbers, int64_t components, int64_t cols)
      : terms(components),
        log_heights(numbers),
        means(numbers + components),
        whitening(means + components * cols) {}

  // Component k's W (x - m), a row of it.
  LANGEVIN_METHOD V whitened(const V* x, int64_t k, int64_t row, int64_t d) const {
    V y{};
    for (int64_t j = 0; j < d; ++j)
      y += (x[j] - means[k * d + j]) * whitening[(k * d + row) * d + j];
    return y;
  }
  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    const int64_t d = columns<D>(cols);
    V l[kMostComponents];
    for (int64_t k = 0; k < terms; ++k) {
      V square{};
      for (int64_t i = 0; i < d; ++i) {
        const V y = whitened(x, k, i, d);
        square += y * y;
      }
      l[k] = M::broadcast(log_heights[k] * T(kLog2E)) - square * T(kLog2E / 2);
    }
    V each;
    const V top = exponentials<M>(l, terms, each);
    for (int64_t j = 0; j < d; ++j) g[j] = V{};
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t i = 0; i < d; ++i) {
        const V pull = l[k] * whitened(x, k, i, d);
        for (int64_t j = 0; j < d; ++j) g[j] += pull * whitening[(k * d + i) * d + j];
      }
    for (int64_t j = 0; j < d; ++j) g[j] *= each;
    return Value ? energy_of<M>(top, each) : top;
  }
};

// r = |x| in the plane, and x / r, 0 at the origin. Squares of what is very small would be 0, and
// of what is very large infinite.
template <class M>
LANGEVIN_INLINE typename M::V polar(const typename M::V* x, typename M::V* direction) {
  using V = typename M::V;
  using T = typename M::T;
  constexpr T small = sizeof(T) == 8 ? T(0x1p-900) : T(0x1p-60);
  constexpr T large = sizeof(T) == 8 ? T(0x1p500) : T(0x1p60);
  const V square = x[0] * x[0] + x[1] * x[1], one = M::broadcast(1);
  const V least = M::broadcast(small), most = M::broadcast(1 / small);
  const V up = M::broadcast(large), down = M::broadcast(1 / large);
  const V scale = M::where_less(square, least, up, M::where_less(most, square, down, one));
  const V a = x[0] * scale, b = x[1] * scale, r = M::sqrt(a * a + b * b);
  const V inverse = one / M::at_least(M::broadcast(std::numeric_limits<T>::min()), r);
  direction[0] = a * inverse;
  direction[1] = b * inverse;
  return r * M::where_less(square, least, down, M::where_less(most, square, up, one));
}

// log weights (K), radii (K), precisions (K); in the plane
template <class M>
struct Rings {
  using V = typename M::V;
  using T = typename M::T;
  int64_t terms;
  const T *log_weights, *radii, *precisions;
  Rings(const T* numbers, int64_t components, int64_t)
      : terms(components),
        log_weights(numbers),
        radii(numbers + components),
        precisions(radii + components) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t) const {
    const V r = polar<M>(x, g);
    V l[kMostComponents];
    for (int64_t k = 0; k < terms; ++k) {
      const V t = r - radii[k];
      l[k] = M::broadcast(log_weights[k] * T(kLog2E)) - t * t * (precisions[k] * T(kLog2E / 2));
    }
    V each;
    const V top = exponentials<M>(l, terms, each);
    V slope{};
    for (int64_t k = 0; k < terms; ++k) slope += l[k] * ((r - radii[k]) * precisions[k]);
    slope *= each;
    g[0] *= slope;
    g[1] *= slope;
    return Value ? energy_of<M>(top, each) : top;
  }
};

// R, 1 / s^2, 1 / w^2; in the plane
template <class M>
struct TwoMoons {
  using V = typename M::V;
  using T = typename M::T;
  T radius, across, along;
  TwoMoons(const T* numbers, int64_t, int64_t)
      : radius(numbers[0]), across(numbers[1]), along(numbers[2]) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t) const {
    V direction[2];
    const V t = polar<M>(x, direction) - radius, slope = t * across;
    g[0] =
        slope * direction[0] + x[0] * along - tanh_of(x[0] * (radius * along)) * (radius * along);
    g[1] = slope * direction[1];
    if (!Value) return t * t * across + x[0] * x[0] * along;
    const V u = M::at_least(x[0], -x[0]), v = u - radius;  // from the nearer moon
    const V farther = log_of(exp_of(u * (-2 * radius * along)) + T(1));
    return (t * t * across + v * v * along) * T(0.5) - farther;
  }
};

// 1 / s, b, 1 / t, s^2; in the plane
template <class M>
struct Banana {
  using V = typename M::V;
  using T = typename M::T;
  T along, curvature, across, variance;
  Banana(const T* numbers, int64_t, int64_t)
      : along(numbers[0]), curvature(numbers[1]), across(numbers[2]), variance(numbers[3]) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t) const {
    const V z = x[0] * along, v = (x[1] - (x[0] * x[0] - variance) * curvature) * across;
    g[1] = v * across;
    g[0] = z * along - x[0] * g[1] * (2 * curvature);
    return (z * z + v * v) * T(0.5);
  }
};

// 1 / s^2
template <class M>
struct Funnel {
  using V = typename M::V;
  using T = typename M::T;
  static constexpr T largest = sizeof(T) == 8 ? 709 : 88;  // exponent of a width
  T precision;
  Funnel(const T* numbers, int64_t, int64_t) : precision(numbers[0]) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    const int64_t d = columns<D>(cols);
    const V width = exp_of(M::at_most(M::broadcast(largest), x[0] * T(-0.5)));
    V square{};
    for (int64_t j = 1; j < d; ++j) {
      const V y = x[j] * width;
      g[j] = y * width;
      square += y * y;
    }
    g[0] = x[0] * precision + T(d - 1) / 2 - square * T(0.5);
    return (square + x[0] * (x[0] * precision + T(d - 1))) * T(0.5);
  }
};

// 1 / a, h, 4 h / a
template <class M>
struct DoubleWell {
  using V = typename M::V;
  using T = typename M::T;
  T inverse, barrier, slope;
  DoubleWell(const T* numbers, int64_t, int64_t)
      : inverse(numbers[0]), barrier(numbers[1]), slope(numbers[2]) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    V size{};
    for (int64_t j = 0; j < columns<D>(cols); ++j) {
      const V z = x[j] * inverse, t = z * z - T(1);
      g[j] = z * t * slope;
      size += t * t * barrier;
    }
    return size;
  }
};

// k
template <class M>
struct QuarticWell {
  using V = typename M::V;
  using T = typename M::T;
  T stiffness;
  QuarticWell(const T* numbers, int64_t, int64_t) : stiffness(numbers[0]) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    V size{};
    for (int64_t j = 0; j < columns<D>(cols); ++j) {
      const V square = x[j] * x[j];
      g[j] = x[j] * square * stiffness;
      size += square * square * (stiffness * T(0.25));
    }
    return size;
  }
};

// 1 / s
template <class M>
struct Logistic {
  using V = typename M::V;
  using T = typename M::T;
  T inverse;
  Logistic(const T* numbers, int64_t, int64_t) : inverse(numbers[0]) {}

  template <int D, bool Value>
  LANGEVIN_METHOD V gradient(const V* x, V* g, int64_t cols) const {
    V size{};
    for (int64_t j = 0; j < columns<D>(cols); ++j) {
      const V z = x[j] * inverse;
      const V t = tanh_of(z * T(0.5));
      g[j] = t * inverse;
      if (Value) {
        const V u = M::at_least(z, -z);
        size += u + log_of(exp_of(-u) + T(1)) * T(2);
      } else {
        size += z * t;  // as large as U
      }
    }
    return size;
  }
};

}  // namespace
}  // namespace langevin
