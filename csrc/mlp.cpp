// A network's value and gradient at many states, split among threads.
#include "mlp.h"

#include <memory>

#include "kernels.h"
#include "threads.h"

namespace langevin {

void run_mlp(const MlpKernels& k, const Mlp& net, const float* x, float* u, float* g, int64_t rows,
             int threads) {
  constexpr int64_t kGrain = 16;
  threads = useful_threads(rows * (1 + work_of(net)), threads);
  const std::unique_ptr<void, void (*)(void*)> packed(k.pack(net), k.drop);
  parallel(rows, kGrain, threads,
           [&](int64_t begin, int64_t end) { k.rows(packed.get(), x, u, g, begin, end); });
}

}  // namespace langevin
