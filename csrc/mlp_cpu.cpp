// Networks at the states of many chains, for one instruction set; compiled once for each.
#include "mlp_cpu.h"

#include "kernels.h"

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

}  // namespace

const MlpKernels LANGEVIN_OF_ISA(_mlp) = {packed, drop, rows};

}  // namespace langevin
