// A pass of a splitting scheme for one instruction set; compiled once for each (see lanes.h).
//
// With noise its making is the limit, as in step_cpu.cpp, without it the memory's bandwidth: every
// element is read and written once, and the sums are made of what is in registers.
#include "clip_cpu.h"
#include "kinetic.h"
#include "tiles_cpu.h"

namespace langevin {
namespace {

// ---- coefficients -----------------------------------------------------------------------------

enum { kKick, kDrift, kKeep, kSpread, kSecondKick, kSecondDrift, kCoefficients };

// What there is to do; an operation whose coefficient is the number 0 is left out.
struct Work {
  const Coefficient* given[kCoefficients];
  bool does[kCoefficients];
  bool refreshes, noisy, moves_x, moves_v;
  bool remembers;  // the velocities after the noise, which are not those at the end
  explicit Work(const Kinetic& s)
      : given{&s.kick, &s.drift, &s.keep, &s.spread, &s.second_kick, &s.second_drift} {
    for (int k = 0; k < kCoefficients; ++k) does[k] = given[k]->each || given[k]->value != 0;
    refreshes = does[kSpread] || s.keep.each || s.keep.value != 1;
    noisy = refreshes && s.noisy;
    does[kKick] = does[kKick] && s.grad;
    does[kSecondKick] = does[kSecondKick] && s.grad;
    moves_x = does[kDrift] || does[kSecondDrift];
    moves_v = does[kKick] || refreshes || does[kSecondKick];
    remembers = s.energies && does[kSecondKick];
  }
};

// Coefficients of one chain for every register, or of many chains element by element.
template <class T>
struct OneChain {
  using V = typename Register<T>::V;
  V values[kCoefficients];
  OneChain(const Work& work, int64_t row) {
    for (int k = 0; k < kCoefficients; ++k)
      values[k] = Register<T>::broadcast(coefficient<T>(*work.given[k], row));
  }
  LANGEVIN_METHOD V operator()(int k, int) const { return values[k]; }
};

template <class T>
struct ManyChains {
  using V = typename Register<T>::V;
  const T* elements[kCoefficients];
  LANGEVIN_METHOD V operator()(int k, int i) const {
    V v;
    load(elements[k] + i * Register<T>::lanes, v);
    return v;
  }
};

// ---- sums -------------------------------------------------------------------------------------

template <class V, int N>
LANGEVIN_INLINE V total(const V (&v)[N]) {
  V sum = v[0];
#pragma GCC unroll 8
  for (int i = 1; i < N; ++i) sum += v[i];
  return sum;
}

// Whether something is not finite. A sum of finite values that overflows is looked at again, so a
// false alarm costs time and nothing else.
template <class T, class V, int N>
LANGEVIN_INLINE bool any_bad(const V (&x)[N], const V (&v)[N]) {
  using R = Register<T>;
  if (__builtin_expect(!R::any_not_finite(total(x) + total(v)), 1)) return false;
  bool bad = false;
  for (int i = 0; i < N; ++i) bad |= R::any_not_finite(x[i]) || R::any_not_finite(v[i]);
  return bad;
}

// What is seen of a pass while it is in registers.
template <class T>
struct Seen {
  using V = typename Register<T>::V;
  T* refreshed;  // the velocities after the noise; null when nobody asks
  const bool stats;
  bool bad = false;
  template <int N>
  LANGEVIN_METHOD void after_noise(int64_t j, const V (&v)[N]) {
    if (refreshed)
      for (int i = 0; i < N; ++i) store(refreshed + j + i * Register<T>::lanes, v[i]);
  }
  template <int N>
  LANGEVIN_METHOD void at_the_end(const V (&x)[N], const V (&v)[N]) {
    if (stats) bad |= any_bad<T>(x, v);
  }
};

template <class T>
void record(const Kinetic& s, int64_t row, const KineticSums<T>& sums) {
  if (s.energies) {
    s.energies[row] = sums.refreshed * 0.5;
    s.energies[s.rows + row] = sums.last * 0.5;
  }
  if (!s.finite) return;
  static_cast<T*>(s.grad_norm)[row] = Register<T>::sqrt(sums.squares);
  static_cast<T*>(s.gamma)[row] = 1;
  s.finite[row] = !sums.bad;
}

// ---- the pass ---------------------------------------------------------------------------------

// kChunk coordinates in registers, or the first n of them and zeros.
template <class T, bool Whole>
struct Chunk {
  using R = Register<T>;
  using V = typename R::V;
  static constexpr int N = kChunk / R::lanes;
  int64_t n;
  LANGEVIN_METHOD int valid(int i) const {  // lanes of register i
    return Whole ? R::lanes : static_cast<int>(n) - i * R::lanes;
  }
  LANGEVIN_METHOD void fetch(const T* from, V (&to)[N]) const {  // zeros where from is null
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      to[i] = V{};
      if (from && valid(i) > 0) load_up_to(from + i * R::lanes, valid(i), to[i]);
    }
  }
  LANGEVIN_METHOD void put(const V (&from)[N], T* to) const {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
      if (valid(i) > 0) store_up_to(to + i * R::lanes, valid(i), from[i]);
  }
  LANGEVIN_METHOD void clear_beyond(V (&v)[N]) const {
    for (int i = 0; i < N && !Whole; ++i) v[i] = R::first(valid(i)) ? v[i] : V{};
  }
};

template <class V, int N, class Coefficients>
LANGEVIN_INLINE void add(V (&to)[N], const Coefficients& c, int k, const V (&what)[N]) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) to[i] = to[i] + c(k, i) * what[i];
}

template <class V, int N, class Coefficients>
LANGEVIN_INLINE void subtract(V (&from)[N], const Coefficients& c, int k, const V (&what)[N]) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) from[i] = from[i] - c(k, i) * what[i];
}

// The coordinates from j on, which x, v and g point to.
template <class T, bool Whole, class Coefficients, class Noise>
LANGEVIN_INLINE void pass_chunk(T* x, T* v, const T* g, int64_t j, int64_t n, const Work& work,
                                const Coefficients& c, const Noise& noise, Seen<T>& seen) {
  using V = typename Register<T>::V;
  const Chunk<T, Whole> chunk{n};
  V position[chunk.N], velocity[chunk.N], slope[chunk.N];
  chunk.fetch(work.moves_x || seen.stats ? x : nullptr, position);
  chunk.fetch(v, velocity);
  chunk.fetch(g, slope);
  if (work.does[kKick]) subtract(velocity, c, kKick, slope);
  if (work.does[kDrift]) add(position, c, kDrift, velocity);
  if (work.refreshes)
#pragma GCC unroll 8
    for (int i = 0; i < chunk.N; ++i) {
      velocity[i] = work.does[kKeep] ? c(kKeep, i) * velocity[i] : V{};
      if (work.noisy) velocity[i] = velocity[i] + c(kSpread, i) * noise(i, V{});
    }
  seen.after_noise(j, velocity);
  if (work.does[kSecondKick]) subtract(velocity, c, kSecondKick, slope);
  if (work.does[kSecondDrift]) add(position, c, kSecondDrift, velocity);
  chunk.clear_beyond(velocity);  // which may have overflowed there
  chunk.clear_beyond(position);
  seen.at_the_end(position, velocity);
  if (work.moves_x) chunk.put(position, x);
  if (work.moves_v) chunk.put(velocity, v);
}

template <class T, class Coefficients, class Noise>
LANGEVIN_INLINE void pass_up_to(T* x, T* v, const T* g, int64_t j, int64_t n, const Work& work,
                                const Coefficients& c, const Noise& noise, Seen<T>& seen) {
  if (n >= kChunk)
    pass_chunk<T, true>(x + j, v + j, g ? g + j : g, j, kChunk, work, c, noise, seen);
  else
    pass_chunk<T, false>(x + j, v + j, g ? g + j : g, j, n, work, c, noise, seen);
}

// The n coordinates of a row from `begin` on, which lie in one block.
template <class T>
KineticSums<T> pass_block(const Kinetic& s, const Work& work, const Source& source,
                          const OneChain<T>& c, int64_t row, int64_t begin, int64_t n) {
  const int64_t at = row * s.cols + begin;
  T *x = static_cast<T*>(s.x) + at, *v = static_cast<T*>(s.v) + at;
  const T* g = s.grad ? static_cast<const T*>(s.grad) + at : nullptr;
  alignas(64) T refreshed[kBlock + kChunk];
  Seen<T> seen{work.remembers ? refreshed : nullptr, s.finite != nullptr};
  KineticSums<T> sums{};
  if (s.finite && g) sums.squares = square_sum<T>(g, n);  // first: it may be x or v
  for (int64_t j = 0; j < n; j += kChunk) {
    NoiseInRegisters z{};
    if (work.noisy) draw_row<Normals>((begin + j) / 4, source.first_chain + row, source, z.z);
    if constexpr (sizeof(T) == sizeof(float)) {
      pass_up_to(x, v, g, j, n - j, work, c, z, seen);
    } else {
      alignas(64) float memory[kChunk];
      for (int i = 0; i < 4; ++i) store(memory + i * W, z.z[i]);
      pass_up_to(x, v, g, j, n - j, work, c, NoiseInMemory{memory}, seen);
    }
  }
  sums.bad = seen.bad;
  if (s.energies) {
    sums.last = square_sum<double>(v, n);
    sums.refreshed = work.remembers ? square_sum<double>(refreshed, n) : sums.last;
  }
  return sums;
}

// ---- short rows -------------------------------------------------------------------------------

template <class T>
struct Tile {
  alignas(64) float noise[kTile + kChunk];
  alignas(64) T refreshed[kTile + kChunk];
  alignas(64) T columns[kTile], squares[kTileRows + W];
  alignas(64) double wide_columns[kTile], energies[kTileRows + W];
  alignas(64) T row[kTileRows + W];
  alignas(64) T element[kCoefficients][kTile + kChunk];
};

template <class T>
void sum_energies(const T* v, int64_t cols, int64_t rows, Tile<T>& t, double* energies) {
  sum_rows<Square>(v, cols, rows, t.wide_columns, t.energies);
  for (int64_t r = 0; r < rows; ++r) energies[r] = t.energies[r] * 0.5;
}

// The statistics of rows [base, base + rows) but for what is not finite.
template <class T>
void record_tile(const Kinetic& s, const T* g, int64_t base, int64_t rows, Tile<T>& t) {
  memset(t.squares, 0, rows * sizeof(T));
  if (g) sum_rows<Square>(g, s.cols, rows, t.columns, t.squares);
  for (int64_t r = 0; r < rows; ++r) {
    static_cast<T*>(s.grad_norm)[base + r] = Register<T>::sqrt(t.squares[r]);
    static_cast<T*>(s.gamma)[base + r] = 1;
    s.finite[base + r] = true;
  }
}

template <class T>
void pass_tiles(const Kinetic& s, int64_t begin, int64_t end) {
  const int64_t cols = s.cols, height = tile_rows(cols);
  const Work work(s);
  const Source source(s.noise);
  const OneChain<T> one(work, begin);
  bool varies = false;
  Tile<T> t;
  for (const Coefficient* c : work.given) varies |= c->each != nullptr;
  for (int k = 0; varies && k < kCoefficients; ++k)
    for (T& element : t.element[k]) element = static_cast<T>(work.given[k]->value);

  for (int64_t base = begin; base < end; base += height) {
    const int64_t rows = end - base < height ? end - base : height, n = rows * cols;
    T *x = static_cast<T*>(s.x) + base * cols, *v = static_cast<T*>(s.v) + base * cols;
    const T* g = s.grad ? static_cast<const T*>(s.grad) + base * cols : nullptr;
    if (work.noisy) draw_tile<Normals>(t.noise, cols, rows, source.first_chain + base, source);
    for (int k = 0; k < kCoefficients; ++k)
      if (work.given[k]->each) {
        take(*work.given[k], base, rows, t.row);
        spread(t.row, cols, rows, t.element[k]);
      }
    if (s.finite) record_tile(s, g, base, rows, t);
    Seen<T> seen{work.remembers ? t.refreshed : nullptr, s.finite != nullptr};
    for (int64_t j = 0; j < n; j += kChunk) {
      const NoiseInMemory z{t.noise + j};
      ManyChains<T> many;
      for (int k = 0; k < kCoefficients; ++k) many.elements[k] = t.element[k] + j;
      if (varies)
        pass_up_to(x, v, g, j, n - j, work, many, z, seen);
      else
        pass_up_to(x, v, g, j, n - j, work, one, z, seen);
    }
    if (s.energies) {
      double *refreshed = s.energies + base, *last = refreshed + s.rows;
      sum_energies(v, cols, rows, t, last);
      if (work.remembers)
        sum_energies(t.refreshed, cols, rows, t, refreshed);
      else
        memcpy(refreshed, last, rows * sizeof(double));
    }
    if (seen.bad)
      for (int64_t i = 0; i < n; ++i)
        if ((x[i] - x[i]) + (v[i] - v[i]) != 0) s.finite[base + i / cols] = false;
  }
}

// ---- what the threads call --------------------------------------------------------------------

template <class T>
void rows(const Kinetic& s, int64_t begin, int64_t end) {
  if (is_short(s.cols)) return pass_tiles<T>(s, begin, end);
  const Work work(s);
  const Source source(s.noise);
  for (int64_t r = begin; r < end; ++r) {
    const OneChain<T> c(work, r);
    record(s, r, row_sum<KineticSums<T>>(s.cols, [&](int64_t at, int64_t n) {
             return pass_block(s, work, source, c, r, at, n);
           }));
  }
}

template <class T>
void blocks(const Kinetic& s, int64_t row, int64_t begin, int64_t end, void* sums) {
  const Work work(s);
  const Source source(s.noise);
  const OneChain<T> c(work, row);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t left = s.cols - b * kBlock;
    static_cast<KineticSums<T>*>(sums)[b - begin] =
        pass_block(s, work, source, c, row, b * kBlock, left < kBlock ? left : kBlock);
  }
}

template <class T>
void combine(const Kinetic& s, int64_t row, void* sums) {
  record(s, row, pairwise(static_cast<KineticSums<T>*>(sums), blocks_of(s.cols)));
}

}  // namespace

const KineticKernels LANGEVIN_OF_ISA(_kinetic) = {
    {rows<float>, rows<double>},
    {blocks<float>, blocks<double>},
    {combine<float>, combine<double>},
};

}  // namespace langevin
