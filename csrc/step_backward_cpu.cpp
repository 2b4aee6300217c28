// The derivative of the step for one instruction set; compiled once for each (see lanes.h).
//
// A row is gone through twice, or once where no gradient is clipped: for what it adds up to, which
// takes the noise again, made from its counters, and for what follows from that. In between it
// stays in cache. The noise is left out where nothing needs it: without a clamp, a learned
// diffusion and a clipped gradient whose noise shrinks with it.
#include "step_backward.h"
#include "step_cpu.h"

namespace langevin {
namespace {

// What a coordinate adds to its row's sums.
enum { kAlong, kNoisy, kAnchored, kBounded, kSums };

// What there is to do.
struct Task {
  bool clips, clamps, learns_gamma, needs[kSums], draws;
  double p;
  explicit Task(const StepBackward& b) {
    constexpr double infinity = __builtin_inf();
    const Step& s = b.step;
    p = s.twice_noise_power / 2.0;
    clips = s.bound.each || s.bound.value < infinity;
    clamps = s.low > -infinity || s.high < infinity;
    learns_gamma = clips && (b.dgrad || b.dbound);
    needs[kAlong] = learns_gamma || b.ddrift;
    needs[kNoisy] = s.noisy && ((learns_gamma && p != 0) || b.ddiffusion);
    needs[kAnchored] = b.ddrift && s.reference_precision != 0;
    needs[kBounded] = clips && b.dbound && s.per_coordinate;
    draws = s.noisy && (clamps || needs[kNoisy]);
  }
};

// gamma^(p - 1), gamma > 0, for p = 1/2 or 1.
template <class T, class V>
LANGEVIN_INLINE V inverse_power(V gamma, int twice_power) {
  return twice_power == 2 ? V{} + T(1) : T(1) / Register<T>::sqrt(gamma);
}

// Elements of one row, or of the rows of a tile: what is read, what is written.
template <class T>
struct Elements {
  const T *x, *g, *cotangent;
  const float* noise;
  T *inside, *dgrad, *terms[kSums];
  Elements from(int64_t j) const {
    Elements e{x + j, g + j, cotangent + j, noise + j, inside + j, dgrad ? dgrad + j : dgrad, {}};
    for (int k = 0; k < kSums; ++k) e.terms[k] = terms[k] + j;
    return e;
  }
};

// G, and what is to be summed; per coordinate dgrad as well.
template <class T, class Coefficients>
void first_pass(const StepBackward& b, const Task& task, const Elements<T>& e, int64_t n,
                const Coefficients& c) {
  using R = Register<T>;
  using V = typename R::V;
  const Step& s = b.step;
  const V low = R::broadcast((T)s.low), high = R::broadcast((T)s.high), one = R::broadcast(1);
  const T p = static_cast<T>(task.p);
  for (int64_t j = 0, i = 0; j < n; j += R::lanes, ++i) {
    V x{}, g, inside, z{}, drift = c.drift(i), diffusion = c.diffusion(i);
    load_up_to(e.g + j, n - j, g);
    load_up_to(e.cotangent + j, n - j, inside);
    if (task.draws) load_up_to(e.noise + j, n - j, z);
    V gamma = one, power = one, size = magnitude(g);
    const V bound = c.bound(i);
    if (s.per_coordinate && task.clips) {
      gamma = size > bound ? bound / size : one;
      power = noise_factor<T>(gamma, s.twice_noise_power);
    }
    if (task.clamps || task.needs[kAnchored]) load_up_to(e.x + j, n - j, x);
    if (task.clamps) {
      V y = x - drift * gamma * g;
      if (s.reference_precision != 0) y = y - c.anchor(i) * x;
      if (s.noisy) y = y + diffusion * power * z;
      inside = y >= low ? (y <= high ? inside : V{}) : V{};
    }
    store_up_to(e.inside + j, n - j, inside);
    const V along = inside * g, noisy = inside * z;
    if (task.needs[kAlong]) store_up_to(e.terms[kAlong] + j, n - j, gamma * along);
    if (task.needs[kNoisy]) store_up_to(e.terms[kNoisy] + j, n - j, power * noisy);
    if (task.needs[kAnchored]) store_up_to(e.terms[kAnchored] + j, n - j, inside * x);
    if (!s.per_coordinate) continue;
    V slope = V{} - drift * along;
    if (s.twice_noise_power)
      slope = slope + p * diffusion * inverse_power<T>(gamma, s.twice_noise_power) * noisy;
    slope = size > bound ? slope / size : V{};  // L / |g|
    if (task.needs[kBounded]) store_up_to(e.terms[kBounded] + j, n - j, slope);
    if (!e.dgrad) continue;
    const V direction = g < 0 ? V{} - one : one;
    store_up_to(e.dgrad + j, n - j, V{} - drift * gamma * inside - slope * gamma * direction);
  }
}

// dx from G, and per sample dgrad.
template <class T, class Shift, class Pull, class Kept>
void second_pass(const StepBackward& b, const Elements<T>& e, int64_t n, const Shift& shift,
                 const Pull& pull, const Kept& kept) {
  using V = typename Register<T>::V;
  for (int64_t j = 0, i = 0; j < n; j += Register<T>::lanes, ++i) {
    V g, inside;
    load_up_to(e.inside + j, n - j, inside);
    if (e.dgrad && !b.step.per_coordinate) {
      load_up_to(e.g + j, n - j, g);
      store_up_to(e.dgrad + j, n - j, V{} - shift(i) * inside - pull(i) * g);
    }
    if (b.step.reference_precision != 0) store_up_to(e.inside + j, n - j, kept(i) * inside);
  }
}

// Of a chain (or a register of them) and its sums: L gamma / |g|^2, and the derivatives in its
// coefficients.
template <class T>
struct Slopes {
  T pull, drift, diffusion, bound;
};

template <class T>
Slopes<T> slopes_of(const StepBackward& b, const Task& task, int64_t row, T norm,
                    const T (&sums)[kSums]) {
  const Step& s = b.step;
  const T drift = coefficient<T>(s.drift, row), bound = coefficient<T>(s.bound, row);
  const T along = task.needs[kAlong] ? sums[kAlong] : T{};
  const T noisy = task.needs[kNoisy] ? sums[kNoisy] : T{};
  const T anchored = task.needs[kAnchored] ? sums[kAnchored] : T{};
  const T rho = static_cast<T>(s.reference_precision);
  if (s.per_coordinate)
    return {T{}, -along - rho * anchored, noisy, task.needs[kBounded] ? sums[kBounded] : T{}};
  const bool clipped = norm > bound;
  const T gamma = clipped ? bound / norm : T(1);
  const T power = s.twice_noise_power == 0   ? T(1)
                  : s.twice_noise_power == 1 ? Register<T>::sqrt(gamma)
                                             : gamma;
  T slope{};
  if (clipped) {
    slope = -drift * along;
    if (s.twice_noise_power)
      slope += static_cast<T>(task.p) * coefficient<T>(s.diffusion, row) *
               (s.twice_noise_power == 2 ? T(1) : T(1) / Register<T>::sqrt(gamma)) * noisy;
    slope /= norm;
  }
  return {clipped ? slope * gamma / norm : T{}, -gamma * along - rho * anchored, power * noisy,
          slope};
}

template <class T>
void keep(const StepBackward& b, int64_t row, const Slopes<T>& slopes) {
  if (b.ddrift) static_cast<T*>(b.ddrift)[row] = slopes.drift;
  if (b.ddiffusion) static_cast<T*>(b.ddiffusion)[row] = slopes.diffusion;
  if (b.dbound) static_cast<T*>(b.dbound)[row] = slopes.bound;
}

template <class T>
struct Scratch {
  alignas(64) float noise[kBlock + kChunk];
  alignas(64) T terms[kSums][kBlock + kChunk];
  Tile<T> tile;  // of short rows alone, as the next two
  alignas(64) T sums[kSums][kTileRows + W], row[3][kTileRows + W];
  alignas(64) T element[3][kTile + kChunk];

  Elements<T> at(const StepBackward& b, int64_t first, const float* drawn) {
    const Step& s = b.step;
    Elements<T> e{static_cast<const T*>(s.x) + first,
                  static_cast<const T*>(s.grad) + first,
                  static_cast<const T*>(b.cotangent) + first,
                  drawn,
                  static_cast<T*>(b.dx) + first,
                  b.dgrad ? static_cast<T*>(b.dgrad) + first : nullptr,
                  {}};
    for (int k = 0; k < kSums; ++k) e.terms[k] = terms[k];
    return e;
  }
};

// ---- long rows --------------------------------------------------------------------------------

template <class T>
void long_row(const StepBackward& b, const Task& task, const Source& source, int64_t row,
              Scratch<T>& t) {
  using V = typename Register<T>::V;
  const Step& s = b.step;
  const bool sums_squares = task.clips && !s.per_coordinate;
  const Chain<T> chain =
      sums_squares ? summed_chain<T, T>(s, row) : chain_of_row<T>(s, row, T{}, T{});
  const OneChain<T> c(chain);
  double totals[kSums] = {};
  for (int64_t begin = 0; begin < s.cols; begin += kBlock) {
    const int64_t n = s.cols - begin < kBlock ? s.cols - begin : kBlock;
    for (int64_t j = 0; task.draws && j < n; j += kChunk) {
      F z[4];
      draw_row<Normals>((begin + j) / 4, source.first_chain + row, source, z);
      for (int i = 0; i < 4; ++i) store(t.noise + j + i * W, z[i]);
    }
    const Elements<T> e = t.at(b, row * s.cols + begin, t.noise);
    first_pass(b, task, e, n, c);
    for (int k = 0; k < kSums; ++k)
      if (task.needs[k])
        totals[k] += block_sum<T>(n, [p = t.terms[k]](int64_t j, int64_t left) {
          V v;
          load_up_to(p + j, left, v);
          return v;
        });
  }
  T sums[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = static_cast<T>(totals[k]);
  const Slopes<T> slopes = slopes_of(b, task, row, chain.norm, sums);
  keep(b, row, slopes);
  const V shift = Register<T>::broadcast(chain.drift), pull = Register<T>::broadcast(slopes.pull);
  const V kept = Register<T>::broadcast(1 - chain.anchor);
  second_pass(
      b, t.at(b, row * s.cols, nullptr), s.cols, [=](int64_t) { return shift; },
      [=](int64_t) { return pull; }, [=](int64_t) { return kept; });
}

// ---- short rows -------------------------------------------------------------------------------

template <class T>
void tile_rows(const StepBackward& b, const Task& task, const Source& source, int64_t base,
               int64_t rows, Scratch<T>& t) {
  using V = typename Register<T>::V;
  const Step& s = b.step;
  const int64_t n = rows * s.cols;
  if (task.draws) draw_tile<Normals>(t.noise, s.cols, rows, source.first_chain + base, source);
  prepare_tile<T, false>(s, base, rows, static_cast<const T*>(s.grad) + base * s.cols, t.tile);
  const ManyChains<T> many{t.tile.element[0], t.tile.element[1], t.tile.element[2],
                           t.tile.element[3]};
  const Elements<T> e = t.at(b, base * s.cols, t.noise);
  first_pass(b, task, e, n, many);
  for (int k = 0; k < kSums; ++k)
    if (task.needs[k]) sum_rows<Itself>(t.terms[k], s.cols, rows, t.tile.columns, t.sums[k]);
  for (int64_t r = 0; r < rows; ++r) {
    const T sums[kSums] = {t.sums[kAlong][r], t.sums[kNoisy][r], t.sums[kAnchored][r],
                           t.sums[kBounded][r]};
    const Slopes<T> slopes = slopes_of(b, task, base + r, t.tile.squares[r], sums);
    keep(b, base + r, slopes);
    t.row[0][r] = slopes.pull;
    t.row[1][r] = 1 - t.tile.row[2][r];
  }
  for (int k = 0; k < 2; ++k) spread(t.row[k], s.cols, rows, t.element[k]);
  const auto at = [](const T* p) {
    return [p](int64_t i) {
      V v;
      load(p + i * Register<T>::lanes, v);
      return v;
    };
  };
  second_pass(b, e, n, at(t.tile.element[0]), at(t.element[0]), at(t.element[1]));
}

template <class T>
void rows(const StepBackward& b, int64_t begin, int64_t end) {
  const Step& s = b.step;
  const Task task(b);
  const Source source(s.noise);
  Scratch<T> t;
  if (!is_short(s.cols)) {
    for (int64_t r = begin; r < end; ++r) long_row(b, task, source, r, t);
    return;
  }
  memset(t.tile.squares, 0, sizeof t.tile.squares);
  memset(t.tile.gammas, 0, sizeof t.tile.gammas);
  const int64_t height = langevin::tile_rows(s.cols);
  for (int64_t base = begin; base < end; base += height)
    tile_rows(b, task, source, base, end - base < height ? end - base : height, t);
}

}  // namespace

const StepBackwardKernels LANGEVIN_OF_ISA(_step_backward) = {{rows<float>, rows<double>}};

}  // namespace langevin
