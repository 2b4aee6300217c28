// Sums over a row by a fixed tree, so that every instruction set and thread count gives the same
// bits; backends/reference.py's tree_sum is the specification.
#pragma once

#include "kernels.h"
#include "lanes.h"

namespace langevin {
namespace {

constexpr int kSumLanes = 64;

// The lanes of a block are added by halves: k and k + 32, k + 16, ...
template <class T>
LANGEVIN_INLINE T add_lanes(typename Register<T>::V* lanes) {
#pragma GCC unroll 8
  for (int h = kSumLanes / Register<T>::lanes / 2; h; h /= 2)
    for (int k = 0; k < h; ++k) lanes[k] += lanes[k + h];
  return Register<T>::tree_sum(lanes[0]);
}

// Lane k of 64 adds elements k, k + 64, ... of a block in order. The same tree on every
// instruction set, hence the same bits. term(j, n) is the register of terms from element j on, of
// which there are n.
template <class T, class Term>
LANGEVIN_INLINE T block_sum(int64_t n, Term term) {
  using R = Register<T>;
  using V = typename R::V;
  constexpr int N = R::lanes, registers = kSumLanes / N;
  V lanes[registers] = {};
  int64_t j = 0;
  for (; j + kSumLanes <= n; j += kSumLanes)
#pragma GCC unroll 16
    for (int k = 0; k < registers; ++k) lanes[k] += term(j + k * N, int64_t{N});
  for (int k = 0; j < n; ++k, j += N)
    if (j + N <= n)
      lanes[k] += term(j, int64_t{N});
    else
      lanes[k] += R::first(n - j) ? term(j, n - j) : V{};
  return add_lanes<T>(lanes);
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
