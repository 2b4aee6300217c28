// Noise by the register: rows, tiles of short rows, and whole tensors of it.
#pragma once

#include "kernels.h"
#include "lanes.h"

namespace langevin {
namespace {

constexpr int kChunk = 4 * W;  // coordinates per call of the noise: a pair of registers of counters
constexpr int kTile = 1024;    // noise of one tile of short rows, in L1

// Rows are short when filling their last chunk would waste more noise than sharing it costs.
LANGEVIN_INLINE bool is_short(int64_t cols) {
  const int64_t padded = (cols + kChunk - 1) / kChunk * kChunk;
  return padded * 8 > cols * 9;
}

struct Normals {
  template <class L>
  LANGEVIN_INLINE void of(typename L::U even, typename L::U odd, typename L::F& z0,
                          typename L::F& z1) {
    box_muller<L>(even, odd, z0, z1);
  }
};

struct Uniforms {
  template <class L>
  LANGEVIN_INLINE void of(typename L::U even, typename L::U odd, typename L::F& z0,
                          typename L::F& z1) {
    z0 = unit_interval<L>(even);
    z1 = unit_interval<L>(odd);
  }
};

LANGEVIN_INLINE Q count_lanes(uint64_t stride) {
  Q q;
  for (int i = 0; i < H; ++i) q[i] = i * stride;
  return q;
}

LANGEVIN_INLINE Pair<U> pack(Pair<Q> low, Pair<Q> high) {
  const Q mask = Lanes::broadcast(0xffffffffull);
  return {(U)((low.a & mask) | (high.a << 32)), (U)((low.b & mask) | (high.b << 32))};
}

// A position, taken apart once for all the counters that share it.
struct Source {
  KeyTable key;
  uint64_t step_low, stream_and_step_high, first_chain;
  explicit Source(const Position& p)
      : key(p.seed),
        step_low(static_cast<uint32_t>(p.step)),
        stream_and_step_high((p.stream << 16) | static_cast<uint32_t>(p.step >> 32)),
        first_chain(p.first_chain) {}
  // Another step of the same seed.
  void go_to(uint64_t step, uint32_t stream) {
    step_low = static_cast<uint32_t>(step);
    stream_and_step_high = (stream << 16) | static_cast<uint32_t>(step >> 32);
  }
};

LANGEVIN_INLINE Words<Pair<Q>> words_at(Pair<Q> group, Pair<Q> chain, const Source& s) {
  return philox4x32<PairOfLanes>({group, chain, PairOfLanes::broadcast(s.step_low),
                                  PairOfLanes::broadcast(s.stream_and_step_high)},
                                 s.key);
}

// 4 numbers for each of 2H (group, chain) counters, in the counters' order.
template <class Law>
LANGEVIN_INLINE void draw_groups(Pair<Q> group, Pair<Q> chain, const Source& p, F z[4]) {
  const Words<Pair<Q>> w = words_at(group, chain, p);
  Pair<F> z0, z1;
  Law::template of<PairOfLanes>(pack(w.w0, w.w2), pack(w.w1, w.w3), z0, z1);
  Lanes::interleave(z0.a, z1.a, z[0], z[1]);
  Lanes::interleave(z0.b, z1.b, z[2], z[3]);
}

// kChunk consecutive coordinates of one chain.
template <class Law>
LANGEVIN_INLINE void draw_row(uint64_t group, uint64_t chain, const Source& p, F z[4]) {
  const Q first = count_lanes(1) + group;
  draw_groups<Law>({first, first + static_cast<uint64_t>(H)}, PairOfLanes::broadcast(chain), p, z);
}

// Coordinates 0 and 1 of 2W consecutive chains: their other two words are never made.
template <class Law>
LANGEVIN_INLINE void draw_two_columns(uint64_t chain, const Source& p, Pair<F>& z0, Pair<F>& z1) {
  const Q even = count_lanes(2) + chain;
  const Pair<Q> evens = {even, even + static_cast<uint64_t>(W)};
  const Words<Pair<Q>> a = words_at(PairOfLanes::broadcast(0), evens, p);
  const Words<Pair<Q>> b = words_at(PairOfLanes::broadcast(0), evens + uint64_t{1}, p);
  Law::template of<PairOfLanes>(pack(a.w0, b.w0), pack(a.w1, b.w1), z0, z1);
}

// Noise of `rows` short rows, packed as (rows, cols). `out` has room for kTile + kChunk floats
// and rows * 4 ceil(cols / 4) <= kTile.
template <class Law>
void draw_tile(float* out, int64_t cols, int64_t rows, uint64_t chain, const Source& p) {
  if (cols <= 2) {
    for (int64_t r = 0; r < rows; r += 2 * W) {
      Pair<F> z0, z1;
      draw_two_columns<Law>(chain + r, p, z0, z1);
      if (cols == 1) {
        store(out + r, z0.a);
        store(out + r + W, z0.b);
      } else {
        F z[4];
        Lanes::interleave(z0.a, z1.a, z[0], z[1]);
        Lanes::interleave(z0.b, z1.b, z[2], z[3]);
        for (int i = 0; i < 4; ++i) store(out + 2 * r + i * W, z[i]);
      }
    }
    return;
  }
  // Counters run through (chain, group) in memory order, H to a register.
  const uint64_t groups = (cols + 3) / 4, total = rows * groups;
  Q group = count_lanes(1), chains = Lanes::broadcast(chain);
  for (int i = 0; i < H; ++i) {
    chains[i] += group[i] / groups;
    group[i] %= groups;
  }
  const uint64_t next_group = H % groups, next_chain = H / groups;
  const auto advance = [&](Q& g, Q& c) {
    g += next_group;
    const Q carry = (Q)(g >= groups);
    g -= carry & groups;
    c += (carry & uint64_t{1}) + next_chain;
  };
  for (uint64_t i = 0; i < total; i += 2 * H) {
    Pair<Q> g{group, group}, c{chains, chains};
    advance(g.b, c.b);
    F z[4];
    draw_groups<Law>(g, c, p, z);
    for (int k = 0; k < 4; ++k) store(out + 4 * i + k * W, z[k]);
    group = g.b;
    chains = c.b;
    advance(group, chains);
  }
  if (static_cast<uint64_t>(cols) == 4 * groups) return;
  // Close the gaps, front to back: each store of 4 may spill into the next row, written after it.
  for (int64_t r = 0; r < rows; ++r)
    for (uint64_t q = 0; q < groups; ++q) {
      float four[4];
      memcpy(four, out + 4 * (r * groups + q), sizeof four);
      memcpy(out + r * cols + 4 * q, four, sizeof four);
    }
}

LANGEVIN_INLINE int64_t tile_rows(int64_t cols) {
  return cols <= 2 ? kTile / 2 : kTile / (4 * ((cols + 3) / 4));
}

template <class Law>
void draw(float* out, int64_t cols, int64_t begin, int64_t end, const Position& position) {
  const Source p(position);
  alignas(64) float buffer[kTile + kChunk];
  if (is_short(cols)) {
    const int64_t step = tile_rows(cols);
    for (int64_t r = begin; r < end; r += step) {
      const int64_t rows = end - r < step ? end - r : step;
      draw_tile<Law>(buffer, cols, rows, p.first_chain + r, p);
      memcpy(out + r * cols, buffer, rows * cols * sizeof(float));
    }
    return;
  }
  for (int64_t r = begin; r < end; ++r)
    for (int64_t j = 0; j < cols; j += kChunk) {
      F z[4];
      draw_row<Law>(j / 4, p.first_chain + r, p, z);
      for (int i = 0; i < 4; ++i) store(buffer + i * W, z[i]);
      const int64_t n = cols - j < kChunk ? cols - j : kChunk;
      memcpy(out + r * cols + j, buffer, n * sizeof(float));
    }
}

// A chunk of noise as an update takes it, register by register.
struct NoiseInRegisters {
  F z[4];
  F operator()(int i, F) const { return z[i]; }
};

struct NoiseInMemory {
  const float* z;
  template <class V>
  V operator()(int i, V) const {
    V v;
    load(z + i * (int)(sizeof(V) / sizeof(v[0])), v);
    return v;
  }
};

}  // namespace
}  // namespace langevin
