// Accept-or-reject for one instruction set; compiled once for each (see lanes.h).
//
// A window is as many rows as stay in cache from their sums to the selection of what is accepted.
// Long rows are limited by memory: four arrays read, two written where accepted. Short ones share
// registers, and are limited by the one block of Philox that a row takes for its uniform number.
#include "accept.h"
#include "clip_cpu.h"
#include "elementary.h"
#include "tiles_cpu.h"

namespace langevin {
namespace {

constexpr int64_t kWindow = 4096;  // elements of a window of long rows
constexpr int64_t kShared = 512;   // and of short ones, whose terms are in the L1 cache as well
constexpr int64_t kNarrow = 16;    // rows of no more columns are short

struct LogUniforms {
  template <class L>
  LANGEVIN_INLINE void of(typename L::U even, typename L::U odd, typename L::F& z0,
                          typename L::F& z1) {
    z0 = log_unit<L>(unit_interval<L>(even));
    z1 = log_unit<L>(unit_interval<L>(odd));
  }
};

// ---- the law of proposals ---------------------------------------------------------------------

// What the law of a window's proposals is made of, in float64: of those from x and from y.
template <class T>
struct Laws {
  alignas(64) T norm[2][kTileRows + W];  // squared
  alignas(64) T drift[2][kTileRows + W], scale[2][kTileRows + W], bound[kTileRows + W];
  alignas(64) double shift[2][kTileRows + W];   // a
  alignas(64) double weight[2][kTileRows + W];  // 1 / 2 d^2
  alignas(64) double log_scales[kTileRows +
                                W];  // log d_x - log d_y; a subnormal d has an infinite weight
};

LANGEVIN_INLINE bool clips(const Accept& s) {
  return s.bound.each || s.bound.value != __builtin_inf();
}

// Without clipping proposals from x and from y have one law.
LANGEVIN_INLINE int other_side(const Accept& s) { return clips(s); }

// The laws of `rows` rows whose squared norms are known, if they matter.
template <class T>
void make_laws(const Accept& s, int64_t base, int64_t rows, Laws<T>& t) {
  using V = typename Register<T>::V;
  take(s.drift, base, rows, t.drift[0]);
  take(s.diffusion, base, rows, t.scale[0]);
  take(s.bound, base, rows, t.bound);
  for (int64_t r = 0; r < rows; r += Register<T>::lanes) {
    V drift, scale, bound;
    load(t.drift[0] + r, drift);
    load(t.scale[0] + r, scale);
    load(t.bound + r, bound);
    for (int side = 0; side <= other_side(s); ++side) {
      V gamma = V{} + T(1);
      if (clips(s)) {
        load(t.norm[side] + r, gamma);
        gamma = clip_factor<T>(Register<T>::sqrt(gamma), bound);
      }
      store(t.drift[side] + r, drift * gamma);
      store(t.scale[side] + r, scale * noise_factor<T>(gamma, 1));
    }
  }
  for (int64_t r = 0; r < rows; r += H) {
    D log_scale[2];
    for (int side = 0; side <= other_side(s); ++side) {
      D a, d;
      load(t.drift[side] + r, a);
      load(t.scale[side] + r, d);
      store(t.shift[side] + r, a);
      store(t.weight[side] + r, 0.5 / (d * d));
      log_scale[side] = log_of(d);
    }
    store(t.log_scales + r, log_scale[0] - log_scale[other_side(s)]);
  }
}

// The laws of one row for every register, or of many rows element by element.
struct OneLaw {
  D shift_[2], weight_[2];
  template <class T>
  OneLaw(const Accept& s, const Laws<T>& t, int64_t row) {
    for (int side = 0; side < 2; ++side) {
      const int from = side ? other_side(s) : 0;
      shift_[side] = Register<double>::broadcast(t.shift[from][row]);
      weight_[side] = Register<double>::broadcast(t.weight[from][row]);
    }
  }
  LANGEVIN_METHOD D shift(int side, int64_t) const { return shift_[side]; }
  LANGEVIN_METHOD D weight(int side, int64_t) const { return weight_[side]; }
};

struct ManyLaws {
  const double *shifts[2], *weights[2];
  LANGEVIN_INLINE D at(const double* p) {
    D v;
    load(p, v);
    return v;
  }
  LANGEVIN_METHOD D shift(int side, int64_t j) const { return at(shifts[side] + j); }
  LANGEVIN_METHOD D weight(int side, int64_t j) const { return at(weights[side] + j); }
};

// ---- the ratio --------------------------------------------------------------------------------

// Rows of both points.
template <class T>
struct Rows {
  T *x, *g;
  const T *y, *gy;
  Rows(const Accept& s, int64_t row)
      : x(static_cast<T*>(s.x) + row * s.cols),
        g(static_cast<T*>(s.grad) + row * s.cols),
        y(static_cast<const T*>(s.y) + row * s.cols),
        gy(static_cast<const T*>(s.grad_y) + row * s.cols) {}
};

// log q(x | y) - log q(y | x) of H coordinates from j on, or of n < H, but for log d.
template <class T, class Law>
LANGEVIN_INLINE D terms_at(const Rows<T>& p, int64_t j, int64_t n, const Law& law) {
  D x, y, g, gy;
  load_up_to(p.x + j, n, x);
  load_up_to(p.y + j, n, y);
  load_up_to(p.g + j, n, g);
  load_up_to(p.gy + j, n, gy);
  const D move = y - x;
  const D there = move + law.shift(0, j) * g, back = move - law.shift(1, j) * gy;
  return there * there * law.weight(0, j) - back * back * law.weight(1, j);
}

template <class T>
struct Scratch {
  alignas(64) float log_uniforms[kTile + kChunk];
  alignas(64) double ratio[kTileRows + W];
  alignas(64) T moves[kTileRows + W];  // 1 or 0
  Laws<T> laws;
  // Of short rows alone: what each element has of its row, and what is to be summed.
  alignas(64) T element_moves[kShared + kChunk], columns[kShared];
  alignas(64) double shifts[2][kShared + kChunk], weights[2][kShared + kChunk];
  alignas(64) double terms[kShared + kChunk], wide_columns[kShared];
};

template <class T>
void sum_short_rows(const Accept& s, int64_t base, int64_t rows, bool varies, Scratch<T>& t) {
  const Rows<T> p(s, base);
  const int64_t n = rows * s.cols;
  if (clips(s)) {
    sum_rows<Square>(p.g, s.cols, rows, t.columns, t.laws.norm[0]);
    sum_rows<Square>(p.gy, s.cols, rows, t.columns, t.laws.norm[1]);
  }
  if (varies) {
    make_laws(s, base, rows, t.laws);
    const int other = other_side(s);
    for (int side = 0; side <= other; ++side) {
      spread(t.laws.shift[side], s.cols, rows, t.shifts[side]);
      spread(t.laws.weight[side], s.cols, rows, t.weights[side]);
    }
    const ManyLaws law{{t.shifts[0], t.shifts[other]}, {t.weights[0], t.weights[other]}};
    for (int64_t j = 0; j < n; j += H) store(t.terms + j, terms_at(p, j, n - j, law));
  } else {
    const OneLaw law(s, t.laws, 0);
    for (int64_t j = 0; j < n; j += H) store(t.terms + j, terms_at(p, j, n - j, law));
  }
  sum_rows<Itself>(t.terms, s.cols, rows, t.wide_columns, t.ratio);
}

template <class T>
void sum_long_rows(const Accept& s, int64_t base, int64_t rows, bool varies, Scratch<T>& t) {
  for (int64_t r = 0; clips(s) && r < rows; ++r) {
    const Rows<T> p(s, base + r);
    const T* const gradients[] = {p.g, p.gy};
    for (int side = 0; side < 2; ++side)
      t.laws.norm[side][r] = row_sum<T>(s.cols, [g = gradients[side]](int64_t at, int64_t n) {
        return square_sum<T>(g + at, n);
      });
  }
  if (varies) make_laws(s, base, rows, t.laws);
  for (int64_t r = 0; r < rows; ++r) {
    const Rows<T> p(s, base + r);
    const OneLaw law(s, t.laws, varies ? r : 0);
    t.ratio[r] = row_sum<double>(s.cols, [&](int64_t at, int64_t n) {
      return block_sum<double>(n, [&](int64_t j, int64_t left) __attribute__((always_inline)) {
        return terms_at(p, at + j, left, law);
      });
    });
  }
}

// ---- the decision -----------------------------------------------------------------------------

template <class T>
void decide(const Accept& s, int64_t base, int64_t rows, const float* log_uniforms, Scratch<T>& t) {
  const D never = D{} - __builtin_inf();
  for (int64_t r = 0; r < rows; r += H) {
    const int64_t at = base + r, left = rows - r;
    D ratio, energy, energy_y, log_uniform;
    load(t.ratio + r, ratio);
    load_up_to(static_cast<const T*>(s.energy) + at, left, energy);
    load_up_to(static_cast<const T*>(s.energy_y) + at, left, energy_y);
    load(log_uniforms + r, log_uniform);
    D total = (energy - energy_y) + ratio;
    total = ratio - ratio == 0.0 ? total : never;
    total = energy_y - energy_y == 0.0 ? total : never;
    store_up_to(s.log_ratio + at, left, total);
    const D move = log_uniform <= total ? D{} + 1.0 : D{};
    for (int i = 0; i < H; ++i) t.moves[r + i] = static_cast<T>(move[i]);
  }
  for (int64_t r = 0; r < rows; ++r) s.accepted[base + r] = t.moves[r] != 0;
}

// `to` where `moves` is not 0.
template <class T>
void choose(T* from, const T* to, const T* moves, int64_t n) {
  for (int64_t j = 0; j < n; j += Register<T>::lanes) {
    typename Register<T>::V old, next, move;
    load_up_to(from + j, n - j, old);
    load_up_to(to + j, n - j, next);
    load(moves + j, move);
    store_up_to(from + j, n - j, move != 0 ? next : old);
  }
}

template <class T>
void select(const Accept& s, int64_t base, int64_t rows, bool narrow, Scratch<T>& t) {
  choose(static_cast<T*>(s.energy) + base, static_cast<const T*>(s.energy_y) + base, t.moves, rows);
  if (narrow) {
    const Rows<T> p(s, base);
    spread(t.moves, s.cols, rows, t.element_moves);
    choose(p.x, p.y, t.element_moves, rows * s.cols);
    choose(p.g, p.gy, t.element_moves, rows * s.cols);
    return;
  }
  for (int64_t r = 0; s.cols > 0 && r < rows; ++r)
    if (t.moves[r] != 0) {
      const Rows<T> p(s, base + r);
      memcpy(p.x, p.y, s.cols * sizeof(T));
      memcpy(p.g, p.gy, s.cols * sizeof(T));
    }
}

// ---- what the threads call --------------------------------------------------------------------

template <class T>
void rows(const Accept& s, int64_t begin, int64_t end) {
  const bool narrow = s.cols > 0 && s.cols <= kNarrow;
  const bool varies = clips(s) || s.drift.each || s.diffusion.each;
  const int64_t some = (narrow ? kShared : kWindow) / (s.cols > 0 ? s.cols : 1);
  const int64_t height = some < 1 ? 1 : some < kTileRows ? some : kTileRows;
  const Source source(s.uniforms);
  Scratch<T> t;
  if (!varies && !s.given) make_laws(s, begin, 1, t.laws);  // all rows have the first one's

  for (int64_t drawn = begin; drawn < end; drawn += kTileRows) {
    const int64_t stop = end - drawn < kTileRows ? end : drawn + kTileRows;
    draw_tile<LogUniforms>(t.log_uniforms, 1, stop - drawn, source.first_chain + drawn, source);
    for (int64_t base = drawn; base < stop; base += height) {
      const int64_t rows = stop - base < height ? stop - base : height;
      if (s.given) {
        memcpy(t.ratio, s.given + base, rows * sizeof(double));
      } else {
        narrow ? sum_short_rows(s, base, rows, varies, t) : sum_long_rows(s, base, rows, varies, t);
        for (int64_t r = 0; r < rows; ++r)
          t.ratio[r] += static_cast<double>(s.cols) * t.laws.log_scales[varies ? r : 0];
      }
      decide(s, base, rows, t.log_uniforms + (base - drawn), t);
      select(s, base, rows, narrow, t);
    }
  }
}

}  // namespace

const AcceptKernels LANGEVIN_OF_ISA(_accept) = {{rows<float>, rows<double>}};

}  // namespace langevin
