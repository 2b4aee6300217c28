// A kinetic pass split among threads.
#include "kinetic.h"

#include <vector>

#include "threads.h"

namespace langevin {
namespace {

template <class T>
void run_long_rows(const KineticKernels& k, StateTypes type, const Kinetic& s, int threads) {
  const int64_t blocks = blocks_of(s.cols);
  std::vector<KineticSums<T>> sums(s.rows * blocks);
  parallel_blocks(s.rows, blocks, threads, [&](int64_t row, int64_t first, int64_t last) {
    k.blocks[type](s, row, first, last, &sums[row * blocks + first]);
  });
  for (int64_t row = 0; row < s.rows; ++row) k.combine[type](s, row, &sums[row * blocks]);
}

}  // namespace

void run_kinetic(const KineticKernels& k, StateTypes type, const Kinetic& s, int threads) {
  const int64_t elements = s.rows * s.cols;
  threads = useful_threads(s.noisy ? elements : elements / 4, threads);  // a quarter of the time
  if (shares_rows(s.rows, s.cols, threads))
    return type == kDoubleState ? run_long_rows<double>(k, type, s, threads)
                                : run_long_rows<float>(k, type, s, threads);
  parallel(s.rows, 1, threads, [&](int64_t begin, int64_t end) { k.rows[type](s, begin, end); });
}

}  // namespace langevin
