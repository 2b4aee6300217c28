// Whole chains for one instruction set: chains across the lanes, two registers of them at a time.
#include <algorithm>
#include <limits>
#include <vector>

#include "chain.h"
#include "noise_cpu.h"

namespace langevin {
namespace {

template <class V>
LANGEVIN_INLINE Pair<V> exp_of(Pair<V> x) {
  return {exp_of(x.a), exp_of(x.b)};
}
template <class V>
LANGEVIN_INLINE Pair<V> exp_of_negative(Pair<V> x) {
  return {exp_of_negative(x.a), exp_of_negative(x.b)};
}
template <class V>
LANGEVIN_INLINE Pair<V> tanh_of(Pair<V> x) {
  return {tanh_of(x.a), tanh_of(x.b)};
}

// ---- noise: coordinates 4q to 4q + 3 of as many chains as two registers of the state have -------

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

LANGEVIN_INLINE void draw_lanes(uint64_t group, uint64_t chain, const Source& s, int64_t count,
                                Pair<D> z[4]) {
  const Q even = count_lanes(2) + chain;
  const Words<Pair<Q>> w = words_at(PairOfLanes::broadcast(group), {even, even + uint64_t{1}}, s);
  Pair<F> z0, z1;
  box_muller<PairOfLanes>({halves(w.w0), halves(w.w2)}, {halves(w.w1), halves(w.w3)}, z0, z1);
  const F of[4] = {z0.a, z1.a, z0.b, z1.b};
  for (int64_t j = 0; j < count; ++j) {
    alignas(64) float one[W];
    store(one, of[j]);
    load(one, z[j].a);
    load(one + H, z[j].b);
  }
}

// ---- columns of a block of chains, in memory and in registers
// ------------------------------------

// A number of each of `count` chains, `stride` apart; the lanes beyond repeat the last.
template <class T>
LANGEVIN_INLINE typename TwoRegisters<T>::V gather(const T* x, int64_t count, int64_t stride) {
  constexpr int lanes = TwoRegisters<T>::lanes;
  alignas(64) T column[lanes];
  for (int i = 0; i < lanes; ++i) column[i] = x[std::min<int64_t>(i, count - 1) * stride];
  typename TwoRegisters<T>::V v;
  load(column, v.a);
  load(column + lanes / 2, v.b);
  return v;
}

template <class T>
LANGEVIN_INLINE void spill(T* column, const typename TwoRegisters<T>::V& v) {
  store(column, v.a);
  store(column + TwoRegisters<T>::lanes / 2, v.b);
}

template <class T>
LANGEVIN_INLINE void scatter(T* x, int64_t count, int64_t stride,
                             const typename TwoRegisters<T>::V& v) {
  alignas(64) T column[TwoRegisters<T>::lanes];
  spill(column, v);
  for (int64_t i = 0; i < count; ++i) x[i * stride] = column[i];
}

template <class T>
LANGEVIN_INLINE typename TwoRegisters<T>::V coefficient(const Coefficient& c, int64_t row,
                                                        int64_t count) {
  return c.each ? gather(static_cast<const T*>(c.each) + row, count, 1)
                : TwoRegisters<T>::broadcast(static_cast<T>(c.value));
}

// Adds what was summed in registers, and forgets it.
template <class T>
void flush(double* sums, int64_t count, typename TwoRegisters<T>::V& v) {
  alignas(64) T column[TwoRegisters<T>::lanes];
  spill(column, v);
  for (int64_t i = 0; i < count; ++i) sums[i] += column[i];
  v = typename TwoRegisters<T>::V{};
}

// Running means and sums of squares, (cols, lanes) of one block; Welford's algorithm.
template <class T>
class Moments {
 public:
  Moments(const Chain& c, int64_t row, int64_t count)
      : mean_(c.mean ? c.cols * lanes : 0), squares_(mean_.size()) {
    if (c.mean) exchange(c, row, count, [](double& mine, double& theirs) { mine = theirs; });
  }
  void add(int64_t j, const typename TwoRegisters<T>::V& v, double share) {
    alignas(64) T column[lanes];
    spill(column, v);
    double *mean = mean_.data() + j * lanes, *squares = squares_.data() + j * lanes;
    for (int i = 0; i < lanes; ++i) {
      const double delta = column[i] - mean[i];
      mean[i] += delta * share;
      squares[i] += delta * (column[i] - mean[i]);
    }
  }
  void save(const Chain& c, int64_t row, int64_t count) {
    if (c.mean) exchange(c, row, count, [](double& mine, double& theirs) { theirs = mine; });
  }

 private:
  static constexpr int lanes = TwoRegisters<T>::lanes;
  std::vector<double> mean_, squares_;

  template <class Move>
  void exchange(const Chain& c, int64_t row, int64_t count, const Move& move) {
    for (int64_t j = 0; j < c.cols; ++j)
      for (int64_t i = 0; i < count; ++i) {
        move(mean_[j * lanes + i], c.mean[(row + i) * c.cols + j]);
        move(squares_[j * lanes + i], c.squares[(row + i) * c.cols + j]);
      }
  }
};

// ---- the step
// ------------------------------------------------------------------------------------

template <class R>
LANGEVIN_INLINE typename R::V clip_factor(typename R::V norm, typename R::V bound) {
  constexpr auto infinity = std::numeric_limits<typename R::T>::infinity();
  const auto one = R::broadcast(1);
  auto gamma = norm <= bound ? one : bound / norm;
  gamma = norm < infinity ? gamma : norm - norm;  // NaN where it is not finite
  return bound < infinity ? gamma : one;
}

template <class T>
struct Clip {  // how the coefficients of a step become those of a chain
  using M = TwoRegisters<T>;
  using V = typename M::V;
  V drift, diffusion, bound;
  int twice_power;

  V factor(const V& norm) const {
    using R = typename M::R;
    return {clip_factor<R>(norm.a, bound.a), clip_factor<R>(norm.b, bound.b)};
  }
  void apply(const V& gamma, V& a, V& d) const {
    a = drift * gamma;
    d = twice_power == 0 ? diffusion : diffusion * (twice_power == 1 ? M::sqrt(gamma) : gamma);
  }
};

template <class V>
LANGEVIN_INLINE Pair<V> size_of(Pair<V> x) {
  return {x.a < 0 ? -x.a : x.a, x.b < 0 ? -x.b : x.b};
}

// 1 where gamma < 1.
template <class V>
LANGEVIN_INLINE Pair<V> below_one(Pair<V> gamma) {
  return {gamma.a < 1 ? V{} + 1 : V{}, gamma.b < 1 ? V{} + 1 : V{}};
}

// `still` is not 0 where a chain stays.
template <class V>
LANGEVIN_INLINE Pair<V> chosen(Pair<V> still, Pair<V> old, Pair<V> moved) {
  return {still.a != 0 ? old.a : moved.a, still.b != 0 ? old.b : moved.b};
}

struct OneDouble {
  using V = double;
  using T = double;
};

template <class T, template <class> class Energy, int Cols>
struct Run {
  using M = TwoRegisters<T>;
  using V = typename M::V;
  static constexpr int lanes = M::lanes;
  static constexpr int64_t most = Cols ? Cols : kMostColumns;

  static int64_t rows(const Chain& c, int64_t begin, int64_t end) {
    const std::vector<T> numbers(c.numbers, c.numbers + c.count);
    const Energy<M> energy(numbers.data(), c.components, c.cols);
    int64_t good = c.steps;
    for (int64_t row = begin; row < end; row += lanes)
      good = std::min(good, block(c, energy, row, std::min<int64_t>(lanes, end - row)));
    return good;
  }

  // `count` chains from `row` on; how many steps were good.
  static int64_t block(const Chain& c, const Energy<M>& energy, int64_t row, int64_t count) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const int64_t cols = columns<Cols>(c.cols);
    const bool clips = c.bound.each || c.bound.value < infinity;
    const bool clamps = c.low > -infinity || c.high < infinity;
    const V low = M::broadcast(static_cast<T>(c.low)), high = M::broadcast(static_cast<T>(c.high));
    const T rho = static_cast<T>(c.reference_precision);
    const uint64_t chain = c.position.first_chain + row;
    Clip<T> clip{coefficient<T>(c.drift, row, count), coefficient<T>(c.diffusion, row, count),
                 coefficient<T>(c.bound, row, count), c.twice_noise_power};
    alignas(64) T stays[lanes];
    for (int i = 0; i < lanes; ++i)  // lanes beyond the last chain stay where it is
      stays[i] = i >= count || (c.frozen && c.frozen[row + i]);
    const V still = gather(stays, lanes, 1);

    V x[most], g[most], norms{}, gammas{}, clipped{};
    T* const states = static_cast<T*>(c.x) + row * cols;
    for (int64_t j = 0; j < cols; ++j) x[j] = gather(states + j, count, cols);
    Moments<T> moments(c, row, count);
    Source source(c.position);
    for (int64_t k = 0; k < c.steps; ++k) {
      source.go_to(c.position.step + k, c.position.stream);
      if (c.drifts) {
        clip.drift = M::broadcast(static_cast<T>(c.drifts[k]));
        clip.diffusion = M::broadcast(static_cast<T>(c.diffusions[k]));
      }
      const V size = energy.template gradient<Cols>(x, g, cols);
      V bad = size - size, square{};
      for (int64_t j = 0; j < cols; ++j) square += g[j] * g[j];
      const V norm = M::sqrt(square);
      V gamma = M::broadcast(1), a = clip.drift, d = clip.diffusion;
      if (clips) {
        gamma = c.per_coordinate ? V{} : clip.factor(norm);
        if (!c.per_coordinate) clip.apply(gamma, a, d);
      }
      const bool last = k + 1 == c.steps;
      if (last) record_energies(c, row, count, x);

      for (int64_t j = 0; j < cols; j += 4) {
        const int64_t here = std::min<int64_t>(cols - j, 4);
        V z[4];
        if (c.noisy) draw_lanes(j / 4, chain, source, here, z);
        for (int64_t i = 0; i < here; ++i) {
          V& state = x[j + i];
          if (clips && c.per_coordinate) {
            const V each = clip.factor(size_of(g[j + i]));
            clip.apply(each, a, d);
            gamma += each;
          }
          V y = state - a * g[j + i];
          if (rho != 0) y = y - clip.drift * rho * state;
          if (c.noisy) y = y + d * z[i];
          bad += y - y;
          if (clamps) y = M::at_most(high, M::at_least(low, y));
          state = chosen(still, state, y);
        }
      }
      if (M::any_not_finite(chosen(still, V{}, bad))) return k;
      if (clips && c.per_coordinate) gamma /= static_cast<T>(cols);
      if (c.norm_sum) {
        norms += norm;
        gammas += gamma;
        if (clips) clipped += below_one(gamma);
        if (last || (c.first + k + 1) % kSpan == 0) {
          flush<T>(c.norm_sum + row, count, norms);
          flush<T>(c.gamma_sum + row, count, gammas);
          flush<T>(c.clipped_sum + row, count, clipped);
        }
        record(c, row, count, c.first + k + 1, x, moments);
      }
      if (last) {
        scatter(static_cast<T*>(c.grad_norm) + row, count, 1, norm);
        scatter(static_cast<T*>(c.gamma) + row, count, 1, gamma);
      }
    }
    for (int64_t j = 0; j < cols; ++j) scatter(states + j, count, cols, x[j]);
    std::fill_n(c.finite + row, count, true);
    moments.save(c, row, count);
    return c.steps;
  }

  // What is kept of a state besides sums, `after` so many steps.
  LANGEVIN_INLINE void record(const Chain& c, int64_t row, int64_t count, int64_t after, const V* x,
                              Moments<T>& moments) {
    const int64_t cols = columns<Cols>(c.cols);
    if (c.mean)
      for (int64_t j = 0; j < cols; ++j) moments.add(j, x[j], 1.0 / static_cast<double>(after));
    if (!c.trajectory || after % c.every != 0) return;
    const int64_t place = after / c.every - 1 - c.first / c.every;
    T* const kept = static_cast<T*>(c.trajectory) + (place * c.rows + row) * cols;
    for (int64_t j = 0; j < cols; ++j) scatter(kept + j, count, cols, x[j]);
  }

  static void record_energies(const Chain& c, int64_t row, int64_t count, const V* x) {
    const int64_t cols = columns<Cols>(c.cols);
    const Energy<OneDouble> energy(c.numbers, c.components, cols);
    std::vector<T> states(lanes * cols);
    for (int64_t j = 0; j < cols; ++j) scatter(states.data() + j, lanes, cols, x[j]);
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<double> state(&states[i * cols], &states[i * cols] + cols);
      static_cast<T*>(c.energy)[row + i] = static_cast<T>(energy.energy(state.data(), cols));
    }
  }
};

template <class T, template <class> class Energy>
int64_t any_columns(const Chain& c, int64_t begin, int64_t end) {
  if (c.cols == 1) return Run<T, Energy, 1>::rows(c, begin, end);
  if (c.cols == 2) return Run<T, Energy, 2>::rows(c, begin, end);
  return Run<T, Energy, 0>::rows(c, begin, end);
}

template <class T>
int64_t chain_rows(const Chain& c, int64_t begin, int64_t end) {
  switch (c.kind) {
    case kDiagonalGaussian:
      return any_columns<T, DiagonalGaussian>(c, begin, end);
    case kFullGaussian:
      return any_columns<T, FullGaussian>(c, begin, end);
    case kRoundMixture:
      return any_columns<T, RoundMixture>(c, begin, end);
    case kDiagonalMixture:
      return any_columns<T, DiagonalMixture>(c, begin, end);
    case kFullMixture:
      return any_columns<T, FullMixture>(c, begin, end);
    case kRings:
      return Run<T, Rings, 2>::rows(c, begin, end);
    case kTwoMoons:
      return Run<T, TwoMoons, 2>::rows(c, begin, end);
    case kBanana:
      return Run<T, Banana, 2>::rows(c, begin, end);
    case kFunnel:
      return Run<T, Funnel, 0>::rows(c, begin, end);
    case kDoubleWell:
      return any_columns<T, DoubleWell>(c, begin, end);
    case kQuarticWell:
      return any_columns<T, QuarticWell>(c, begin, end);
    default:
      return any_columns<T, Logistic>(c, begin, end);
  }
}

}  // namespace

const ChainKernels LANGEVIN_OF_ISA(_chain) = {
    {chain_rows<float>, chain_rows<double>},
    {TwoRegisters<float>::lanes, TwoRegisters<double>::lanes},
};

}  // namespace langevin
