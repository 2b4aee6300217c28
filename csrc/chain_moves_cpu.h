// What a step of a whole chain is, on a block of chains: the moves of chain.h's rules, each in the
// order of operations of the kernel that takes one step at a time; but for the ratio of Metropolis,
// whose sums are in the state's type.
#pragma once

#include "chain_cpu.h"

namespace langevin {
namespace {

// The sum of squares of a column of registers, n apart; pieces of 64 keep long ones accurate.
template <class V>
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

// The noise of a step. Early, it is drawn before the gradient, where there are so few coordinates
// that it stays in registers: a seventh faster where the gradient is inlined, as more goes on at a
// time. Otherwise when it is asked for, by four coordinates.
template <class Block, bool Early>
class Noise {
 public:
  using V = typename Block::V;
  LANGEVIN_METHOD Noise(const Block& b, bool noisy, const Source& source)
      : noisy_(noisy), source_(source) {
    if (Early && noisy) draw_lanes(0, b.chain(0), source, b.cols(), first_);
  }
  // f(at, z) for every coordinate of register r: where it is in (cols, n), and its noise.
  template <class Function>
  LANGEVIN_METHOD void for_each(const Block& b, int r, const Function& f) const {
    for (int64_t j = 0; j < b.cols(); j += 4) {
      const int64_t here = std::min<int64_t>(b.cols() - j, 4);
      V z[4];
      if (!Early && noisy_) draw_lanes(j / 4, b.chain(r), source_, here, z);
      for (int64_t i = 0; i < here; ++i) f((j + i) * b.n() + r, Early ? first_[i] : z[i]);
    }
  }

 private:
  const bool noisy_;
  const Source& source_;
  V first_[4];
};

template <class Energy, int Cols>
struct Overdamped {
  static constexpr int kArrays = 2;
  using Here = Block<Energy, Cols>;
  using M = typename Energy::M;
  using T = typename M::T;
  using V = typename M::V;
  enum { kDrift, kDiffusion, kBound, kCoefficients };
  V *const x, *const g;
  Coefficients<Here, kCoefficients> with;
  Source source;
  bool is_clipped, clamps;
  V low, high;
  T rho;

  LANGEVIN_METHOD Overdamped(const Here& b, V* const* memory)
      : x(memory[0]), g(memory[1]), with(b), source(b.c.position) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    is_clipped = clips(b.c);
    clamps = b.c.low > -infinity || b.c.high < infinity;
    low = M::broadcast(static_cast<T>(b.c.low));
    high = M::broadcast(static_cast<T>(b.c.high));
    rho = static_cast<T>(b.c.reference_precision);
    b.fetch_states(b.c.x, x);
  }
  LANGEVIN_METHOD void step(const Here& b, const Energy& energy, int64_t k, Said<V>* said) {
    const Chain& c = b.c;
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    const bool last = k + 1 == c.steps, each = is_clipped && c.per_coordinate;
    source.go_to(c.position.step + k, c.position.stream);
    with.go_to(b, k);
    const Noise<Here, Here::kShort> noise(b, c.noisy, source);
    V size[Here::kMost], bad[Here::kMost];
    energy.gradient(x, g, b.cols(), size);
    if (last) b.keep_energies(energy, x, size);
    for (int r = 0; r < b.n(); ++r) {
      const V norm = M::sqrt(squares(g + r, b.cols(), b.n())), drift = with.of[kDrift][r];
      V gamma = M::broadcast(1), a = drift, d = with.of[kDiffusion][r];
      if (each) gamma = V{};
      if (is_clipped && !each) {
        gamma = clip_factor(norm, with.of[kBound][r]);
        clipped(c, r, gamma, a, d);
      }
      bad[r] = V{};
      noise.for_each(b, r, [&](int64_t at, const V& z) __attribute__((always_inline)) {
        V &state = x[at], slope = g[at];
        if (each) {
          const V factor = clip_factor(size_of(slope), with.of[kBound][r]);
          clipped(c, r, factor, a, d);
          gamma += factor;
        }
        V y = state - a * slope;
        if (rho != 0) y = y - drift * rho * state;
        if (c.noisy) y = y + d * z;
        bad[r] += y - y;
        if (c.tolerant) y = finite_or(y, y, nan);  // which a clamp leaves
        if (clamps) y = M::at_most(high, M::at_least(low, y));
        state = b.unless_still(r, state, y);
      });
      if (each) gamma /= static_cast<T>(b.cols());
      said[r] = {bad[r] + (size[r] - size[r]), norm, gamma, V{}};
    }
    if (last) b.keep_faults(bad);
  }
  LANGEVIN_METHOD void save(const Here&) const {}

 private:
  // drift gamma and diffusion gamma^p.
  LANGEVIN_METHOD void clipped(const Chain& c, int r, const V& gamma, V& a, V& d) const {
    a = with.of[kDrift][r] * gamma;
    d = with.of[kDiffusion][r];
    if (c.twice_noise_power) d = d * (c.twice_noise_power == 1 ? M::sqrt(gamma) : gamma);
  }
};

template <class Energy, int Cols>
struct Metropolis {
  static constexpr int kArrays = 4;
  using Here = Block<Energy, Cols>;
  using M = typename Energy::M;
  using T = typename M::T;
  using V = typename M::V;
  enum { kDrift, kDiffusion, kBound, kCoefficients };
  V *const x, *const g, *const y, *const slope;
  Coefficients<Here, kCoefficients> with;
  Source source, uniforms;
  bool is_clipped;
  V energy_x[Here::kMost], norm[Here::kMost], ratio[Here::kMost], moved[Here::kMost];

  LANGEVIN_METHOD Metropolis(const Here& b, V* const* memory)
      : x(memory[0]),
        g(memory[1]),
        y(memory[2]),
        slope(memory[3]),
        with(b),
        source(b.c.position),
        uniforms(b.c.position),
        is_clipped(clips(b.c)) {
    b.fetch_states(b.c.x, x);
    b.fetch_states(b.c.grad, g);
    b.fetch(static_cast<const T*>(b.c.energy), energy_x);
    b.fetch(b.c.log_ratio, ratio);
    for (int r = 0; r < b.n(); ++r) norm[r] = M::sqrt(squares(g + r, b.cols(), b.n()));
  }
  LANGEVIN_METHOD void step(const Here& b, const Energy& energy, int64_t k, Said<V>* said) {
    const Chain& c = b.c;
    with.go_to(b, k);
    constexpr auto never = -std::numeric_limits<T>::infinity();
    source.go_to(c.position.step + k, c.position.stream);
    uniforms.go_to(c.position.step + k, c.second_stream);
    const Noise<Here, false> noise(b, true, source);
    Law there[Here::kMost];
    for (int r = 0; r < b.n(); ++r) {
      there[r] = law_of(r, norm[r]);
      noise.for_each(b, r, [&](int64_t at, const V& z) __attribute__((always_inline)) {
        y[at] = x[at] - there[r].shift * g[at] + there[r].scale * z;
      });
    }
    V energy_y[Here::kMost];
    energy.value_and_gradient(y, slope, b.cols(), energy_y);
    for (int r = 0; r < b.n(); ++r) {
      const V norm_y = M::sqrt(squares(slope + r, b.cols(), b.n()));
      const V terms = log_densities(b, r, there[r], law_of(r, norm_y));
      V total = energy_x[r] - energy_y[r] + terms;
      total = finite_or(terms, total, never);
      total = finite_or(energy_y[r], total, never);
      V uniform;
      draw_log_uniforms(b.chain(r), uniforms, uniform);
      moved[r] = b.unless_still(r, V{}, flag_at_most(uniform, total));
      ratio[r] = b.unless_still(r, ratio[r], total);
      said[r] = {energy_x[r], norm[r], there[r].gamma, V{}};
      if (c.acceptance_sum) said[r].acceptance = exp_of(M::at_most(V{}, ratio[r]));
      for (int64_t at = r; at < b.cols() * b.n(); at += b.n()) {
        x[at] = chosen(moved[r], y[at], x[at]);
        g[at] = chosen(moved[r], slope[at], g[at]);
      }
      energy_x[r] = chosen(moved[r], energy_y[r], energy_x[r]);
      norm[r] = chosen(moved[r], norm_y, norm[r]);
      said[r].wrong = energy_x[r] - energy_x[r];
    }
  }
  LANGEVIN_METHOD void save(const Here& b) const {
    const Chain& c = b.c;
    b.keep_moved_states(g, c.grad);
    b.keep_moved_states(y, c.proposal);
    b.keep_moved(energy_x, static_cast<T*>(c.energy));
    b.keep_moved(ratio, c.log_ratio);
    b.keep_moved(moved, c.accepted);
  }

 private:
  // That of proposals, N(x - shift g, scale^2).
  struct Law {
    V gamma, shift, scale;
  };
  LANGEVIN_METHOD Law law_of(int r, const V& norm_there) const {
    if (!is_clipped) return {M::broadcast(1), with.of[kDrift][r], with.of[kDiffusion][r]};
    const V gamma = clip_factor(norm_there, with.of[kBound][r]);
    return {gamma, with.of[kDrift][r] * gamma, with.of[kDiffusion][r] * M::sqrt(gamma)};
  }
  // log q(x | y) - log q(y | x).
  LANGEVIN_METHOD V log_densities(const Here& b, int r, const Law& there, const Law& back) const {
    const V one = M::broadcast(1), inverse_there = one / there.scale;
    const V inverse_back = is_clipped ? one / back.scale : inverse_there;
    V sum{};
    for (int64_t at = r; at < b.cols() * b.n(); at += b.n()) {
      const V move = y[at] - x[at];
      const V forth = (move + there.shift * g[at]) * inverse_there;
      const V home = (move - back.shift * slope[at]) * inverse_back;
      sum += forth * forth - home * home;
    }
    sum *= T(0.5);
    if (!is_clipped) return sum;
    return sum + log_of(there.scale * inverse_back) * static_cast<T>(b.cols());
  }
};

// U and its gradient as the other moves take them, wherever the chain is in its batch.
template <class Energy, int Cols>
struct Evaluation {
  static constexpr int kArrays = 2;
  using Here = Block<Energy, Cols>;
  using M = typename Energy::M;
  using V = typename M::V;
  V *const x, *const g;
  V value[Here::kMost];

  LANGEVIN_METHOD Evaluation(const Here& b, V* const* memory) : x(memory[0]), g(memory[1]) {
    b.fetch_states(b.c.x, x);
  }
  LANGEVIN_METHOD void step(const Here& b, const Energy& energy, int64_t, Said<V>* said) {
    energy.value_and_gradient(x, g, b.cols(), value);
    for (int r = 0; r < b.n(); ++r) said[r] = Said<V>{V{}, V{}, V{}, V{}};
  }
  LANGEVIN_METHOD void save(const Here& b) const {
    b.keep_moved(value, static_cast<typename M::T*>(b.c.energy));
    b.keep_moved_states(g, b.c.grad);
  }
};

template <class Energy, int Cols>
struct Splitting {
  static constexpr int kArrays = 3;
  using Here = Block<Energy, Cols>;
  using M = typename Energy::M;
  using V = typename M::V;
  enum { kKick, kDrift, kKeep, kSpread, kSecondKick, kSecondDrift, kCoefficients };
  V *const x, *const g, *const v;
  Coefficients<Here, 2 * kCoefficients> with;
  Source source, second_source;
  bool does[2 * kCoefficients];

  LANGEVIN_METHOD Splitting(const Here& b, V* const* memory)
      : x(memory[0]),
        g(memory[1]),
        v(memory[2]),
        with(b),
        source(b.c.position),
        second_source(b.c.position) {
    for (int i = 0; i < 2 * kCoefficients; ++i)
      does[i] = b.c.with[i].each || b.c.with[i].value != 0;
    b.fetch_states(b.c.x, x);
    b.fetch_states(b.c.grad, g);
    b.fetch_states(b.c.v, v);
  }
  LANGEVIN_METHOD void step(const Here& b, const Energy& energy, int64_t k, Said<V>* said) {
    const Chain& c = b.c;
    const bool last = k + 1 == c.steps;
    with.go_to(b, k);
    source.go_to(c.position.step + k, c.position.stream);
    second_source.go_to(c.position.step + k, c.second_stream);
    const Noise<Here, false> noise(b, does[kSpread], source);
    const Noise<Here, false> second_noise(b, does[kCoefficients + kSpread], second_source);
    V size[Here::kMost], bad[Here::kMost];
    for (int r = 0; r < b.n(); ++r) pass<0>(b, r, noise);
    energy.gradient(x, g, b.cols(), size);
    if (last) b.keep_energies(energy, x, size);
    for (int r = 0; r < b.n(); ++r) {
      bad[r] = pass<kCoefficients>(b, r, second_noise);
      const V norm = M::sqrt(squares(g + r, b.cols(), b.n()));
      said[r] = {bad[r] + (size[r] - size[r]), norm, M::broadcast(1), V{}};
    }
    if (last) b.keep_faults(bad);
  }
  LANGEVIN_METHOD void save(const Here& b) const {
    b.keep_moved_states(g, b.c.grad);
    b.keep_states(v, b.c.v);
  }

 private:
  // The operations with the coefficients from `From` on; NaN where they lead nowhere.
  template <int From>
  LANGEVIN_METHOD V pass(const Here& b, int r, const Noise<Here, false>& noise) {
    const auto on = [&](int i) { return does[From + i]; };
    const auto of = [&](int i) { return with.of[From + i][r]; };
    const Coefficient& keep = b.c.with[From + kKeep];
    const bool refreshes = on(kSpread) || keep.each || keep.value != 1;
    V bad{};
    noise.for_each(b, r, [&](int64_t at, const V& z) __attribute__((always_inline)) {
      V position = x[at], velocity = v[at];
      if (on(kKick)) velocity = velocity - of(kKick) * g[at];
      if (on(kDrift)) position = position + of(kDrift) * velocity;
      if (refreshes) velocity = on(kKeep) ? of(kKeep) * velocity : V{};
      if (on(kSpread)) velocity = velocity + of(kSpread) * z;
      if (on(kSecondKick)) velocity = velocity - of(kSecondKick) * g[at];
      if (on(kSecondDrift)) position = position + of(kSecondDrift) * velocity;
      bad += (position - position) + (velocity - velocity);
      x[at] = b.unless_still(r, x[at], position);
      v[at] = b.unless_still(r, v[at], velocity);
    });
    return bad;
  }
};

}  // namespace
}  // namespace langevin
