// Sums over a row by a fixed tree, so that every instruction set and thread count gives the same
// bits; backends/reference.py's tree_sum is the specification.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "lanes.h"

namespace langevin {
namespace {

constexpr int kSumLanes = 64;

// body(0) to body(N - 1). Few enough are given their number as a type: an array that is indexed so
// lives in registers.
template <int N, class Body>
LANGEVIN_INLINE void unrolled(const Body& body) {
  if constexpr (N > 8) {
    for (int k = 0; k < N; ++k) body(k);
  } else {
    if constexpr (N > 1) unrolled<N - 1>(body);
    body(std::integral_constant<int, N - 1>());
  }
}

// N registers' lanes are added by halves: k and k + 32, k + 16, ...
template <class T, int N, class V>
LANGEVIN_INLINE T add_lanes(V* lanes) {
  if constexpr (N == 1) {
    return Register<T>::tree_sum(lanes[0]);
  } else {
    unrolled<N / 2>([&](auto k) __attribute__((always_inline)) { lanes[k] += lanes[k + N / 2]; });
    return add_lanes<T, N / 2>(lanes);
  }
}

// Lane k of 64 adds elements k, k + 64, ... of a block in order. The same tree on every
// instruction set, hence the same bits. term(j, n) is the register of terms from element j on, of
// which there are n.
template <class T, class Term>
LANGEVIN_INLINE T block_sum(int64_t n, Term term) {
  using R = Register<T>;
  using V = typename R::V;
  constexpr int N = R::lanes, registers = kSumLanes / N;
  V lanes[registers];
  unrolled<registers>([&](auto k) __attribute__((always_inline)) { lanes[k] = V{}; });
  int64_t j = 0;
  for (; j + kSumLanes <= n; j += kSumLanes)
    unrolled<registers>(
        [&](auto k) __attribute__((always_inline)) { lanes[k] += term(j + k * N, int64_t{N}); });
  unrolled<registers>([&](auto k) __attribute__((always_inline)) {
    const int64_t at = j + k * N, left = n - at;
    if (left >= N)
      lanes[k] += term(at, int64_t{N});
    else if (left > 0)
      lanes[k] += R::first(left) ? term(at, left) : V{};
  });
  return add_lanes<T, registers>(lanes);
}

template <class T, class G>
LANGEVIN_INLINE T square_sum(const G* g, int64_t n) {
  using V = typename Register<T>::V;
  return block_sum<T>(n, [g](int64_t j, int64_t left) __attribute__((always_inline)) {
    V v;
    load_up_to(g + j, left, v);
    return v * v;
  });
}

// Block sums are added in pairs, then pairs of pairs; an odd one out moves up unchanged.
template <class T>
T pairwise(T* sums, int64_t n) {
  for (; n > 1; n = (n + 1) / 2)
    for (int64_t i = 0; i < (n + 1) / 2; ++i)
      sums[i] = 2 * i + 1 < n ? sums[2 * i] + sums[2 * i + 1] : sums[2 * i];
  return sums[0];
}

// The same tree without a place for the block sums: level l holds the sum of 2^l blocks.
template <class T, class Blocks>
LANGEVIN_INLINE T pairwise_stream(int64_t n, Blocks block) {
  T level[64], sum{};
  for (int64_t i = 0; i < n; ++i) {
    sum = block(i);
    int l = 0;
    for (; (i >> l) & 1; ++l) sum = level[l] + sum;
    level[l] = sum;
  }
  if (n && (n & (n - 1))) {
    int l = 0;
    while (!((n >> l) & 1)) ++l;
    sum = level[l];
    for (++l; n >> l; ++l)
      if ((n >> l) & 1) sum = level[l] + sum;
  }
  return sum;
}

// A row's sum: block(begin, n) is that of n elements from `begin` on.
template <class T, class Block>
LANGEVIN_INLINE T row_sum(int64_t cols, Block block) {
  return pairwise_stream<T>(blocks_of(cols), [&](int64_t b) {
    const int64_t begin = b * kBlock, left = cols - begin;
    return block(begin, left < kBlock ? left : kBlock);
  });
}

}  // namespace
}  // namespace langevin
