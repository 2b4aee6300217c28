// Whole chains split among threads.
#include "chain.h"

#include <algorithm>
#include <atomic>

#include "threads.h"

namespace langevin {

int64_t run_chain(const ChainKernels& k, StateTypes type, const Chain& c, int threads) {
  std::atomic<int64_t> good{c.steps};
  threads = useful_threads(c.rows * c.cols * c.steps, threads);
  parallel(c.rows, k.grain[type], threads, [&](int64_t begin, int64_t end) {
    const int64_t mine = k.rows[type](c, begin, end);
    int64_t least = good.load();
    while (mine < least && !good.compare_exchange_weak(least, mine)) {
    }
  });
  return good;
}

}  // namespace langevin
