// Whole chains split among threads.
#include "chain.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "threads.h"

namespace langevin {

namespace {

// The least of what the pieces of [0, rows) say.
template <class Rows>
int64_t least(int64_t all, int64_t rows, int64_t grain, int threads, const Rows& piece) {
  std::atomic<int64_t> good{all};
  parallel(rows, grain, threads, [&](int64_t begin, int64_t end) {
    const int64_t mine = piece(begin, end);
    int64_t least = good.load();
    while (mine < least && !good.compare_exchange_weak(least, mine)) {
    }
  });
  return good;
}

}  // namespace

int64_t run_chain(const ChainKernels& k, StateTypes type, const Chain& c, int threads) {
  threads = useful_threads(c.rows * c.cols * c.steps, threads);
  return least(c.steps, c.rows, k.grain[type], threads,
               [&](int64_t begin, int64_t end) { return k.rows[type](c, begin, end); });
}

int64_t run_chain(const MlpKernels& k, const Mlp& net, const Chain& c, int threads) {
  constexpr int64_t kGrain = 16;
  threads = useful_threads(c.rows * c.steps * (c.cols + work_of(net)), threads);
  const std::unique_ptr<void, void (*)(void*)> packed(k.pack(net), k.drop);
  return least(c.steps, c.rows, kGrain, threads,
               [&](int64_t begin, int64_t end) { return k.chain(packed.get(), c, begin, end); });
}

}  // namespace langevin
