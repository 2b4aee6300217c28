// Work split among threads. Nothing here changes a bit of a result: noise is addressed by (chain,
// coordinate), sums have a fixed tree.
#pragma once

#include <algorithm>
#include <exception>

#include "kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace langevin {

// body(begin, end) over [0, n) in equal shares, cut at multiples of `grain`.
template <class Body>
void parallel(int64_t n, int64_t grain, int threads, const Body& body) {
  const int64_t grains = (n + grain - 1) / grain;
  threads = static_cast<int>(std::min<int64_t>(threads, grains));
#ifdef _OPENMP
  if (threads > 1) {
    std::exception_ptr error;  // one of a thread's, as of memory: none may leave the region
#pragma omp parallel num_threads(threads)
    {
      const int64_t t = omp_get_thread_num(), of = omp_get_num_threads();
      const int64_t begin = grains * t / of * grain, end = grains * (t + 1) / of * grain;
      try {
        if (begin < std::min(end, n)) body(begin, std::min(end, n));
      } catch (...) {
#pragma omp critical(langevin_error)
        error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  if (n > 0) body(0, n);
}

// work(row, first, last): pieces of rows of so many blocks, every thread its share of all blocks.
template <class Work>
void parallel_blocks(int64_t rows, int64_t blocks, int threads, const Work& work) {
  parallel(rows * blocks, 1, threads, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / blocks, first = begin % blocks;
      const int64_t last = std::min(blocks, first + end - begin);
      work(row, first, last);
      begin += last - first;
    }
  });
}

inline int useful_threads(int64_t elements, int threads) {
  return elements < kSerial ? 1 : std::max(threads, 1);
}

// A row is one thread's, and stays in its cache from sum to update, unless there are too few rows
// to share.
inline bool shares_rows(int64_t rows, int64_t cols, int threads) {
  return threads > 1 && cols > kBlock && rows < 8 * threads;
}

}  // namespace langevin
