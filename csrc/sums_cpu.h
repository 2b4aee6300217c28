// Sums over a row by a fixed tree, so that every instruction set and thread count gives the same
// bits; backends/reference.py's tree_sum is the specification.
#pragma once

#include "lanes.h"
#include "step.h"

namespace langevin {
namespace {

// Lane k of 64 adds elements k, k + 64, ... of a block in order; the lanes are then added by
// halves (k and k + 32, k + 16, ...). The same tree on every instruction set, hence the same bits.
template <class T, class G, class Term>
LANGEVIN_INLINE T block_sum(const G* g, int64_t n, Term term) {
  using R = Register<T>;
  using V = typename R::V;
  constexpr int N = R::lanes, registers = 64 / N;
  V lanes[registers] = {};
  int64_t j = 0;
  for (; j + 64 <= n; j += 64)
#pragma GCC unroll 16
    for (int k = 0; k < registers; ++k) {
      V v;
      load(g + j + k * N, v);
      lanes[k] += term(v);
    }
  for (int k = 0; j < n; ++k, j += N) {
    V v;
    if (j + N <= n) {
      load(g + j, v);
      lanes[k] += term(v);
    } else {
      load_first(g + j, n - j, v);
      lanes[k] += R::first(n - j) ? term(v) : V{};
    }
  }
#pragma GCC unroll 8
  for (int h = registers / 2; h; h /= 2)
    for (int k = 0; k < h; ++k) lanes[k] += lanes[k + h];
  return R::tree_sum(lanes[0]);
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

}  // namespace
}  // namespace langevin
