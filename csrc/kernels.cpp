// Chooses the kernels for this processor.
#include "kernels.h"

#include <cstring>
#include <vector>

#include "threads.h"

namespace langevin {
namespace {

bool always() { return true; }

#ifdef LANGEVIN_HAS_avx2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#endif

#ifdef LANGEVIN_HAS_avx512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

#define LANGEVIN_KERNELS(isa, supported)                                            \
  {#isa,          supported,    isa##_noise,      isa##_step,  isa##_step_backward, \
   isa##_kinetic, isa##_accept, isa##_elementary, isa##_chain, isa##_mlp}
const Kernels compiled[] = {
#ifdef LANGEVIN_HAS_avx512
    LANGEVIN_KERNELS(avx512, has_avx512),
#endif
#ifdef LANGEVIN_HAS_avx2
    LANGEVIN_KERNELS(avx2, has_avx2),
#endif
#ifdef LANGEVIN_HAS_sse2
    LANGEVIN_KERNELS(sse2, always),
#endif
    LANGEVIN_KERNELS(generic, always),
};
#undef LANGEVIN_KERNELS

const std::vector<const Kernels*>& all_kernels() {
  static const std::vector<const Kernels*> supported = [] {
    std::vector<const Kernels*> found;
    for (const Kernels& k : compiled)
      if (k.supported()) found.push_back(&k);
    return found;
  }();
  return supported;
}

}  // namespace

const Kernels* const* kernels_begin() { return all_kernels().data(); }
const Kernels* const* kernels_end() { return kernels_begin() + all_kernels().size(); }

const Kernels* kernels_named(const char* name) {
  for (const Kernels* k : all_kernels())
    if (!std::strcmp(k->name, name)) return k;
  return nullptr;
}

void run_normal(const Kernels& k, float* out, int64_t rows, int64_t cols, const Position& p,
                int threads) {
  parallel(rows, 1, useful_threads(rows * cols, threads),
           [&](int64_t begin, int64_t end) { k.noise.normal(out, cols, begin, end, p); });
}

void run_uniform(const Kernels& k, float* out, int64_t rows, int64_t cols, const Position& p,
                 int threads) {
  parallel(rows, 1, useful_threads(rows * cols, threads),
           [&](int64_t begin, int64_t end) { k.noise.uniform(out, cols, begin, end, p); });
}

}  // namespace langevin
