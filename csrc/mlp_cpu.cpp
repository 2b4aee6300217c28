// Networks at the states of many chains, for one instruction set; compiled once for each.
#include "mlp_cpu.h"

#include "chain_moves_cpu.h"

namespace langevin {
namespace {

void* packed(const Mlp& net) { return new PackedMlp(net); }

void drop(void* net) { delete static_cast<PackedMlp*>(net); }

void rows(const void* packed, const float* x, float* u, float* g, int64_t begin, int64_t end) {
  const PackedMlp& net = *static_cast<const PackedMlp*>(packed);
  const int64_t in = net.in(), most = block_of(end - begin);
  const MlpBlock block(net, most);
  const Floats memory((2 * in + 1) * most);
  float *const point = memory.begin(), *const slope = point + in * most,
               *const energy = slope + in * most;
  for (int64_t base = begin, chains; base < end; base += chains) {
    chains = block_of(end - base);
    const int64_t n = end - base < chains ? end - base : chains;
    for (int64_t k = 0; k < in; ++k)
      for (int64_t i = 0; i < chains; ++i)
        point[k * chains + i] = i < n ? x[(base + i) * in + k] : 0;
    block.gradient(chains, point, slope, energy);
    for (int64_t i = 0; i < n; ++i) {
      u[base + i] = energy[i];
      for (int64_t k = 0; k < in; ++k) g[(base + i) * in + k] = slope[k * chains + i];
    }
  }
}

// A block of whole chains: as many registers of them as the products of matrices take at a time.
struct Network {
  using M = Register<float>;
  static constexpr int kFixed = 0;
  const MlpBlock& block;
  int registers;
  float* u;

  int n() const { return registers; }
  void gradient(const F* x, F* g, int64_t, F* value) const {
    block.gradient(registers * W, reinterpret_cast<const float*>(x), reinterpret_cast<float*>(g),
                   u);
    for (int r = 0; r < registers; ++r) load(u + r * W, value[r]);
  }
  void value_and_gradient(const F* x, F* g, int64_t cols, F* value) const {
    gradient(x, g, cols, value);
  }
  void values(const F*, float* value) const {  // where it was last asked
    memcpy(value, u, registers * W * sizeof(float));
  }
};

template <template <class, int> class Move>
int64_t blocks(const PackedMlp& net, const Chain& c, int64_t begin, int64_t end) {
  constexpr int kArrays = Move<Network, 0>::kArrays;
  const int64_t most = block_of(end - begin), size = c.cols * most;
  const MlpBlock block(net, most);
  const Floats floats(kArrays * size + most);
  F* memory[kArrays];
  for (int i = 0; i < kArrays; ++i) memory[i] = reinterpret_cast<F*>(floats.begin() + i * size);
  int64_t good = c.steps;
  for (int64_t row = begin, chains; row < end; row += chains) {
    chains = block_of(end - row);
    const Network energy{block, static_cast<int>(chains / W), floats.begin() + kArrays * size};
    good = std::min(good, take_steps<Move, 0>(c, energy, row, std::min(chains, end - row), memory));
  }
  return good;
}

int64_t chain_rows(const void* packed, const Chain& c, int64_t begin, int64_t end) {
  const PackedMlp& net = *static_cast<const PackedMlp*>(packed);
  switch (c.rule) {
    case kMetropolis:
      return blocks<Metropolis>(net, c, begin, end);
    case kKinetic:
      return blocks<Splitting>(net, c, begin, end);
    case kEvaluation:
      return blocks<Evaluation>(net, c, begin, end);
    default:
      return blocks<Overdamped>(net, c, begin, end);
  }
}

}  // namespace

const MlpKernels LANGEVIN_OF_ISA(_mlp) = {packed, drop, rows, chain_rows};

}  // namespace langevin
