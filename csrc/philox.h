// The noise of langevin_ext, written once for one lane or many, on the host and on a GPU.
//
//   Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
//   key     = (seed & 0xffffffff, seed >> 32)
//   counter = (coordinate / 4, chain, step & 0xffffffff, (stream << 16) | (step >> 32))
//   words 0, 1 -> normals of coordinates 4q, 4q+1;  words 2, 3 -> 4q+2, 4q+3   (Box-Muller)
//
// langevin_ext/philox.py is the specification. Every operation below is one correctly rounded
// float32 operation in the order written there, so the bits agree on every machine; it must be
// compiled with contraction of a*b+c off.
//
// A `Lanes` class names the types (F float, I int32, U uint32, Q uint64) and the few operations
// that an instruction set spells in its own way. In a Q lane only the low 32 bits carry a word.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define LANGEVIN_METHOD __host__ __device__ __forceinline__
#else
#define LANGEVIN_METHOD inline __attribute__((always_inline))
#endif
#define LANGEVIN_INLINE static LANGEVIN_METHOD

namespace langevin {
namespace {  // every object file keeps its own copy: they are compiled for different processors

// The round keys: computed on the way (a GPU has idle integer units) or read from a table (a CPU
// has idle load ports, and would broadcast 20 of them for every 64 normals: 4 % of the time).
struct Key {
  uint32_t low, high;
  LANGEVIN_INLINE Key of(uint64_t seed) {
    return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  }
  LANGEVIN_METHOD uint32_t word(int round, int half) const {
    return half ? high + round * 0xBB67AE85u : low + round * 0x9E3779B9u;
  }
};

struct KeyTable {
  uint64_t words[10][2];
  explicit KeyTable(uint64_t seed) {
    for (int round = 0; round < 10; ++round)
      for (int half = 0; half < 2; ++half) words[round][half] = Key::of(seed).word(round, half);
  }
  uint64_t word(int round, int half) const { return words[round][half]; }
};

template <class Q>
struct Words {
  Q w0, w1, w2, w3;
};

template <class Lanes, class Keys>
LANGEVIN_INLINE Words<typename Lanes::Q> philox4x32(Words<typename Lanes::Q> c, const Keys& key) {
  using Q = typename Lanes::Q;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Q p0 = Lanes::multiply_low_words(c.w0, 0xD2511F53u);
    const Q p1 = Lanes::multiply_low_words(c.w2, 0xCD9E8D57u);
    c = {(p1 >> 32) ^ c.w1 ^ Lanes::broadcast(key.word(round, 0)), p1,
         (p0 >> 32) ^ c.w3 ^ Lanes::broadcast(key.word(round, 1)), p0};
  }
  return c;
}

// (0, 1]: never 0, so the logarithm below is finite and |normal| <= 6.76.
template <class Lanes>
LANGEVIN_INLINE typename Lanes::F unit_interval(typename Lanes::U word) {
  return Lanes::from_unsigned(word) * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
}

// log(u) for u in (0, 1]; polynomial of Cephes' logf.
template <class Lanes>
LANGEVIN_INLINE typename Lanes::F log_unit(typename Lanes::F u) {
  using F = typename Lanes::F;
  const auto bits = Lanes::bits(u);
  const auto exponent = (bits - 0x3f3504f3) >> 23;
  const F f = Lanes::from_bits(bits - (exponent << 23)) - 1.0f;
  const F e = Lanes::from_signed(exponent);
  F p = Lanes::constant(7.0376836292e-2f);
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const F f2 = f * f;
  F y = p * f * f2;
  y = y + e * -2.12194440e-4f;
  y = y - f2 * 0.5f;
  return (f + y) + e * 0.693359375f;
}

// Two words -> two independent standard normals. The angle is reduced to a quadrant exactly, in
// integers; sine and cosine are Cephes' polynomials on [-pi/4, pi/4].
template <class Lanes>
LANGEVIN_INLINE void box_muller(typename Lanes::U radius_word, typename Lanes::U angle_word,
                                typename Lanes::F& z0, typename Lanes::F& z1) {
  using F = typename Lanes::F;
  const F radius = Lanes::sqrt(log_unit<Lanes>(unit_interval<Lanes>(radius_word)) * -2.0f);

  const auto quadrant = Lanes::as_signed((angle_word + 0x20000000u) >> 30);
  const auto remainder = Lanes::as_signed(angle_word << 2) >> 2;
  const F x = Lanes::from_signed(remainder) * 1.4629180792671596e-09f;  // pi/2 * 2^-30
  const F t = x * x;
  F s = Lanes::constant(-1.9515295891e-4f);
  s = s * t + 8.3321608736e-3f;
  s = s * t + -1.6666654611e-1f;
  s = s * t * x + x;
  F c = Lanes::constant(2.443315711809948e-5f);
  c = c * t + -1.388731625493765e-3f;
  c = c * t + 4.166664568298827e-2f;
  c = c * t * t - t * 0.5f + 1.0f;

  const auto swap = -(quadrant & 1);
  const auto sine = Lanes::bits(s), cosine = Lanes::bits(c);
  const auto difference = (sine ^ cosine) & swap;
  z0 = radius * Lanes::from_bits((cosine ^ difference) ^ (((quadrant + 1) & 2) << 30));
  z1 = radius * Lanes::from_bits((sine ^ difference) ^ ((quadrant & 2) << 30));
}

// One lane: the form for a GPU thread and for whatever an instruction set does not cover.
struct OneLane {
  using F = float;
  using I = int32_t;
  using U = uint32_t;
  using Q = uint64_t;
  LANGEVIN_INLINE Q broadcast(uint32_t word) { return word; }
  LANGEVIN_INLINE F constant(float value) { return value; }
  LANGEVIN_INLINE Q multiply_low_words(Q a, uint32_t b) {
    return static_cast<uint64_t>(static_cast<uint32_t>(a)) * b;
  }
  LANGEVIN_INLINE F from_unsigned(U a) { return static_cast<float>(a); }
  LANGEVIN_INLINE F from_signed(I a) { return static_cast<float>(a); }
  LANGEVIN_INLINE I as_signed(U a) { return static_cast<int32_t>(a); }
  LANGEVIN_INLINE F sqrt(F a) {
#ifdef __CUDA_ARCH__
    return __fsqrt_rn(a);
#else
    return __builtin_sqrtf(a);
#endif
  }
  LANGEVIN_INLINE I bits(F a) {
    I b;
    memcpy(&b, &a, sizeof b);
    return b;
  }
  LANGEVIN_INLINE F from_bits(I a) {
    F b;
    memcpy(&b, &a, sizeof b);
    return b;
  }
};

}  // namespace
}  // namespace langevin
