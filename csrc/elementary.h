// exp, tanh, log and log(1 + e^x), for one float or double or a register of them, on the host and
// on a GPU. Every operation is one correctly rounded one in the order written here, so the bits
// agree on every instruction set; it must be compiled with contraction of a*b+c off.
//
// All but log reduce x = n log 2 + r with |r| <= log(2) / 2 and take e^r - 1 = r + r^2 P(r), where
// P is the polynomial with the least largest relative error of e^r - 1 (Remez exchange): 1.3e-8 in
// float32, 3e-19 in float64.
#pragma once

#include <limits>

#include "philox.h"

namespace langevin {
namespace {

template <class V>
struct Number {  // a vector's comparison is a vector of integers as wide as its elements
  using Bits = decltype(V{} < V{});
  using Element = decltype(V{}[0] + 0);
};
template <>
struct Number<float> {
  using Bits = int32_t;
  using Element = float;
};
template <>
struct Number<double> {
  using Bits = int64_t;
  using Element = double;
};

template <class To, class From>
LANGEVIN_INLINE To same_bits(From a) {
  To b;
  static_assert(sizeof a == sizeof b, "one word for another");
  memcpy(&b, &a, sizeof b);
  return b;
}

// How products are added: each rounded by itself, unless a caller brings sums of its own, which
// may fuse them and then have an instruction set's own bits.
struct Separate {
  template <class V>
  LANGEVIN_INLINE V multiply_add(V a, V b, V c) {
    return a * b + c;
  }
};

// By Horner's rule, the highest coefficient first.
template <class Sums, class V>
LANGEVIN_INLINE V horner(V, V p) {
  return p;
}
template <class Sums, class V, class T, class... More>
LANGEVIN_INLINE V horner(V x, V p, T next, More... more) {
  return horner<Sums>(x, Sums::multiply_add(p, x, V{} + next), more...);
}
template <class Sums, class V, class T, class... More>
LANGEVIN_INLINE V polynomial(V x, T first, More... more) {
  return horner<Sums>(x, V{} + first, more...);
}

template <class T>
struct Format;

template <>
struct Format<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr int32_t sign = INT32_MIN;
  static constexpr float to_integer = 0x1.8p23f;  // added, it leaves the integer in the last bits
  static constexpr int32_t integer_bits = 0x4b400000;
  static constexpr float log2_e = 1.44269504f;
  static constexpr float log_2_high = 0.693359375f, log_2_low = -2.12194440e-4f;
  static constexpr float most = 89, least = -104;  // beyond them e^x is infinite, or 0
  static constexpr float flat = 10;                // beyond it tanh is 1
  static constexpr int32_t root_half = 0x3f3504f3;
  static constexpr int log_terms = 4;
  template <class Sums, class V>
  LANGEVIN_INLINE V expm1_series(V r) {
    return polynomial<Sums>(r, 1.39464508e-3f, 8.36658478e-3f, 4.16662805e-2f, 1.66665435e-1f,
                            0.5f);
  }
};

template <>
struct Format<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr int64_t sign = INT64_MIN;
  static constexpr double to_integer = 0x1.8p52;
  static constexpr int64_t integer_bits = 0x4338000000000000;
  static constexpr double log2_e = 1.4426950408889634;
  static constexpr double log_2_high = 0x1.62e42feep-1, log_2_low = 1.9082149292705877e-10;
  static constexpr double most = 710, least = -746;
  static constexpr double flat = 20;
  static constexpr int64_t root_half = 0x3fe6a09e667f3bcd;
  static constexpr int log_terms = 9;
  template <class Sums, class V>
  LANGEVIN_INLINE V expm1_series(V r) {
    return polynomial<Sums>(r, 2.0924446060049244e-9, 2.510904497277631e-8, 2.755724274973015e-7,
                            2.7557244181676033e-6, 2.480158736056965e-5, 1.9841269886158793e-4,
                            1.388888888886683e-3, 8.333333333321615e-3, 4.16666666666667e-2,
                            1.6666666666666677e-1, 0.5);
  }
};

template <class V>
using FormatOf = Format<typename Number<V>::Element>;
template <class V>
using BitsOf = typename Number<V>::Bits;

// 2^n where that is a normal number.
template <class V>
LANGEVIN_INLINE V power_of_two(BitsOf<V> n) {
  return same_bits<V>((n + FormatOf<V>::bias) << FormatOf<V>::mantissa);
}

// e^r - 1 and n with x = n log 2 + r.
template <class Sums = Separate, class V>
LANGEVIN_INLINE V expm1_reduced(V x, BitsOf<V>& n) {
  using C = FormatOf<V>;
  const V integer = Sums::multiply_add(x, V{} + C::log2_e, V{} + C::to_integer);
  n = same_bits<BitsOf<V>>(integer) - C::integer_bits;
  const V k = integer - C::to_integer;
  const V r =
      Sums::multiply_add(k, V{} - C::log_2_low, Sums::multiply_add(k, V{} - C::log_2_high, x));
  return Sums::multiply_add(C::template expm1_series<Sums>(r), r * r, r);
}

// e^x to within 1.1 ulps, subnormal where that is right; NaN of NaN.
template <class Sums = Separate, class V>
LANGEVIN_INLINE V exp_of(V x) {
  using C = FormatOf<V>;
  x = x > C::most ? V{} + C::most : x;
  x = x < C::least ? V{} + C::least : x;
  BitsOf<V> n;
  const V e = expm1_reduced<Sums>(x, n) + typename Number<V>::Element(1);
  const BitsOf<V> half = n >> 1;  // 2^n itself may not be a number
  return e * power_of_two<V>(half) * power_of_two<V>(n - half);
}

// tanh x to within 2.6 ulps, by (e^2|x| - 1) / (e^2|x| + 1); NaN of NaN.
template <class Sums = Separate, class V>
LANGEVIN_INLINE V tanh_of(V x) {
  using C = FormatOf<V>;
  using T = typename Number<V>::Element;
  const BitsOf<V> sign = same_bits<BitsOf<V>>(x) & C::sign;
  V size = same_bits<V>(same_bits<BitsOf<V>>(x) ^ sign);
  size = size > C::flat ? V{} + C::flat : size;
  BitsOf<V> n;
  const V e = expm1_reduced<Sums>(size + size, n), scale = power_of_two<V>(n);
  const V expm1 = Sums::multiply_add(e, scale, scale - T(1));
  return same_bits<V>(same_bits<BitsOf<V>>(expm1 / (expm1 + T(2))) | sign);
}

// log x to within 1.2 ulps, and NaN unless 0 < x < infinity: with x = 2^n m and s = (m - 1) / (m +
// 1), log m = 2 atanh(s), whose series converges fast for m near 1. Not for subnormal x.
template <class V>
LANGEVIN_INLINE V log_of(V x) {
  using C = FormatOf<V>;
  using T = typename Number<V>::Element;
  const BitsOf<V> bits = same_bits<BitsOf<V>>(x);
  const BitsOf<V> n = (bits - C::root_half) >> C::mantissa;  // m from sqrt(1/2) to sqrt(2)
  const V e = same_bits<V>(n + C::integer_bits) - C::to_integer;
  const V f = same_bits<V>(bits - (n << C::mantissa)) - T(1), s = f / (f + T(2)), z = s * s;
  V series = V{} + T(2) / (2 * C::log_terms + 1);
  for (int odd = 2 * C::log_terms - 1; odd >= 3; odd -= 2) series = series * z + T(2) / odd;
  const V log = e * C::log_2_high - ((s * (f - series * z) - e * C::log_2_low) - f);
  const V nan = V{} + std::numeric_limits<T>::quiet_NaN();
  return x > T(0) ? x < std::numeric_limits<T>::infinity() ? log : nan : nan;
}

// log(1 + z) for z from 0 to 1, of floats; polynomial of Cephes' logf.
template <class Sums = Separate, class V>
LANGEVIN_INLINE V log1p_of(V z) {
  const V f = z > 0.41421356f ? (z - 1.0f) * 0.5f : z;  // 1 + z = 2 (1 + f) from sqrt(2) on
  const V p = polynomial<Sums>(f, 7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f,
                               -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                               2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f, -0.5f);
  const V log = Sums::multiply_add(p, f * f, f);
  return z > 0.41421356f ? log + 0.693147181f : log;
}

// log(1 + e^x) to within two ulps, of floats; NaN of NaN.
template <class V>
LANGEVIN_INLINE V softplus_of(V x) {
  const V above = x > 0.0f ? x : V{}, below = x > 0.0f ? -x : x;
  return above + log1p_of(exp_of(below));
}

}  // namespace
}  // namespace langevin
