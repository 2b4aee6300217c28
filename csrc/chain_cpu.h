// The loop over the steps of whole chains, for one instruction set: chains across the lanes.
//
// A block of chains is (cols, n) registers. `M` says what a register is, one of T or two of them
// that go together; an `Energy` says the rest:
//
//   M, kFixed, n()             registers, and n; kFixed is n where it is known when compiled, or 0
//   gradient(x, g, size)       at (cols, n); `size` (n,) is finite in the lanes where U is
//   energies(c, row, count, x) U of the state before the last step, to c.energy
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "chain.h"
#include "noise_cpu.h"

namespace langevin {
namespace {

constexpr int kMostRegisters = 4;  // of a block

// ---- noise: coordinates 4q to 4q + 3 of as many chains as a register has ------------------------

// `count` of them, at most 4: words that are not used are not made into normals.
LANGEVIN_INLINE void draw_lanes(uint64_t group, uint64_t chain, const Source& s, int64_t count,
                                Pair<F> z[4]) {
  const Q even = count_lanes(2) + chain;
  const Pair<Q> evens = {even, even + static_cast<uint64_t>(W)};
  const Pair<Q> groups = PairOfLanes::broadcast(group);
  const Words<Pair<Q>> a = words_at(groups, evens, s), b = words_at(groups, evens + uint64_t{1}, s);
  box_muller<PairOfLanes>(pack(a.w0, b.w0), pack(a.w1, b.w1), z[0], z[1]);
  if (count > 2) box_muller<PairOfLanes>(pack(a.w2, b.w2), pack(a.w3, b.w3), z[2], z[3]);
}

LANGEVIN_INLINE U halves(Pair<Q> w) { return (U)((w.a & 0xffffffffull) | (w.b << 32)); }

LANGEVIN_INLINE void draw_lanes(uint64_t group, uint64_t chain, const Source& s, int64_t, F z[4]) {
  const Q even = count_lanes(2) + chain;
  const Words<Pair<Q>> w = words_at(PairOfLanes::broadcast(group), {even, even + uint64_t{1}}, s);
  Pair<F> z0, z1;
  box_muller<PairOfLanes>({halves(w.w0), halves(w.w2)}, {halves(w.w1), halves(w.w3)}, z0, z1);
  z[0] = z0.a, z[1] = z1.a, z[2] = z0.b, z[3] = z1.b;
}

LANGEVIN_INLINE void draw_lanes(uint64_t group, uint64_t chain, const Source& s, int64_t count,
                                Pair<D> z[4]) {
  F singles[4];
  draw_lanes(group, chain, s, count, singles);
  for (int64_t j = 0; j < count; ++j) {
    alignas(64) float one[W];
    store(one, singles[j]);
    load(one, z[j].a);
    load(one + H, z[j].b);
  }
}

// ---- a register of chains ----------------------------------------------------------------------

template <class T, class V>
LANGEVIN_INLINE void load(const T* p, Pair<V>& v) {
  load(p, v.a);
  load(p + sizeof(V) / sizeof(T), v.b);
}
template <class T, class V>
LANGEVIN_INLINE void store(T* p, const Pair<V>& v) {
  store(p, v.a);
  store(p + sizeof(V) / sizeof(T), v.b);
}

// min(1, bound / norm); NaN where the norm is not finite.
template <class V>
LANGEVIN_INLINE V clip_factor(V norm, V bound) {
  using T = typename Number<V>::Element;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  V gamma = norm <= bound ? V{} + T(1) : bound / norm;
  gamma = norm < infinity ? gamma : norm - norm;
  return bound < infinity ? gamma : V{} + T(1);
}
template <class V>
LANGEVIN_INLINE Pair<V> clip_factor(const Pair<V>& norm, const Pair<V>& bound) {
  return {clip_factor(norm.a, bound.a), clip_factor(norm.b, bound.b)};
}

template <class V>
LANGEVIN_INLINE V size_of(V x) {
  return x < 0 ? -x : x;
}
template <class V>
LANGEVIN_INLINE Pair<V> size_of(const Pair<V>& x) {
  return {size_of(x.a), size_of(x.b)};
}

template <class V>
LANGEVIN_INLINE V finite_or_nan(V x) {
  return x - x == 0 ? x : x - x;
}
template <class V>
LANGEVIN_INLINE Pair<V> finite_or_nan(const Pair<V>& x) {
  return {finite_or_nan(x.a), finite_or_nan(x.b)};
}

// 1 where gamma < 1, or 0.
template <class V>
LANGEVIN_INLINE V below_one(V gamma) {
  return gamma < 1 ? V{} + 1 : V{};
}
template <class V>
LANGEVIN_INLINE Pair<V> below_one(const Pair<V>& gamma) {
  return {below_one(gamma.a), below_one(gamma.b)};
}

// The old values where `still` is not 0, the new ones elsewhere.
template <class V>
LANGEVIN_INLINE V chosen(V still, V old, V moved) {
  return still != 0 ? old : moved;
}
template <class V>
LANGEVIN_INLINE Pair<V> chosen(const Pair<V>& still, const Pair<V>& old, const Pair<V>& moved) {
  return {chosen(still.a, old.a, moved.a), chosen(still.b, old.b, moved.b)};
}

// ---- n registers of chains, in memory and in registers -----------------------------------------

// A number of each of `count` chains, `stride` apart; lanes beyond repeat the last.
template <class M>
LANGEVIN_INLINE void gather(const typename M::T* x, int64_t count, int64_t stride, int n,
                            typename M::V* v) {
  for (int r = 0; r < n; ++r) {
    alignas(64) typename M::T lane[M::lanes];
    for (int i = 0; i < M::lanes; ++i)
      lane[i] = x[std::min<int64_t>(r * M::lanes + i, count - 1) * stride];
    load(lane, v[r]);
  }
}

template <class M>
LANGEVIN_INLINE void scatter(typename M::T* x, int64_t count, int64_t stride, int n,
                             const typename M::V* v) {
  for (int r = 0; r < n; ++r) {
    alignas(64) typename M::T lane[M::lanes];
    store(lane, v[r]);
    const int64_t here = std::min<int64_t>(count - r * M::lanes, M::lanes);
    for (int64_t i = 0; i < here; ++i) x[(r * M::lanes + i) * stride] = lane[i];
  }
}

// Sums over the steps of n registers of chains, in double precision and in the order of the steps.
template <class M>
class Sum {
 public:
  Sum(const double* sums, int64_t count) {
    if (sums) std::copy_n(sums, count, sums_);
  }
  void add(int r, const typename M::V& v) {
    alignas(64) typename M::T lane[M::lanes];
    store(lane, v);
    for (int i = 0; i < M::lanes; ++i) sums_[r * M::lanes + i] += lane[i];
  }
  void save(double* sums, int64_t count) const {
    if (sums) std::copy_n(sums_, count, sums);
  }

 private:
  alignas(64) double sums_[kMostRegisters * M::lanes] = {};
};

// Running means and sums of squares, (cols, lanes) of one block; Welford's algorithm.
template <class M>
class Moments {
 public:
  Moments(const Chain& c, int64_t row, int64_t count, int n)
      : lanes_(n * M::lanes), mean_(c.mean ? c.cols * lanes_ : 0), squares_(mean_.size()) {
    if (c.mean) exchange(c, row, count, [](double& mine, double& theirs) { mine = theirs; });
  }
  // Column j after so many steps; of `count` chains, their other lanes being anything.
  void add(int64_t j, const typename M::V* v, double after) {
    double *mean = mean_.data() + j * lanes_, *squares = squares_.data() + j * lanes_;
    const double share = 1 / after;
    for (int64_t first = 0; first < lanes_; first += M::lanes, ++v) {
      alignas(64) typename M::T lane[M::lanes];
      store(lane, *v);
      for (int i = 0; i < M::lanes; ++i) {
        const double delta = lane[i] - mean[first + i];
        mean[first + i] += delta * share;
        squares[first + i] += delta * (lane[i] - mean[first + i]);
      }
    }
  }
  void save(const Chain& c, int64_t row, int64_t count) {
    if (c.mean) exchange(c, row, count, [](double& mine, double& theirs) { theirs = mine; });
  }

 private:
  int64_t lanes_;
  std::vector<double> mean_, squares_;

  template <class Move>
  void exchange(const Chain& c, int64_t row, int64_t count, const Move& move) {
    for (int64_t j = 0; j < c.cols; ++j)
      for (int64_t i = 0; i < count; ++i) {
        move(mean_[j * lanes_ + i], c.mean[(row + i) * c.cols + j]);
        move(squares_[j * lanes_ + i], c.squares[(row + i) * c.cols + j]);
      }
  }
};

// ---- the loop ----------------------------------------------------------------------------------

// What a chain's step takes besides its gradient: options of all chains, and numbers of a block's.
template <class M>
struct Coefficients {
  using T = typename M::T;
  using V = typename M::V;
  bool clips, clamps, stays;
  V low, high;
  T rho;
  V drift[kMostRegisters], diffusion[kMostRegisters], bound[kMostRegisters];
  V still[kMostRegisters];  // not 0 where a chain stays, as do lanes beyond the last one

  Coefficients(const Chain& c, int64_t row, int64_t count, int n) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    clips = c.bound.each || c.bound.value < infinity;
    clamps = c.low > -infinity || c.high < infinity;
    low = M::broadcast(static_cast<T>(c.low));
    high = M::broadcast(static_cast<T>(c.high));
    rho = static_cast<T>(c.reference_precision);
    take(c.drift, row, count, n, drift);
    take(c.diffusion, row, count, n, diffusion);
    take(c.bound, row, count, n, bound);
    stays = c.frozen || count < n * M::lanes;
    alignas(64) T flags[kMostRegisters * M::lanes];
    for (int i = 0; i < n * M::lanes; ++i) flags[i] = i >= count || (c.frozen && c.frozen[row + i]);
    gather<M>(flags, n * M::lanes, 1, n, still);
  }
  // Those of step k of a schedule.
  LANGEVIN_METHOD void go_to(const Chain& c, int64_t k, int n) {
    for (int r = 0; r < n; ++r) {
      drift[r] = M::broadcast(static_cast<T>(c.drifts[k]));
      diffusion[r] = M::broadcast(static_cast<T>(c.diffusions[k]));
    }
  }
  // drift gamma and diffusion gamma^p.
  LANGEVIN_METHOD void clipped(const Chain& c, int r, const V& gamma, V& a, V& d) const {
    a = drift[r] * gamma;
    d = diffusion[r];
    if (c.twice_noise_power) d = d * (c.twice_noise_power == 1 ? M::sqrt(gamma) : gamma);
  }

 private:
  static void take(const Coefficient& given, int64_t row, int64_t count, int n, V* v) {
    if (given.each) return gather<M>(static_cast<const T*>(given.each) + row, count, 1, n, v);
    for (int r = 0; r < n; ++r) v[r] = M::broadcast(static_cast<T>(given.value));
  }
};

template <class Energy, int Cols>
struct Loop {
  using M = typename Energy::M;
  using T = typename M::T;
  using V = typename M::V;

  // `count` chains from `row` on, in x and g (cols, n), which it fills; how many steps were good.
  LANGEVIN_INLINE int64_t block(const Chain& c, const Energy& energy, int64_t row, int64_t count,
                                V* x, V* g) {
    constexpr int kMost = Energy::kFixed ? Energy::kFixed : kMostRegisters;
    const int n = Energy::kFixed ? Energy::kFixed : energy.n();
    const int64_t cols = columns<Cols>(c.cols);
    const uint64_t chain = c.position.first_chain + row;
    Coefficients<M> with(c, row, count, n);
    T* const states = static_cast<T*>(c.x) + row * cols;
    for (int64_t j = 0; j < cols; ++j) gather<M>(states + j, count, cols, n, x + j * n);
    Moments<M> moments(c, row, count, n);
    Sum<M> norms(at(c.norm_sum, row), count), gammas(at(c.gamma_sum, row), count);
    Sum<M> clipped(at(c.clipped_sum, row), count);
    Source source(c.position);
    for (int64_t k = 0; k < c.steps; ++k) {
      const bool last = k + 1 == c.steps;
      source.go_to(c.position.step + k, c.position.stream);
      if (c.drifts) with.go_to(c, k, n);
      V size[kMost], bad[kMost], norm[kMost], gamma[kMost], a[kMost], d[kMost];
      energy.template gradient<Cols>(x, g, cols, size);
      if (last) energy.energies(c, row, count, x);
      for (int r = 0; r < n; ++r) {
        size[r] = size[r] - size[r];  // NaN where U is not finite
        bad[r] = V{};
        norm[r] = M::sqrt(squares(g + r, cols, n));
        gamma[r] = M::broadcast(1);
        a[r] = with.drift[r], d[r] = with.diffusion[r];
        if (with.clips && c.per_coordinate) gamma[r] = V{};
        if (with.clips && !c.per_coordinate) {
          gamma[r] = clip_factor(norm[r], with.bound[r]);
          with.clipped(c, r, gamma[r], a[r], d[r]);
        }
      }
      for (int64_t j = 0; j < cols; j += 4)
        for (int r = 0; r < n; ++r) {
          const int64_t here = std::min<int64_t>(cols - j, 4);
          V z[4];
          if (c.noisy) draw_lanes(j / 4, chain + r * M::lanes, source, here, z);
          for (int64_t i = 0; i < here; ++i) {
            V &state = x[(j + i) * n + r], slope = g[(j + i) * n + r];
            if (with.clips && c.per_coordinate) {
              const V each = clip_factor(size_of(slope), with.bound[r]);
              with.clipped(c, r, each, a[r], d[r]);
              gamma[r] += each;
            }
            V y = state - a[r] * slope;
            if (with.rho != 0) y = y - with.drift[r] * with.rho * state;
            if (c.noisy) y = y + d[r] * z[i];
            bad[r] += y - y;
            if (c.tolerant) y = finite_or_nan(y);
            if (with.clamps) y = M::at_most(with.high, M::at_least(with.low, y));
            state = with.stays ? chosen(with.still[r], state, y) : y;
          }
        }
      for (int r = 0; r < n; ++r) {
        const V wrong =
            with.stays ? chosen(with.still[r], V{}, bad[r] + size[r]) : bad[r] + size[r];
        if (!c.tolerant && M::any_not_finite(wrong)) return k;
        if (with.clips && c.per_coordinate) gamma[r] /= static_cast<T>(cols);
        if (!c.norm_sum) continue;
        norms.add(r, norm[r]);
        if (!with.clips) continue;
        gammas.add(r, gamma[r]);
        clipped.add(r, below_one(gamma[r]));
      }
      if (c.norm_sum) record(c, row, count, n, c.first + k + 1, x, moments);
      if (last) {
        scatter<M>(static_cast<T*>(c.grad_norm) + row, count, 1, n, norm);
        scatter<M>(static_cast<T*>(c.gamma) + row, count, 1, n, gamma);
        T faults[kMost * M::lanes];
        scatter<M>(faults, n * M::lanes, 1, n, bad);
        for (int64_t i = 0; i < count; ++i) c.finite[row + i] = faults[i] == 0;
        scatter<M>(faults, n * M::lanes, 1, n, size);
        for (int64_t i = 0; i < count; ++i) {  // on the way to U something may have overflowed
          T& value = static_cast<T*>(c.energy)[row + i];
          if (faults[i] != 0 && value - value == 0) value = std::numeric_limits<T>::infinity();
        }
      }
    }
    for (int64_t j = 0; j < cols; ++j) scatter<M>(states + j, count, cols, n, x + j * n);
    if (c.norm_sum) {
      norms.save(c.norm_sum + row, count);
      if (with.clips) {
        gammas.save(c.gamma_sum + row, count);
        clipped.save(c.clipped_sum + row, count);
      } else {
        for (int64_t i = row; i < row + count; ++i) c.gamma_sum[i] += static_cast<double>(c.steps);
      }
    }
    moments.save(c, row, count);
    return c.steps;
  }

 private:
  LANGEVIN_INLINE double* at(double* sums, int64_t row) { return sums ? sums + row : nullptr; }

  // The sum of squares of a column of registers, n apart; pieces of 64 keep long ones accurate.
  LANGEVIN_INLINE V squares(const V* g, int64_t cols, int n) {
    V sum{};
    for (int64_t j = 0; j < cols;) {
      V piece{};
      for (const int64_t end = std::min<int64_t>(cols, j + 64); j < end; ++j)
        piece += g[j * n] * g[j * n];
      sum += piece;
    }
    return sum;
  }
  // What is kept of a state besides sums, `after` so many steps.
  LANGEVIN_INLINE void record(const Chain& c, int64_t row, int64_t count, int n, int64_t after,
                              const V* x, Moments<M>& moments) {
    const int64_t cols = columns<Cols>(c.cols);
    if (c.mean)
      for (int64_t j = 0; j < cols; ++j) moments.add(j, x + j * n, static_cast<double>(after));
    if (!c.trajectory || after % c.every != 0) return;
    const int64_t place = after / c.every - 1 - c.first / c.every;
    T* const kept = static_cast<T*>(c.trajectory) + (place * c.rows + row) * cols;
    for (int64_t j = 0; j < cols; ++j) scatter<M>(kept + j, count, cols, n, x + j * n);
  }
};

}  // namespace
}  // namespace langevin
