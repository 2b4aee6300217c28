// A network and its gradient in its input, for a block of chains: one chain to a lane.
//
// Everything in a block is laid out (features, chains), so a layer is a product of matrices with
// the chains along the registers. A tile of it, kTall outputs by up to kWide registers of chains,
// stays in registers over all inputs: of every input the registers are loaded once, and each
// output's weight once, from panels that hold the weights of kTall outputs side by side. The
// gradient goes back through panels of the transposed weights. An activation's derivative is kept
// from the way there, and multiplied on the way back.
//
// A sum runs over the inputs in their order, whatever tile it is in: what a chain gets does not
// depend on its lane, its block or how many there are. Products are fused into the sums where the
// instruction set can, so instruction sets differ in the last bits.
#pragma once

#include <new>

#include "elementary.h"
#include "lanes.h"
#include "mlp.h"

namespace langevin {
namespace {

// 24 sums, 4 registers of inputs and a weight of 32 registers; 12, 3 and 1 of 16; without fused
// products one more for the product.
#if LANGEVIN_LANES == 16
constexpr int kTall = 6, kWide = 4;
#elif LANGEVIN_LANES == 8
constexpr int kTall = 4, kWide = 3;
#else
constexpr int kTall = 4, kWide = 2;
#endif
constexpr int64_t kDeep = 128;  // inputs of a pass: 32 KB of them stay in the L1 cache

struct Fused {
  LANGEVIN_INLINE F multiply_add(F a, F b, F c) {
#if LANGEVIN_INTRINSICS && LANGEVIN_LANES == 16
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANGEVIN_INTRINSICS && LANGEVIN_LANES == 8
    return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
  }
};

constexpr int64_t kMostChains = kWide * W;

// Chains of the next block when so many are left, a multiple of W: no block is nearly empty.
LANGEVIN_INLINE int64_t block_of(int64_t left) {
  const int64_t registers = (left + W - 1) / W, blocks = (registers + kWide - 1) / kWide;
  return blocks ? (registers + blocks - 1) / blocks * W : 0;
}

class Floats {  // on cache lines of their own
 public:
  explicit Floats(int64_t n)
      : memory_(static_cast<float*>(::operator new(n * sizeof(float), kLine))) {}
  ~Floats() { ::operator delete(memory_, kLine); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* begin() const { return memory_; }

 private:
  static constexpr std::align_val_t kLine{64};
  float* memory_;
};

// ---- the weights ------------------------------------------------------------------------------

// Panels of kTall rows of a matrix (the last of what is left), each with its columns in order.
// Element (i, j) of the matrix is at a[i * across + j * along].
LANGEVIN_INLINE float* pack(const float* a, int64_t rows, int64_t columns, int64_t across,
                            int64_t along, float* out) {
  for (int64_t i = 0; i < rows; i += kTall) {
    const int64_t tall = rows - i < kTall ? rows - i : kTall;
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t k = 0; k < tall; ++k) *out++ = a[(i + k) * across + j * along];
  }
  return out;
}

struct PackedLayer {
  const float *forward, *backward, *bias;
  MlpLayer layer;
};

class PackedMlp {
 public:
  explicit PackedMlp(const Mlp& net)
      : weights_(size(net)),
        layers_(new PackedLayer[net.count]),
        count_(net.count),
        factor_(net.factor) {
    float* out = weights_.begin();
    for (int l = 0; l < count_; ++l) {
      const MlpLayer& a = net.layers[l];
      PackedLayer& p = layers_[l];
      p.layer = a;
      p.forward = out;
      out = pack(a.weight, a.out, a.in, a.in, 1, out);
      p.backward = out;
      out = pack(a.weight, a.in, a.out, 1, a.in, out);
      p.bias = out;
      for (int64_t i = 0; i < a.out; ++i) *out++ = a.bias ? a.bias[i] : 0;
    }
  }
  ~PackedMlp() { delete[] layers_; }
  PackedMlp(const PackedMlp&) = delete;
  PackedMlp& operator=(const PackedMlp&) = delete;

  int count() const { return count_; }
  float factor() const { return factor_; }
  int64_t in() const { return layers_[0].layer.in; }
  const PackedLayer& operator[](int l) const { return layers_[l]; }

 private:
  static int64_t size(const Mlp& net) {
    int64_t n = 0;
    for (int l = 0; l < net.count; ++l)
      n += 2 * net.layers[l].in * net.layers[l].out + net.layers[l].out;
    return n;
  }
  Floats weights_;
  PackedLayer* layers_;
  int count_;
  float factor_;
};

// ---- products ---------------------------------------------------------------------------------

// out (rows, N) = (packed a) x + start, times scale; over inputs [begin, end) of `depth`.
// N is R registers.
struct Product {
  const float* panels;
  int64_t rows, depth;
  const float* x;      // (depth, N)
  const float* bias;   // (rows,), or null for 0
  const float* scale;  // (rows, N), or null for 1; may be out
  float* partial;      // (rows, N): of passes before the last; may be out where scale is null
  float* out;
};

template <int M, int R>
LANGEVIN_INLINE void tile(const Product& p, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t N = R * W;
  F sum[M][R];
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r)
      if (begin)
        load(p.partial + (row + m) * N + r * W, sum[m][r]);
      else
        sum[m][r] = p.bias ? Lanes::constant(p.bias[row + m]) : F{};
  const float* w = p.panels + row * p.depth + begin * M;
  const float* x = p.x + begin * N;
  for (int64_t k = begin; k < end; ++k, w += M, x += N) {
    F in[R];
    for (int r = 0; r < R; ++r) load(x + r * W, in[r]);
    for (int m = 0; m < M; ++m) {
      const F weight = Lanes::constant(w[m]);
      for (int r = 0; r < R; ++r) sum[m][r] = Fused::multiply_add(weight, in[r], sum[m][r]);
    }
  }
  float* out = end < p.depth ? p.partial : p.out;
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) {
      const int64_t at = (row + m) * N + r * W;
      if (end == p.depth && p.scale) {
        F scale;
        load(p.scale + at, scale);
        sum[m][r] *= scale;
      }
      store(out + at, sum[m][r]);
    }
}

template <int M, int R>
void tile_of(int64_t tall, const Product& p, int64_t row, int64_t begin, int64_t end) {
  if (tall >= M) return tile<M, R>(p, row, begin, end);
  if constexpr (M > 1) tile_of<M - 1, R>(tall, p, row, begin, end);
}

// `done(row, rows)` follows each panel's last pass, while it is in cache.
template <int R, class Done>
LANGEVIN_INLINE void multiply(const Product& p, const Done& done) {
  for (int64_t begin = 0; begin < p.depth; begin += kDeep) {
    const int64_t end = p.depth - begin < kDeep ? p.depth : begin + kDeep;
    for (int64_t row = 0; row < p.rows; row += kTall) {
      const int64_t tall = p.rows - row < kTall ? p.rows - row : kTall;
      tile_of<kTall, R>(tall, p, row, begin, end);
      if (end == p.depth) done(row, tall);
    }
  }
}

// ---- activations ------------------------------------------------------------------------------

// z <- activation(z) and slope <- its derivative, of n numbers, n a multiple of W; as torch has
// them, also at 0 and of NaN.
template <class Function>
LANGEVIN_INLINE void each(float* z, float* slope, int64_t n, const Function& function) {
  for (int64_t j = 0; j < n; j += W) {
    F v, d;
    load(z + j, v);
    load(slope + j, d);
    function(v, d);
    store(z + j, v);
    store(slope + j, d);
  }
}

// e^x as 1 + e^x needs it, in fewer steps: 0 below 2^-126.5, infinite above 2^127.5.
LANGEVIN_INLINE F exp_roughly(F x) {
  I n;
  const F e = expm1_reduced<Fused>(Lanes::at_most(F{} + 89, Lanes::at_least(F{} - 88, x)), n);
  return (e + 1.0f) * power_of_two<F>(n);
}

LANGEVIN_INLINE void activate(const MlpLayer& a, float* z, float* slope, int64_t n) {
  const F one = F{} + 1.0f;
  const float inverse_beta = 1 / a.beta;
  switch (a.activation) {
    case kRelu:
      return each(z, slope, n, [=](F& v, F& d) __attribute__((always_inline)) {
        d = v <= 0.0f ? F{} : one;
        v = v <= 0.0f ? F{} : v;
      });
    case kLeaky:
      return each(z, slope, n, [=](F& v, F& d) __attribute__((always_inline)) {
        d = v > 0.0f ? one : F{} + a.slope;
        v *= d;
      });
    case kSilu:
      return each(z, slope, n, [=](F& v, F& d) __attribute__((always_inline)) {
        const F s = 1.0f / (1.0f + exp_roughly(-v)), y = v * s;
        d = Fused::multiply_add(y, 1.0f - s, s);
        v = y;
      });
    case kTanh:
      return each(z, slope, n, [=](F& v, F& d) __attribute__((always_inline)) {
        v = tanh_of<Fused>(v);
        d = 1.0f - v * v;
      });
    case kSoftplus:  // in two loops, whose steps overlap better: 0.6 of the time
      each(z, slope, n, [=](F& v, F& d) __attribute__((always_inline)) {
        const F t = v * a.beta;
        d = exp_roughly(t > 0.0f ? -t : t);
      });
      return each(z, slope, n, [=](F& v, F& d) __attribute__((always_inline)) {
        const F t = v * a.beta, e = d;
        const F log = Lanes::at_least(F{}, t) + log1p_of<Fused>(e);
        d = t > a.threshold ? one : (t > 0.0f ? one : e) / (1.0f + e);
        v = t > a.threshold ? v : log * inverse_beta;
      });
    default:
      return each(z, slope, n, [=](F&, F& d) __attribute__((always_inline)) { d = one; });
  }
}

// ---- a block ----------------------------------------------------------------------------------

// Of one thread: memory for blocks of so many chains at most, kMostChains at the most.
class MlpBlock {
 public:
  MlpBlock(const PackedMlp& net, int64_t most)
      : net_(net), widest_(widest(net)), memory_(size(net) * most) {}

  // U (N,) and its gradient g (in, N) at x (in, N), on cache lines of their own; N is a multiple
  // of W.
  void gradient(int64_t chains, const float* x, float* g, float* u) const {
    switch (chains / W) {
      case 1:
        return pass<1>(x, g, u);
      case 2:
        return pass<2>(x, g, u);
#if LANGEVIN_LANES >= 8
      case 3:
        return pass<3>(x, g, u);
#endif
#if LANGEVIN_LANES >= 16
      case 4:
        return pass<4>(x, g, u);
#endif
    }
  }

 private:
  template <int R>
  void pass(const float* x, float* g, float* u) const {
    constexpr int64_t N = R * W;
    float *even = memory_.begin(), *odd = even + widest_ * N, *slope = odd + widest_ * N;
    for (int l = 0; l < net_.count(); ++l) {
      const PackedLayer& p = net_[l];
      float* const out = l % 2 ? odd : even;
      multiply<R>({p.forward, p.layer.out, p.layer.in, x, p.bias, nullptr, out, out},
                  [&](int64_t row, int64_t rows) {
                    activate(p.layer, out + row * N, slope + row * N, rows * N);
                  });
      x = out;
      if (l + 1 < net_.count()) slope += p.layer.out * N;
    }
    for (int64_t j = 0; j < N; ++j) {
      u[j] = net_.factor() * x[j];
      slope[j] *= net_.factor();
    }
    for (int l = net_.count() - 1; l >= 0; --l) {
      const PackedLayer& p = net_[l];
      float* const before = l ? slope - p.layer.in * N : g;  // the derivatives there, then dU/dz
      multiply<R>(
          {p.backward, p.layer.in, p.layer.out, slope, nullptr, l ? before : nullptr, even, before},
          [](int64_t, int64_t) {});
      slope = before;
    }
  }

  static int64_t widest(const PackedMlp& net) {
    int64_t n = net.in();
    for (int l = 0; l < net.count(); ++l) n = n < net[l].layer.out ? net[l].layer.out : n;
    return n;
  }
  static int64_t size(const PackedMlp& net) {  // floats of a chain
    int64_t n = 2 * widest(net);
    for (int l = 0; l < net.count(); ++l) n += net[l].layer.out;
    return n;
  }

  const PackedMlp& net_;
  int64_t widest_;
  Floats memory_;
};

}  // namespace
}  // namespace langevin
