// The step split among threads.
#include "step.h"

#include <cstring>
#include <vector>

#include "threads.h"

namespace langevin {
namespace {

template <class T>
void run_long_rows(const StepKernels& k, DTypes types, const Step& s, int threads) {
  const int64_t blocks = blocks_of(s.cols);
  std::vector<RowSums> sums(s.rows, RowSums{0, 0});
  if (needs_sums(s)) {
    std::vector<T> squares(s.rows * blocks), gammas(s.rows * blocks);
    parallel_blocks(s.rows, blocks, threads, [&](int64_t row, int64_t first, int64_t last) {
      k.sums[types](s, row, first, last, &squares[row * blocks], &gammas[row * blocks]);
    });
    for (int64_t row = 0; row < s.rows; ++row)
      sums[row] = k.combine[types](s, row, &squares[row * blocks], &gammas[row * blocks]);
  }
  parallel_blocks(s.rows, blocks, threads, [&](int64_t row, int64_t first, int64_t last) {
    k.blocks[types](s, row, first, last, sums[row]);
  });
}

}  // namespace

void run_step(const StepKernels& k, DTypes types, const Step& s, int threads) {
  if (s.rows == 0) return;
  if (s.finite) std::memset(s.finite, 1, s.rows);
  threads = useful_threads(s.rows * s.cols, threads);
  if (shares_rows(s.rows, s.cols, threads))
    return types == kDouble ? run_long_rows<double>(k, types, s, threads)
                            : run_long_rows<float>(k, types, s, threads);
  parallel(s.rows, 1, threads, [&](int64_t begin, int64_t end) { k.rows[types](s, begin, end); });
}

}  // namespace langevin
