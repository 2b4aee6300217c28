// The loop over the steps of whole chains, for one instruction set: chains across the lanes.
//
// A block of chains is (cols, n) registers. `M` says what a register is, one of T or two of them
// that go together; an `Energy` says the rest:
//
//   M, kFixed, n()                      registers, and n; kFixed is n where it is known when
//                                       compiled, or 0
//   gradient(x, g, cols, u)             at (cols, n); u (n,) is finite in the lanes where U is
//   value_and_gradient(x, g, cols, u)   likewise; u is U
//   values(x, u)                        U of the chains, as exact as the state's type has it, at
//                                       the x of the gradient before
//
// What a step is, a `Move` of chain_moves_cpu.h says.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "chain.h"
#include "clip_cpu.h"
#include "noise_cpu.h"

namespace langevin {
namespace {

constexpr int kMostRegisters = 4;  // of a block

// ---- noise of as many chains as a register has: of coordinates 4q to 4q + 3 ---------------------

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

LANGEVIN_INLINE void widen(F from, Pair<D>& to) {
  alignas(64) float lane[W];
  store(lane, from);
  load(lane, to.a);
  load(lane + H, to.b);
}

LANGEVIN_INLINE void draw_lanes(uint64_t group, uint64_t chain, const Source& s, int64_t count,
                                Pair<D> z[4]) {
  F singles[4];
  draw_lanes(group, chain, s, count, singles);
  for (int64_t j = 0; j < count; ++j) widen(singles[j], z[j]);
}

// log u of the chains' first uniform numbers.
LANGEVIN_INLINE void draw_log_uniforms(uint64_t chain, const Source& s, Pair<F>& log_u) {
  const Q even = count_lanes(2) + chain, group{};
  const Pair<Q> evens = {even, even + static_cast<uint64_t>(W)}, groups = {group, group};
  const Words<Pair<Q>> a = words_at(groups, evens, s), b = words_at(groups, evens + uint64_t{1}, s);
  log_u = log_unit<PairOfLanes>(unit_interval<PairOfLanes>(pack(a.w0, b.w0)));
}

LANGEVIN_INLINE void draw_log_uniforms(uint64_t chain, const Source& s, F& log_u) {
  const Q even = count_lanes(2) + chain;
  const Words<Pair<Q>> w = words_at(PairOfLanes::broadcast(0), {even, even + uint64_t{1}}, s);
  log_u = log_unit<Lanes>(unit_interval<Lanes>(halves(w.w0)));
}

LANGEVIN_INLINE void draw_log_uniforms(uint64_t chain, const Source& s, Pair<D>& log_u) {
  F singles;
  draw_log_uniforms(chain, s, singles);
  widen(singles, log_u);
}

// ---- a register of chains ----------------------------------------------------------------------

template <class T, class V>
LANGEVIN_INLINE void load(const T* p, Pair<V>& v) {
  load(p, v.a);
  load(p + sizeof(V) / sizeof(typename Number<V>::Element), v.b);
}
template <class T, class V>
LANGEVIN_INLINE void store(T* p, const Pair<V>& v) {
  store(p, v.a);
  store(p + sizeof(V) / sizeof(typename Number<V>::Element), v.b);
}

template <class V>
LANGEVIN_INLINE V clip_factor(const V& norm, const V& bound) {
  return clip_factor<typename Number<V>::Element>(norm, bound);
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

// `value` where `test` is finite.
template <class V, class T>
LANGEVIN_INLINE V finite_or(V test, V value, T otherwise) {
  return test - test == 0 ? value : V{} + otherwise;
}
template <class V, class T>
LANGEVIN_INLINE Pair<V> finite_or(const Pair<V>& test, const Pair<V>& value, T otherwise) {
  return {finite_or(test.a, value.a, otherwise), finite_or(test.b, value.b, otherwise)};
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

// 1 where a <= b, or 0.
template <class V>
LANGEVIN_INLINE V flag_at_most(V a, V b) {
  return a <= b ? V{} + 1 : V{};
}
template <class V>
LANGEVIN_INLINE Pair<V> flag_at_most(const Pair<V>& a, const Pair<V>& b) {
  return {flag_at_most(a.a, b.a), flag_at_most(a.b, b.b)};
}

// `yes` where `flag` is not 0.
template <class V>
LANGEVIN_INLINE V chosen(V flag, V yes, V no) {
  return flag != 0 ? yes : no;
}
template <class V>
LANGEVIN_INLINE Pair<V> chosen(const Pair<V>& flag, const Pair<V>& yes, const Pair<V>& no) {
  return {chosen(flag.a, yes.a, no.a), chosen(flag.b, yes.b, no.b)};
}

template <class V>
LANGEVIN_INLINE Pair<V> exp_of(const Pair<V>& x) {
  return {exp_of(x.a), exp_of(x.b)};
}
template <class V>
LANGEVIN_INLINE Pair<V> log_of(const Pair<V>& x) {
  return {log_of(x.a), log_of(x.b)};
}

// ---- n registers of chains, in memory and in registers -----------------------------------------

// A number of each of `count` chains, `stride` apart; lanes beyond repeat the last.
template <class M, class S>
LANGEVIN_INLINE void gather(const S* x, int64_t count, int64_t stride, int n, typename M::V* v) {
  for (int r = 0; r < n; ++r) {
    alignas(64) typename M::T lane[M::lanes];
    for (int i = 0; i < M::lanes; ++i)
      lane[i] =
          static_cast<typename M::T>(x[std::min<int64_t>(r * M::lanes + i, count - 1) * stride]);
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

// Chains [row, row + count) of n registers, and lanes that repeat the last of them.
template <class Energy, int Cols>
class Block {
 public:
  using M = typename Energy::M;
  using T = typename M::T;
  using V = typename M::V;
  static constexpr int kMost = Energy::kFixed ? Energy::kFixed : kMostRegisters;
  static constexpr bool kShort = Energy::kFixed == 1 && Cols > 0 && Cols <= 4;
  const Chain& c;
  const int64_t row, count;
  const bool stays;  // whether there are chains that stay where they are, or lanes beyond the last
  V still[kMost];    // not 0 in theirs

  LANGEVIN_METHOD Block(const Chain& chain, const Energy& energy, int64_t first, int64_t chains)
      : c(chain),
        row(first),
        count(chains),
        stays(chain.frozen || chains < energy.n() * M::lanes),
        n_(energy.n()) {
    alignas(64) T flags[kMost * M::lanes];
    for (int i = 0; i < n() * M::lanes; ++i) flags[i] = i >= count || is_frozen(i);
    gather<M>(flags, n() * M::lanes, 1, n(), still);
  }
  LANGEVIN_METHOD int n() const { return Energy::kFixed ? Energy::kFixed : n_; }
  LANGEVIN_METHOD int64_t cols() const { return columns<Cols>(c.cols); }
  LANGEVIN_METHOD uint64_t chain(int r) const {  // that of the noise, of register r
    return c.position.first_chain + row + r * M::lanes;
  }
  LANGEVIN_METHOD V unless_still(int r, const V& old, const V& next) const {
    return stays ? chosen(still[r], old, next) : next;
  }

  // What these chains have of (rows,) numbers, or of (rows, cols).
  template <class S>
  LANGEVIN_METHOD void fetch(const S* of_rows, V* to) const {
    gather<M>(of_rows + row, count, 1, n(), to);
  }
  LANGEVIN_METHOD void fetch_states(const void* states, V* to) const {
    const T* from = static_cast<const T*>(states) + row * cols();
    for (int64_t j = 0; j < cols(); ++j) gather<M>(from + j, count, cols(), n(), to + j * n());
  }
  LANGEVIN_METHOD void keep(const V* from, void* of_rows) const {
    scatter<M>(static_cast<T*>(of_rows) + row, count, 1, n(), from);
  }
  LANGEVIN_METHOD void keep_states(const V* from, void* states) const {
    T* to = static_cast<T*>(states) + row * cols();
    for (int64_t j = 0; j < cols(); ++j) scatter<M>(to + j, count, cols(), n(), from + j * n());
  }
  // Likewise of those that move: to whatever type of numbers.
  template <class S>
  LANGEVIN_METHOD void keep_moved(const V* from, S* of_rows) const {
    T number[kMost * M::lanes];
    scatter<M>(number, n() * M::lanes, 1, n(), from);
    for (int64_t i = 0; i < count; ++i)
      if (!is_frozen(i)) of_rows[row + i] = static_cast<S>(number[i]);
  }
  LANGEVIN_METHOD void keep_moved_states(const V* from, void* states) const {
    T* const to = static_cast<T*>(states) + row * cols();
    for (int64_t j = 0; j < cols(); ++j) {
      T number[kMost * M::lanes];
      scatter<M>(number, n() * M::lanes, 1, n(), from + j * n());
      for (int64_t i = 0; i < count; ++i)
        if (!is_frozen(i)) to[i * cols() + j] = number[i];
    }
  }
  // U at x, where `size` is not finite if something on the way to it was not.
  LANGEVIN_METHOD void keep_energies(const Energy& energy, const V* x, const V* size) const {
    T values[kMost * M::lanes], sizes[kMost * M::lanes];
    energy.values(x, values);
    scatter<M>(sizes, n() * M::lanes, 1, n(), size);
    for (int64_t i = 0; i < count; ++i) {
      if (is_frozen(i)) continue;
      const bool overflow = sizes[i] - sizes[i] != 0 && values[i] - values[i] == 0;
      static_cast<T*>(c.energy)[row + i] =
          overflow ? std::numeric_limits<T>::infinity() : values[i];
    }
  }
  LANGEVIN_METHOD void keep_faults(const V* bad) const {
    T faults[kMost * M::lanes];
    scatter<M>(faults, n() * M::lanes, 1, n(), bad);
    for (int64_t i = 0; i < count; ++i) c.finite[row + i] = faults[i] == 0;
  }

 private:
  const int n_;
  LANGEVIN_METHOD bool is_frozen(int64_t i) const { return c.frozen && c.frozen[row + i]; }
};

// N coefficients of a block's chains, in registers.
template <class Block, int N>
struct Coefficients {
  using M = typename Block::M;
  typename M::V of[N][Block::kMost];

  LANGEVIN_METHOD explicit Coefficients(const Block& b) {
    for (int i = 0; i < N; ++i) {
      const Coefficient& given = b.c.with[i];
      if (given.each)
        b.fetch(static_cast<const typename M::T*>(given.each), of[i]);
      else
        set(b, i, given.value);
    }
  }
  // Those of step k, where a schedule has them.
  LANGEVIN_METHOD void go_to(const Block& b, int64_t k) {
    if (!b.c.schedule) return;
    for (int i = 0; i < b.c.scheduled; ++i) set(b, i, b.c.schedule[i * b.c.steps + k]);
  }

 private:
  LANGEVIN_METHOD void set(const Block& b, int i, double value) {
    for (int r = 0; r < b.n(); ++r) of[i][r] = M::broadcast(static_cast<typename M::T>(value));
  }
};

// What a step says of a register of chains.
template <class V>
struct Said {
  V wrong;  // NaN where chain or energy is not finite
  V norm, gamma, acceptance;
};

// Whether gradients are clipped; if not, gamma is 1.
LANGEVIN_INLINE bool clips(const Chain& c) {
  const Coefficient& bound = c.with[2];
  return c.rule != kKinetic &&
         (bound.each || bound.value < std::numeric_limits<double>::infinity());
}

// ---- what is kept of the steps -----------------------------------------------------------------

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

// Sums, moments and the trajectory of a block.
template <class Block>
class Record {
 public:
  using M = typename Block::M;
  Record(const Block& b)
      : b_(b),
        clips_(clips(b.c)),
        norms_(at(b.c.norm_sum), b.count),
        gammas_(at(b.c.gamma_sum), b.count),
        clipped_(at(b.c.clipped_sum), b.count),
        acceptances_(at(b.c.acceptance_sum), b.count),
        moments_(b.c, b.row, b.count, b.n()) {}

  // What step k said, and where it led.
  LANGEVIN_METHOD void add(int64_t k, const Said<typename M::V>* said, const typename M::V* x) {
    const Chain& c = b_.c;
    if (!c.norm_sum) return;
    for (int r = 0; r < b_.n(); ++r) {
      norms_.add(r, said[r].norm);
      if (c.acceptance_sum) acceptances_.add(r, said[r].acceptance);
      if (!clips_) continue;
      gammas_.add(r, said[r].gamma);
      clipped_.add(r, below_one(said[r].gamma));
    }
    const int64_t n = b_.n(), after = c.first + k + 1;
    if (c.mean)
      for (int64_t j = 0; j < b_.cols(); ++j)
        moments_.add(j, x + j * n, static_cast<double>(after));
    if (!c.trajectory || after % c.every != 0) return;
    const int64_t place = after / c.every - 1 - c.first / c.every;
    b_.keep_states(x, static_cast<typename M::T*>(c.trajectory) + place * c.rows * c.cols);
  }
  void save() {
    const Chain& c = b_.c;
    if (!c.norm_sum) return;
    norms_.save(at(c.norm_sum), b_.count);
    acceptances_.save(at(c.acceptance_sum), b_.count);
    if (clips_) {
      gammas_.save(at(c.gamma_sum), b_.count);
      clipped_.save(at(c.clipped_sum), b_.count);
    } else {
      for (int64_t i = 0; i < b_.count; ++i) at(c.gamma_sum)[i] += static_cast<double>(c.steps);
    }
    moments_.save(c, b_.row, b_.count);
  }

 private:
  const Block& b_;
  const bool clips_;
  Sum<M> norms_, gammas_, clipped_, acceptances_;
  Moments<M> moments_;

  double* at(double* sums) const { return sums ? sums + b_.row : nullptr; }
};

// ---- the loop ----------------------------------------------------------------------------------

// The steps of `count` chains from `row` on, in kArrays of (cols, n) registers, which it fills; how
// many of them were good. A move keeps its state there, x first.
template <template <class, int> class Move, int Cols, class Energy>
LANGEVIN_INLINE int64_t take_steps(const Chain& c, const Energy& energy, int64_t row, int64_t count,
                                   typename Energy::M::V* const* memory) {
  using V = typename Energy::M::V;
  using Here = Block<Energy, Cols>;
  const Here b(c, energy, row, count);
  Move<Energy, Cols> move(b, memory);
  Record<Here> record(b);
  Said<V> said[Here::kMost];
  for (int64_t k = 0; k < c.steps; ++k) {
    move.step(b, energy, k, said);
    for (int r = 0; r < b.n(); ++r)
      if (!c.tolerant && Energy::M::any_not_finite(b.unless_still(r, V{}, said[r].wrong))) return k;
    record.add(k, said, memory[0]);
  }
  V norm[Here::kMost], gamma[Here::kMost];
  for (int r = 0; r < b.n(); ++r) norm[r] = said[r].norm, gamma[r] = said[r].gamma;
  b.keep(norm, c.grad_norm);
  b.keep(gamma, c.gamma);
  b.keep_states(memory[0], c.x);
  move.save(b);
  record.save();
  return c.steps;
}

}  // namespace
}  // namespace langevin
