// Vector lanes for one instruction set. The *_cpu.cpp files are compiled once for each of them,
// with
//   LANGEVIN_ISA         its name, which the names of their tables begin with
//   LANGEVIN_LANES       float lanes of a register: 16 (AVX-512), 8 (AVX2), 4 (SSE2 and generic)
//   LANGEVIN_INTRINSICS  0 for the generic path: GCC/Clang vector extensions and nothing else
//
// Arithmetic uses the compilers' vector extensions; a named function stands where an instruction
// matters (widening multiply, interleave, horizontal sums) or where its handling of NaN does.
#pragma once

#include "philox.h"

#if LANGEVIN_INTRINSICS
#include <immintrin.h>
#endif

#define LANGEVIN_JOIN_(a, b) a##b
#define LANGEVIN_JOIN(a, b) LANGEVIN_JOIN_(a, b)
#define LANGEVIN_OF_ISA(table) LANGEVIN_JOIN(LANGEVIN_ISA, table)

namespace langevin {
namespace {

constexpr int W = LANGEVIN_LANES;  // floats in a register
constexpr int H = W / 2;           // doubles in a register, Philox counters in a register

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

struct Lanes {
  typedef float F __attribute__((vector_size(W * 4)));
  typedef int32_t I __attribute__((vector_size(W * 4)));
  typedef uint32_t U __attribute__((vector_size(W * 4)));
  typedef uint64_t Q __attribute__((vector_size(W * 4)));

  LANGEVIN_INLINE Q broadcast(uint64_t word) { return Q{} + word; }
  // value - 0 and not 0 + value, which would lose the sign of -0.
  LANGEVIN_INLINE F constant(float value) { return value - F{}; }
  LANGEVIN_INLINE I as_signed(U a) { return (I)a; }
  LANGEVIN_INLINE I bits(F a) { return (I)a; }
  LANGEVIN_INLINE F from_bits(I a) { return (F)a; }

#if LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16
  LANGEVIN_INLINE Q multiply(Q a, Q b) { return (Q)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
  LANGEVIN_INLINE F sqrt(F a) { return (F)_mm512_sqrt_ps((__m512)a); }
  LANGEVIN_INLINE F from_signed(I a) { return (F)_mm512_cvtepi32_ps((__m512i)a); }
  LANGEVIN_INLINE F from_unsigned(U a) { return (F)_mm512_cvtepu32_ps((__m512i)a); }
  LANGEVIN_INLINE F at_least(F lo, F y) { return (F)_mm512_max_ps((__m512)lo, (__m512)y); }
  LANGEVIN_INLINE F at_most(F hi, F y) { return (F)_mm512_min_ps((__m512)hi, (__m512)y); }
  LANGEVIN_INLINE bool any_not_finite(F a) {
    return _mm512_fpclass_ps_mask((__m512)a, 0x99) != 0;  // quiet NaN, +inf, -inf, signalling NaN
  }
  LANGEVIN_INLINE void interleave(F a, F b, F& low, F& high) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    low = (F)_mm512_permutex2var_ps((__m512)a, first, (__m512)b);
    high = (F)_mm512_permutex2var_ps((__m512)a, _mm512_add_epi32(first, _mm512_set1_epi32(8)),
                                     (__m512)b);
  }
  LANGEVIN_INLINE void deinterleave(F a, F b, F& even, F& odd) {
    const __m512i first =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = (F)_mm512_permutex2var_ps((__m512)a, first, (__m512)b);
    odd = (F)_mm512_permutex2var_ps((__m512)a, _mm512_add_epi32(first, _mm512_set1_epi32(1)),
                                    (__m512)b);
  }
  LANGEVIN_INLINE float tree_sum(F a) {
    const __m512 v = (__m512)a;
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    return sum_halves(_mm256_add_ps(_mm512_castps512_ps256(v), high));
  }
#elif LANGEVIN_INTRINSICS && LANGEVIN_LANES == 8
  LANGEVIN_INLINE Q multiply(Q a, Q b) { return (Q)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
  LANGEVIN_INLINE F sqrt(F a) { return (F)_mm256_sqrt_ps((__m256)a); }
  LANGEVIN_INLINE F from_signed(I a) { return (F)_mm256_cvtepi32_ps((__m256i)a); }
  LANGEVIN_INLINE F at_least(F lo, F y) { return (F)_mm256_max_ps((__m256)lo, (__m256)y); }
  LANGEVIN_INLINE F at_most(F hi, F y) { return (F)_mm256_min_ps((__m256)hi, (__m256)y); }
  LANGEVIN_INLINE bool any_not_finite(F a) {
    const __m256 wrong = _mm256_cmp_ps((__m256)(a - a), _mm256_setzero_ps(), _CMP_NEQ_UQ);
    return _mm256_movemask_ps(wrong) != 0;
  }
  LANGEVIN_INLINE void interleave(F a, F b, F& low, F& high) {
    const __m256 l = _mm256_unpacklo_ps((__m256)a, (__m256)b);
    const __m256 h = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    low = (F)_mm256_permute2f128_ps(l, h, 0x20);
    high = (F)_mm256_permute2f128_ps(l, h, 0x31);
  }
  LANGEVIN_INLINE void deinterleave(F a, F b, F& even, F& odd) {
    const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
    const __m256 e = _mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
    const __m256 o = _mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
    even = (F)_mm256_permutevar8x32_ps(e, order);
    odd = (F)_mm256_permutevar8x32_ps(o, order);
  }
  LANGEVIN_INLINE float tree_sum(F a) { return sum_halves((__m256)a); }
#elif LANGEVIN_INTRINSICS
  LANGEVIN_INLINE Q multiply(Q a, Q b) { return (Q)_mm_mul_epu32((__m128i)a, (__m128i)b); }
  LANGEVIN_INLINE F sqrt(F a) { return (F)_mm_sqrt_ps((__m128)a); }
  LANGEVIN_INLINE F from_signed(I a) { return (F)_mm_cvtepi32_ps((__m128i)a); }
  LANGEVIN_INLINE F at_least(F lo, F y) { return (F)_mm_max_ps((__m128)lo, (__m128)y); }
  LANGEVIN_INLINE F at_most(F hi, F y) { return (F)_mm_min_ps((__m128)hi, (__m128)y); }
  LANGEVIN_INLINE bool any_not_finite(F a) {
    return _mm_movemask_ps(_mm_cmpneq_ps((__m128)(a - a), _mm_setzero_ps())) != 0;
  }
  LANGEVIN_INLINE void interleave(F a, F b, F& low, F& high) {
    low = (F)_mm_unpacklo_ps((__m128)a, (__m128)b);
    high = (F)_mm_unpackhi_ps((__m128)a, (__m128)b);
  }
  LANGEVIN_INLINE void deinterleave(F a, F b, F& even, F& odd) {
    even = (F)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88);
    odd = (F)_mm_shuffle_ps((__m128)a, (__m128)b, 0xdd);
  }
  LANGEVIN_INLINE float tree_sum(F a) { return sum_halves((__m128)a); }
#else
  LANGEVIN_INLINE Q multiply(Q a, Q b) { return (a & 0xffffffffull) * (b & 0xffffffffull); }
  LANGEVIN_INLINE F sqrt(F a) {
    F r;
    for (int i = 0; i < W; ++i) r[i] = __builtin_sqrtf(a[i]);
    return r;
  }
  LANGEVIN_INLINE F from_signed(I a) { return __builtin_convertvector(a, F); }
  LANGEVIN_INLINE F at_least(F lo, F y) { return lo > y ? lo : y; }
  LANGEVIN_INLINE F at_most(F hi, F y) { return hi < y ? hi : y; }
  LANGEVIN_INLINE bool any_not_finite(F a) {
    const I right = (a - a) == F{};
    return !(right[0] & right[1] & right[2] & right[3]);
  }
  LANGEVIN_INLINE void interleave(F a, F b, F& low, F& high) {
    low = F{a[0], b[0], a[1], b[1]};
    high = F{a[2], b[2], a[3], b[3]};
  }
  LANGEVIN_INLINE void deinterleave(F a, F b, F& even, F& odd) {
    even = F{a[0], a[2], b[0], b[2]};
    odd = F{a[1], a[3], b[1], b[3]};
  }
  LANGEVIN_INLINE float tree_sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
#endif

  // Below AVX-512 there is no unsigned conversion; this sum is rounded once, so it is the same.
#if !(LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16)
  LANGEVIN_INLINE F from_unsigned(U a) {
    return from_signed((I)(a >> 16)) * 65536.0f + from_signed((I)(a & 0xffffu));
  }
#endif
  LANGEVIN_INLINE Q multiply_low_words(Q a, uint32_t b) { return multiply(a, broadcast(b)); }

 private:
#if LANGEVIN_INTRINSICS
  LANGEVIN_INLINE float sum_halves(__m128 v) {  // lane k takes lane k + 2, then k + 1
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
  }
#if LANGEVIN_LANES >= 8
  LANGEVIN_INLINE float sum_halves(__m256 v) {  // lane k takes lane k + 4, then k + 2, then k + 1
    return sum_halves(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
  }
#endif
#endif
};

using F = Lanes::F;
using I = Lanes::I;
using U = Lanes::U;
using Q = Lanes::Q;
typedef double D __attribute__((vector_size(W * 4)));
typedef int64_t L __attribute__((vector_size(W * 4)));

// Two independent streams of the same work, interleaved by the compiler: Philox is a chain of
// dependent multiplies, and a second one fills the gaps (1.4 times the rate with AVX-512).
template <class T>
struct Pair {
  T a, b;
};
#define LANGEVIN_PAIRWISE(op)                                               \
  template <class T>                                                        \
  LANGEVIN_INLINE Pair<T> operator op(const Pair<T>& x, const Pair<T>& y) { \
    return {x.a op y.a, x.b op y.b};                                        \
  }                                                                         \
  template <class T, class S>                                               \
  LANGEVIN_INLINE Pair<T> operator op(const Pair<T>& x, S y) {              \
    return {x.a op y, x.b op y};                                            \
  }
LANGEVIN_PAIRWISE(+)
LANGEVIN_PAIRWISE(-)
LANGEVIN_PAIRWISE(*)
LANGEVIN_PAIRWISE(/)
LANGEVIN_PAIRWISE(&)
LANGEVIN_PAIRWISE(|)
LANGEVIN_PAIRWISE(^)
LANGEVIN_PAIRWISE(<<)
LANGEVIN_PAIRWISE(>>)
#undef LANGEVIN_PAIRWISE
template <class T>
LANGEVIN_INLINE Pair<T> operator-(const Pair<T>& x) {
  return {-x.a, -x.b};
}

template <class T, class S>
LANGEVIN_INLINE Pair<T>& operator+=(Pair<T>& x, const S& y) {
  return x = x + y;
}
template <class T, class S>
LANGEVIN_INLINE Pair<T>& operator*=(Pair<T>& x, const S& y) {
  return x = x * y;
}
template <class T, class S>
LANGEVIN_INLINE Pair<T>& operator/=(Pair<T>& x, const S& y) {
  return x = x / y;
}

struct PairOfLanes {
  using F = Pair<Lanes::F>;
  using I = Pair<Lanes::I>;
  using U = Pair<Lanes::U>;
  using Q = Pair<Lanes::Q>;
  LANGEVIN_INLINE Q broadcast(uint64_t word) {
    return {Lanes::broadcast(word), Lanes::broadcast(word)};
  }
  LANGEVIN_INLINE F constant(float value) {
    return {Lanes::constant(value), Lanes::constant(value)};
  }
  LANGEVIN_INLINE Q multiply_low_words(Q x, uint32_t y) {
    return {Lanes::multiply_low_words(x.a, y), Lanes::multiply_low_words(x.b, y)};
  }
  LANGEVIN_INLINE I as_signed(U x) { return {Lanes::as_signed(x.a), Lanes::as_signed(x.b)}; }
  LANGEVIN_INLINE I bits(F x) { return {Lanes::bits(x.a), Lanes::bits(x.b)}; }
  LANGEVIN_INLINE F from_bits(I x) { return {Lanes::from_bits(x.a), Lanes::from_bits(x.b)}; }
  LANGEVIN_INLINE F sqrt(F x) { return {Lanes::sqrt(x.a), Lanes::sqrt(x.b)}; }
  LANGEVIN_INLINE F from_signed(I x) { return {Lanes::from_signed(x.a), Lanes::from_signed(x.b)}; }
  LANGEVIN_INLINE F from_unsigned(U x) {
    return {Lanes::from_unsigned(x.a), Lanes::from_unsigned(x.b)};
  }
};

// A register of T: float or double, in one vocabulary.
template <class T>
struct Register;

template <>
struct Register<float> {
  using V = F;
  using T = float;
  static constexpr int lanes = W;
  LANGEVIN_INLINE V broadcast(float a) { return Lanes::constant(a); }
  LANGEVIN_INLINE V at_least(V lo, V y) { return Lanes::at_least(lo, y); }
  LANGEVIN_INLINE V at_most(V hi, V y) { return Lanes::at_most(hi, y); }
  LANGEVIN_INLINE V sqrt(V a) { return Lanes::sqrt(a); }
  LANGEVIN_INLINE V where_less(V a, V b, V yes, V no) { return a < b ? yes : no; }
  LANGEVIN_INLINE bool any_not_finite(V a) { return Lanes::any_not_finite(a); }
  LANGEVIN_INLINE float tree_sum(V a) { return Lanes::tree_sum(a); }
  LANGEVIN_INLINE void interleave(V a, V b, V& low, V& high) { Lanes::interleave(a, b, low, high); }
  LANGEVIN_INLINE void deinterleave(V a, V b, V& even, V& odd) {
    Lanes::deinterleave(a, b, even, odd);
  }
  LANGEVIN_INLINE I first(int64_t n) {  // true in the first n lanes
    I index;
    for (int i = 0; i < W; ++i) index[i] = i;
    return index < I{} + static_cast<int32_t>(n);
  }
  LANGEVIN_INLINE float sqrt(float a) { return __builtin_sqrtf(a); }
};

template <>
struct Register<double> {
  using V = D;
  using T = double;
  static constexpr int lanes = H;
  LANGEVIN_INLINE V broadcast(double a) { return a - V{}; }
  LANGEVIN_INLINE V at_least(V lo, V y) { return lo > y ? lo : y; }
  LANGEVIN_INLINE V at_most(V hi, V y) { return hi < y ? hi : y; }
  LANGEVIN_INLINE V where_less(V a, V b, V yes, V no) { return a < b ? yes : no; }
  LANGEVIN_INLINE V sqrt(V a) {
    for (int i = 0; i < H; ++i) a[i] = __builtin_sqrt(a[i]);
    return a;
  }
  LANGEVIN_INLINE bool any_not_finite(V a) {
    const L right = (a - a) == V{};
    int64_t all = -1;
    for (int i = 0; i < H; ++i) all &= right[i];
    return all == 0;
  }
#if LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16
  LANGEVIN_INLINE void interleave(V a, V b, V& low, V& high) {
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    low = (V)_mm512_permutex2var_pd((__m512d)a, first, (__m512d)b);
    high = (V)_mm512_permutex2var_pd((__m512d)a, second, (__m512d)b);
  }
  LANGEVIN_INLINE void deinterleave(V a, V b, V& even, V& odd) {
    const __m512i first = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i second = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    even = (V)_mm512_permutex2var_pd((__m512d)a, first, (__m512d)b);
    odd = (V)_mm512_permutex2var_pd((__m512d)a, second, (__m512d)b);
  }
#elif LANGEVIN_INTRINSICS && LANGEVIN_LANES == 8
  LANGEVIN_INLINE void interleave(V a, V b, V& low, V& high) {
    const __m256d l = _mm256_unpacklo_pd((__m256d)a, (__m256d)b);
    const __m256d h = _mm256_unpackhi_pd((__m256d)a, (__m256d)b);
    low = (V)_mm256_permute2f128_pd(l, h, 0x20);
    high = (V)_mm256_permute2f128_pd(l, h, 0x31);
  }
  LANGEVIN_INLINE void deinterleave(V a, V b, V& even, V& odd) {
    const __m256d e = _mm256_unpacklo_pd((__m256d)a, (__m256d)b);
    const __m256d o = _mm256_unpackhi_pd((__m256d)a, (__m256d)b);
    even = (V)_mm256_permute4x64_pd(e, 0xd8);  // lanes 0, 2, 1, 3
    odd = (V)_mm256_permute4x64_pd(o, 0xd8);
  }
#else
  LANGEVIN_INLINE void interleave(V a, V b, V& low, V& high) {
    low = V{a[0], b[0]};
    high = V{a[1], b[1]};
  }
  LANGEVIN_INLINE void deinterleave(V a, V b, V& even, V& odd) {
    even = V{a[0], b[0]};
    odd = V{a[1], b[1]};
  }
#endif
  LANGEVIN_INLINE L first(int64_t n) {  // true in the first n lanes
    L index;
    for (int i = 0; i < H; ++i) index[i] = i;
    return index < L{} + n;
  }
#if LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16
  LANGEVIN_INLINE double tree_sum(V a) {
    const __m256d high = _mm512_extractf64x4_pd((__m512d)a, 1);
    return sum_halves(_mm256_add_pd(_mm512_castpd512_pd256((__m512d)a), high));
  }
#elif LANGEVIN_INTRINSICS && LANGEVIN_LANES == 8
  LANGEVIN_INLINE double tree_sum(V a) { return sum_halves((__m256d)a); }
#else
  LANGEVIN_INLINE double tree_sum(V a) { return a[0] + a[1]; }
#endif
  LANGEVIN_INLINE double sqrt(double a) { return __builtin_sqrt(a); }

 private:
#if LANGEVIN_INTRINSICS && LANGEVIN_LANES >= 8
  LANGEVIN_INLINE double sum_halves(__m256d v) {  // lane k takes lane k + 2, then k + 1
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
#endif
};

// Two registers of T.
template <class T_>
struct TwoRegisters {
  using T = T_;
  using R = Register<T>;
  using V = Pair<typename R::V>;
  static constexpr int lanes = 2 * R::lanes;
  LANGEVIN_INLINE V broadcast(T a) { return {R::broadcast(a), R::broadcast(a)}; }
  LANGEVIN_INLINE V at_least(const V& lo, const V& y) {
    return {R::at_least(lo.a, y.a), R::at_least(lo.b, y.b)};
  }
  LANGEVIN_INLINE V at_most(const V& hi, const V& y) {
    return {R::at_most(hi.a, y.a), R::at_most(hi.b, y.b)};
  }
  LANGEVIN_INLINE V sqrt(const V& a) { return {R::sqrt(a.a), R::sqrt(a.b)}; }
  LANGEVIN_INLINE V where_less(const V& a, const V& b, const V& yes, const V& no) {
    return {R::where_less(a.a, b.a, yes.a, no.a), R::where_less(a.b, b.b, yes.b, no.b)};
  }
  LANGEVIN_INLINE bool any_not_finite(const V& a) {
    return R::any_not_finite(a.a) | R::any_not_finite(a.b);
  }
};

// Unaligned loads that widen to the register's type, and stores.
template <class V, class T>
struct Unaligned {
  typedef V type __attribute__((aligned(sizeof(T)), may_alias));
};

LANGEVIN_INLINE void load(const float* p, F& v) { v = *(const Unaligned<F, float>::type*)p; }
LANGEVIN_INLINE void load(const double* p, D& v) { v = *(const Unaligned<D, double>::type*)p; }
LANGEVIN_INLINE void load(const float* p, D& v) {
#if LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16  // GCC 12 makes five instructions of a conversion
  v = (D)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif LANGEVIN_INTRINSICS && LANGEVIN_LANES == 8
  v = (D)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  typedef float Half __attribute__((vector_size(H * 4)));
  typedef Half HalfUnaligned __attribute__((aligned(4), may_alias));
  v = __builtin_convertvector(*(const HalfUnaligned*)p, D);
#endif
}
LANGEVIN_INLINE void load(const BFloat16* p, F& v) {
  typedef uint16_t Half __attribute__((vector_size(W * 2)));
  typedef Half HalfUnaligned __attribute__((aligned(2), may_alias));
  v = (F)(__builtin_convertvector(*(const HalfUnaligned*)p, U) << 16);
}

LANGEVIN_INLINE float widen(Float16 h) {  // exact: every half is a float
  const uint32_t sign = (h.bits & 0x8000u) << 16, magnitude = h.bits & 0x7fffu;
  if (magnitude < 0x400u) {  // zero and subnormals: magnitude * 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-08f;
    return sign ? -value : value;
  }
  const uint32_t rebias = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const uint32_t word = sign | ((magnitude << 13) + rebias);
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}
LANGEVIN_INLINE void load(const Float16* p, F& v) {
#if LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16
  v = (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif LANGEVIN_INTRINSICS && LANGEVIN_LANES == 8
  v = (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  for (int i = 0; i < W; ++i) v[i] = widen(p[i]);
#endif
}

// Masked loads and stores, at which the address sanitizer does not look.
#if LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16 && !defined(__SANITIZE_ADDRESS__)
#define LANGEVIN_MASKS 1
#else
#define LANGEVIN_MASKS 0
#endif

// The first n < W floats; zero in the other lanes.
LANGEVIN_INLINE void load_first(const float* p, int64_t n, F& v) {
#if LANGEVIN_MASKS
  v = (F)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  float padded[W] = {};
  memcpy(padded, p, n * sizeof(float));
  load(padded, v);
#endif
}
#if LANGEVIN_MASKS
LANGEVIN_INLINE void load_first(const float* p, int64_t n, D& v) {
  v = (D)_mm512_cvtps_pd(_mm256_maskz_loadu_ps((__mmask8)((1u << n) - 1), p));
}
LANGEVIN_INLINE void load_first(const double* p, int64_t n, D& v) {
  v = (D)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
#endif
template <class G, class V>
LANGEVIN_INLINE void load_first(const G* p, int64_t n, V& v) {
  G padded[sizeof(V) / sizeof(v[0])] = {};
  memcpy(padded, p, n * sizeof(G));
  load(padded, v);
}

// A register, or the first n of its elements if there are no more; zero in the other lanes.
template <class G, class V>
LANGEVIN_INLINE void load_up_to(const G* p, int64_t n, V& v) {
  if (n >= static_cast<int64_t>(sizeof(V) / sizeof(v[0])))
    load(p, v);
  else
    load_first(p, n, v);
}

LANGEVIN_INLINE void store(float* p, F v) { *(Unaligned<F, float>::type*)p = v; }
LANGEVIN_INLINE void store(double* p, D v) { *(Unaligned<D, double>::type*)p = v; }

// The first n < W floats, or n < H doubles.
LANGEVIN_INLINE void store_first(float* p, int64_t n, F v) {
#if LANGEVIN_MASKS
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  memcpy(p, &v, n * sizeof(float));
#endif
}
LANGEVIN_INLINE void store_first(double* p, int64_t n, D v) {
#if LANGEVIN_MASKS
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
  memcpy(p, &v, n * sizeof(double));
#endif
}

template <class T, class V>
LANGEVIN_INLINE void store_up_to(T* p, int64_t n, V v) {
  if (n >= static_cast<int64_t>(sizeof(V) / sizeof(v[0])))
    store(p, v);
  else
    store_first(p, n, v);
}

// One value.
LANGEVIN_INLINE float widen(float a) { return a; }
LANGEVIN_INLINE double widen(double a) { return a; }
LANGEVIN_INLINE float widen(BFloat16 a) {
  const uint32_t word = static_cast<uint32_t>(a.bits) << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace
}  // namespace langevin
