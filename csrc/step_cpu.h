// What a step and its derivative need of chains before they come to coordinates: gamma, and the
// coefficients that it goes into; of one chain, or of a tile of short rows.
#pragma once

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

}  // namespace
}  // namespace langevin
