// The fused step for one instruction set; compiled once for each (see lanes.h).
//
// The limit is the noise: about 36 cycles for 16 normals with AVX-512, against 5 for the rest of
// the update. So the norm, the repair of non-finite values and the statistics are arranged to add
// next to nothing to that: a row is summed while it is brought into cache, finiteness is read off
// one sum per 4 registers, and rows too short for a register share it.
#include "clip_cpu.h"
#include "step.h"
#include "tiles_cpu.h"

namespace langevin {
namespace {

// ---- gamma -------------------------------------------------------------------------------------

template <class V>
LANGEVIN_INLINE V magnitude(V g) {
  return g < 0 ? -g : g;
}

// What the update needs of a chain, or of a register of chains; each value is rounded once to the
// state's type. With per_coordinate, gamma enters drift and diffusion later.
template <class V>
struct Chain {
  V drift, diffusion, anchor, bound, norm, gamma;  // anchor = drift * rho
};

template <class T, class V>
LANGEVIN_INLINE Chain<V> chain_of(const Step& s, V drift, V diffusion, V bound, V squares,
                                  V gammas) {
  const V anchor = drift * static_cast<T>(s.reference_precision);
  const V norm = Register<T>::sqrt(squares);
  if (s.per_coordinate)
    return {drift, diffusion, anchor, bound, norm, gammas / static_cast<T>(s.cols)};
  const V gamma = clip_factor<T>(norm, bound);
  return {drift * gamma, diffusion * noise_factor<T>(gamma, s.twice_noise_power),
          anchor,        bound,
          norm,          gamma};
}

template <class T>
LANGEVIN_INLINE Chain<T> chain_of_row(const Step& s, int64_t row, T squares, T gammas) {
  return chain_of<T>(s, coefficient<T>(s.drift, row), coefficient<T>(s.diffusion, row),
                     coefficient<T>(s.bound, row), squares, gammas);
}

template <class T>
LANGEVIN_INLINE void record(const Step& s, int64_t row, const Chain<T>& chain) {
  if (s.grad_norm) static_cast<T*>(s.grad_norm)[row] = chain.norm;
  if (s.gamma) static_cast<T*>(s.gamma)[row] = chain.gamma;
}

template <class T, class G>
LANGEVIN_INLINE T gamma_sum(const G* g, int64_t n, T bound) {
  using V = typename Register<T>::V;
  const V b = Register<T>::broadcast(bound);
  return block_sum<T>(n, [g, b](int64_t j, int64_t left) __attribute__((always_inline)) {
    V v;
    load_up_to(g + j, left, v);
    return clip_factor<T>(magnitude(v), b);
  });
}

LANGEVIN_INLINE bool averages_gamma(const Step& s) { return s.gamma && s.per_coordinate; }

template <class T, class G>
Chain<T> summed_chain(const Step& s, int64_t row) {
  const G* g = static_cast<const G*>(s.grad) + row * s.cols;
  const T squares =
      row_sum<T>(s.cols, [&](int64_t begin, int64_t n) { return square_sum<T>(g + begin, n); });
  const T bound = coefficient<T>(s.bound, row);
  const T gammas =
      averages_gamma(s)
          ? row_sum<T>(s.cols,
                       [&](int64_t begin, int64_t n) { return gamma_sum<T>(g + begin, n, bound); })
          : T{};
  return chain_of_row(s, row, squares, gammas);
}

// ---- the update -------------------------------------------------------------------------------

// The common case, compiled without the branches of the others.
LANGEVIN_INLINE bool is_plain(const Step& s) {
  return s.noisy && !s.per_coordinate && s.reference_precision == 0;
}

// Coefficients of one chain for every register, or of many chains element by element.
template <class T>
struct OneChain {
  using V = typename Register<T>::V;
  V drift_, diffusion_, anchor_, bound_;
  explicit OneChain(const Chain<T>& c)
      : drift_(Register<T>::broadcast(c.drift)),
        diffusion_(Register<T>::broadcast(c.diffusion)),
        anchor_(Register<T>::broadcast(c.anchor)),
        bound_(Register<T>::broadcast(c.bound)) {}
  V drift(int) const { return drift_; }
  V diffusion(int) const { return diffusion_; }
  V anchor(int) const { return anchor_; }
  V bound(int) const { return bound_; }
};

template <class T>
struct ManyChains {
  using V = typename Register<T>::V;
  const T *drift_, *diffusion_, *anchor_, *bound_;
  V at(const T* p, int i) const {
    V v;
    load(p + i * Register<T>::lanes, v);
    return v;
  }
  V drift(int i) const { return at(drift_, i); }
  V diffusion(int i) const { return at(diffusion_, i); }
  V anchor(int i) const { return at(anchor_, i); }
  V bound(int i) const { return at(bound_, i); }
};

// kChunk coordinates, or the first n of them. Returns whether all were finite before the clamp;
// those that were not become NaN, which the clamp lets through. A sum of finite values that
// overflows is looked at again, so a false alarm costs time and nothing else.
template <class T, bool Plain, bool Whole, class G, class Coefficients, class Noise>
LANGEVIN_INLINE bool update_chunk(const T* x, const G* g, T* out, int64_t n, const Coefficients& c,
                                  const Noise& noise, const Step& s) {
  using R = Register<T>;
  using V = typename R::V;
  constexpr int N = kChunk / R::lanes;
  const V low = R::broadcast((T)s.low), high = R::broadcast((T)s.high);
  const auto lanes_of = [&](int i) __attribute__((always_inline)) {  // valid ones of register i
    return Whole ? R::lanes : static_cast<int>(n) - i * R::lanes;
  };
  V y[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    const int valid = lanes_of(i);
    y[i] = V{};
    if (valid <= 0) continue;
    V state, gradient, drift = c.drift(i), diffusion = c.diffusion(i);
    load_up_to(x + i * R::lanes, valid, state);
    load_up_to(g + i * R::lanes, valid, gradient);
    if (!Plain && s.per_coordinate) {
      const V gamma = clip_factor<T>(magnitude(gradient), c.bound(i));
      drift *= gamma;
      diffusion *= noise_factor<T>(gamma, s.twice_noise_power);
    }
    V value = state - drift * gradient;
    if (!Plain && s.reference_precision != 0) value = value - c.anchor(i) * state;
    if (Plain || s.noisy) value = value + diffusion * noise(i, V{});
    y[i] = valid >= R::lanes ? value : R::first(valid) ? value : V{};
  }
  V sum = y[0];
#pragma GCC unroll 8
  for (int i = 1; i < N; ++i) sum += y[i];
  bool finite = true;
  if (__builtin_expect(R::any_not_finite(sum), 0))
    for (int i = 0; i < N; ++i)
      if (R::any_not_finite(y[i])) {
        finite = false;
        y[i] = (y[i] - y[i]) == 0 ? y[i] : R::broadcast((T)__builtin_nan(""));
      }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    const V value = R::at_most(high, R::at_least(low, y[i]));
    if (lanes_of(i) > 0) store_up_to(out + i * R::lanes, lanes_of(i), value);
  }
  return finite;
}

template <class T, bool Plain, class G, class Coefficients, class Noise>
LANGEVIN_INLINE bool update_up_to(const T* x, const G* g, T* out, int64_t n, const Coefficients& c,
                                  const Noise& noise, const Step& s) {
  return n >= kChunk ? update_chunk<T, Plain, true>(x, g, out, kChunk, c, noise, s)
                     : update_chunk<T, Plain, false>(x, g, out, n, c, noise, s);
}

template <class T, bool Plain, class G>
bool update_row(const Step& s, const Source& source, int64_t row, int64_t begin, int64_t end,
                const Chain<T>& chain) {
  const T* x = static_cast<const T*>(s.x) + row * s.cols;
  const G* g = static_cast<const G*>(s.grad) + row * s.cols;
  T* out = static_cast<T*>(s.out) + row * s.cols;
  const OneChain<T> c(chain);
  const uint64_t id = source.first_chain + row;
  bool finite = true;
  for (int64_t j = begin; j < end; j += kChunk) {
    // The next row's norm would wait for memory; its gradient arrives behind this row's noise.
    for (size_t byte = 0; byte < kChunk * sizeof(G); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(g + s.cols + j) + byte);
    NoiseInRegisters z{};
    if (Plain || s.noisy) draw_row<Normals>(j / 4, id, source, z.z);
    if constexpr (sizeof(T) == sizeof(float)) {
      finite &= update_up_to<T, Plain>(x + j, g + j, out + j, end - j, c, z, s);
    } else {
      alignas(64) float memory[kChunk];
      for (int i = 0; i < 4; ++i) store(memory + i * W, z.z[i]);
      finite &= update_up_to<T, Plain>(x + j, g + j, out + j, end - j, c, NoiseInMemory{memory}, s);
    }
  }
  return finite;
}

template <class T, class G>
bool update_row(const Step& s, const Source& source, int64_t row, int64_t begin, int64_t end,
                const Chain<T>& chain) {
  return is_plain(s) ? update_row<T, true, G>(s, source, row, begin, end, chain)
                     : update_row<T, false, G>(s, source, row, begin, end, chain);
}

// ---- short rows -------------------------------------------------------------------------------

template <class T>
struct Tile {
  alignas(64) float noise[kTile + kChunk];
  alignas(64) T columns[kTile + W];  // squares, or gammas, column by column
  alignas(64) T squares[kTileRows + W], gammas[kTileRows + W];
  alignas(64) T row[4][kTileRows + W];       // drift, diffusion, anchor, bound of every row
  alignas(64) T element[4][kTile + kChunk];  // and of every element
};

// The coefficients of every element of the tile, and the statistics of its rows.
template <class T, bool Plain, class G>
void prepare_tile(const Step& s, int64_t base, int64_t rows, const G* g, Tile<T>& t) {
  using V = typename Register<T>::V;
  constexpr int N = Register<T>::lanes;
  take(s.drift, base, rows, t.row[0]);
  take(s.diffusion, base, rows, t.row[1]);
  take(s.bound, base, rows, t.row[3]);
  if (needs_sums(s)) sum_rows<Square>(g, s.cols, rows, t.columns, t.squares);
  for (int64_t r = 0; averages_gamma(s) && r < rows; ++r)
    t.gammas[r] = gamma_sum<T>(g + r * s.cols, s.cols, t.row[3][r]);
  for (int64_t r = 0; r < rows; r += N) {
    V drift, diffusion, bound, squares, gammas;
    load(t.row[0] + r, drift);
    load(t.row[1] + r, diffusion);
    load(t.row[3] + r, bound);
    load(t.squares + r, squares);
    load(t.gammas + r, gammas);
    const Chain<V> c = chain_of<T>(s, drift, diffusion, bound, squares, gammas);
    store(t.row[0] + r, c.drift);
    store(t.row[1] + r, c.diffusion);
    store(t.row[2] + r, c.anchor);
    store(t.squares + r, c.norm);
    store(t.gammas + r, c.gamma);
  }
  if (s.grad_norm) memcpy(static_cast<T*>(s.grad_norm) + base, t.squares, rows * sizeof(T));
  if (s.gamma) memcpy(static_cast<T*>(s.gamma) + base, t.gammas, rows * sizeof(T));
  for (int i = 0; i < (Plain ? 2 : 4); ++i) spread(t.row[i], s.cols, rows, t.element[i]);
}

template <class T, bool Plain, class G>
void update_tiles(const Step& s, int64_t begin, int64_t end) {
  const int64_t cols = s.cols, height = tile_rows(cols);
  const Source source(s.noise);
  const bool varies = needs_sums(s) || s.drift.each || s.diffusion.each || s.bound.each;
  const OneChain<T> one(chain_of_row<T>(s, begin, 0, 0));
  Tile<T> t;
  memset(t.squares, 0, sizeof t.squares);
  memset(t.gammas, 0, sizeof t.gammas);

  for (int64_t base = begin; base < end; base += height) {
    const int64_t rows = end - base < height ? end - base : height, n = rows * cols;
    const T* x = static_cast<const T*>(s.x) + base * cols;
    const G* g = static_cast<const G*>(s.grad) + base * cols;
    T* out = static_cast<T*>(s.out) + base * cols;
    if (Plain || s.noisy)
      draw_tile<Normals>(t.noise, cols, rows, source.first_chain + base, source);
    if (varies) prepare_tile<T, Plain>(s, base, rows, g, t);
    bool finite = true;
    for (int64_t j = 0; j < n; j += kChunk) {
      const NoiseInMemory z{t.noise + j};
      const ManyChains<T> many{t.element[0] + j, t.element[1] + j, t.element[2] + j,
                               t.element[3] + j};
      finite &= varies ? update_up_to<T, Plain>(x + j, g + j, out + j, n - j, many, z, s)
                       : update_up_to<T, Plain>(x + j, g + j, out + j, n - j, one, z, s);
    }
    if (s.finite && !finite)  // whatever was not finite is NaN now
      for (int64_t i = 0; i < n; ++i)
        if (out[i] != out[i]) s.finite[base + i / cols] = false;
  }
}

// ---- what the threads call --------------------------------------------------------------------

template <class T, class G>
void rows(const Step& s, int64_t begin, int64_t end) {
  if (is_short(s.cols))
    return is_plain(s) ? update_tiles<T, true, G>(s, begin, end)
                       : update_tiles<T, false, G>(s, begin, end);
  const Source source(s.noise);
  for (int64_t r = begin; r < end; ++r) {
    const Chain<T> chain = needs_sums(s) ? summed_chain<T, G>(s, r) : chain_of_row<T>(s, r, 0, 0);
    record(s, r, chain);
    const bool finite = update_row<T, G>(s, source, r, 0, s.cols, chain);
    if (s.finite && !finite) s.finite[r] = false;
  }
}

template <class T, class G>
void sums(const Step& s, int64_t row, int64_t begin, int64_t end, void* squares, void* gammas) {
  const G* g = static_cast<const G*>(s.grad) + row * s.cols;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t left = s.cols - b * kBlock, n = left < kBlock ? left : kBlock;
    static_cast<T*>(squares)[b] = square_sum<T>(g + b * kBlock, n);
    if (averages_gamma(s))
      static_cast<T*>(gammas)[b] = gamma_sum<T>(g + b * kBlock, n, coefficient<T>(s.bound, row));
  }
}

template <class T>
RowSums combine(const Step& s, int64_t row, void* squares, void* gammas) {
  const int64_t blocks = blocks_of(s.cols);
  const T square = pairwise(static_cast<T*>(squares), blocks);
  const T gamma = averages_gamma(s) ? pairwise(static_cast<T*>(gammas), blocks) : T{};
  record(s, row, chain_of_row<T>(s, row, square, gamma));
  return {square, gamma};
}

template <class T, class G>
void blocks(const Step& s, int64_t row, int64_t begin, int64_t end, RowSums sums) {
  const Chain<T> chain = chain_of_row<T>(s, row, (T)sums.squares, (T)sums.gammas);
  const int64_t last = end * kBlock < s.cols ? end * kBlock : s.cols;
  const bool finite = update_row<T, G>(s, Source(s.noise), row, begin * kBlock, last, chain);
  if (s.finite && !finite) __atomic_store_n(s.finite + row, false, __ATOMIC_RELAXED);
}

}  // namespace

const StepKernels LANGEVIN_OF_ISA(_step) = {
    {rows<float, float>, rows<float, BFloat16>, rows<float, Float16>, rows<double, double>},
    {sums<float, float>, sums<float, BFloat16>, sums<float, Float16>, sums<double, double>},
    {combine<float>, combine<float>, combine<float>, combine<double>},
    {blocks<float, float>, blocks<float, BFloat16>, blocks<float, Float16>, blocks<double, double>},
};

}  // namespace langevin
