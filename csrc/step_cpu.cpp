// The fused step for one instruction set; compiled once for each (see lanes.h).
//
// The limit is the noise: about 36 cycles for 16 normals with AVX-512, against 5 for the rest of
// the update. So the norm, the repair of non-finite values and the statistics are arranged to add
// next to nothing to that: a row is summed while it is brought into cache, finiteness is read off
// one sum per 4 registers, and rows too short for a register share it.
#include "step_cpu.h"

namespace langevin {
namespace {

// ---- the update -------------------------------------------------------------------------------

// The common case, compiled without the branches of the others.
LANGEVIN_INLINE bool is_plain(const Step& s) {
  return s.noisy && !s.per_coordinate && s.reference_precision == 0;
}

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
