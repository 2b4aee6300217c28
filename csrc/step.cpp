// Chooses the kernels for this processor and splits the work among threads. Nothing here changes
// a bit of the result: noise is addressed by (chain, coordinate), sums have a fixed tree.
#include "step.h"

#include <algorithm>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace langevin {
namespace {

std::vector<const StepKernels*> supported_kernels() {
  std::vector<const StepKernels*> found;
  for (const StepKernels* k : {
#if defined(__x86_64__)
           &avx512_kernels, &avx2_kernels, &sse2_kernels,
#endif
           &generic_kernels})
    if (k->supported()) found.push_back(k);
  return found;
}

const std::vector<const StepKernels*>& all_kernels() {
  static const std::vector<const StepKernels*> kernels = supported_kernels();
  return kernels;
}

// body(begin, end) over [0, n) in equal shares, cut at multiples of `grain`.
template <class Body>
void parallel(int64_t n, int64_t grain, int threads, const Body& body) {
  const int64_t grains = (n + grain - 1) / grain;
  threads = static_cast<int>(std::min<int64_t>(threads, grains));
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t t = omp_get_thread_num(), of = omp_get_num_threads();
      const int64_t begin = grains * t / of * grain, end = grains * (t + 1) / of * grain;
      if (begin < std::min(end, n)) body(begin, std::min(end, n));
    }
    return;
  }
#endif
  if (n > 0) body(0, n);
}

template <class T>
void run_long_rows(const StepKernels& k, DTypes types, const Step& s, int threads) {
  const int64_t blocks = (s.cols + kBlock - 1) / kBlock;
  std::vector<RowSums> sums(s.rows, RowSums{0, 0});
  std::vector<T> squares, gammas;
  if (needs_sums(s)) {
    squares.resize(s.rows * blocks);
    gammas.resize(s.rows * blocks);
  }
  const auto each_piece = [&](const auto& work) {
    parallel(s.rows * blocks, 1, threads, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t row = begin / blocks, first = begin % blocks;
        const int64_t last = std::min(blocks, first + end - begin);
        work(row, first, last);
        begin += last - first;
      }
    });
  };
  if (needs_sums(s)) {
    each_piece([&](int64_t row, int64_t first, int64_t last) {
      k.sums[types](s, row, first, last, &squares[row * blocks], &gammas[row * blocks]);
    });
    for (int64_t row = 0; row < s.rows; ++row)
      sums[row] = k.combine[types](s, row, &squares[row * blocks], &gammas[row * blocks]);
  }
  each_piece([&](int64_t row, int64_t first, int64_t last) {
    k.blocks[types](s, row, first, last, sums[row]);
  });
}

int useful_threads(int64_t elements, int threads) {
  return elements < kSerial ? 1 : std::max(threads, 1);
}

}  // namespace

const StepKernels* const* kernels_begin() { return all_kernels().data(); }
const StepKernels* const* kernels_end() { return kernels_begin() + all_kernels().size(); }

const StepKernels* kernels_named(const char* name) {
  for (const StepKernels* k : all_kernels())
    if (!std::strcmp(k->name, name)) return k;
  return nullptr;
}

void run_step(const StepKernels& k, DTypes types, const Step& s, int threads) {
  if (s.rows == 0) return;
  if (s.finite) std::memset(s.finite, 1, s.rows);
  threads = useful_threads(s.rows * s.cols, threads);
  // A row is one thread's, and stays in its cache between norm and update, unless there are too
  // few rows to share.
  if (threads > 1 && s.cols > kBlock && s.rows < 8 * threads)
    return types == kDouble ? run_long_rows<double>(k, types, s, threads)
                            : run_long_rows<float>(k, types, s, threads);
  parallel(s.rows, 1, threads, [&](int64_t begin, int64_t end) { k.rows[types](s, begin, end); });
}

void run_normal(const StepKernels& k, float* out, int64_t rows, int64_t cols, const Position& p,
                int threads) {
  parallel(rows, 1, useful_threads(rows * cols, threads),
           [&](int64_t begin, int64_t end) { k.normal(out, cols, begin, end, p); });
}

void run_uniform(const StepKernels& k, float* out, int64_t rows, int64_t cols, const Position& p,
                 int threads) {
  parallel(rows, 1, useful_threads(rows * cols, threads),
           [&](int64_t begin, int64_t end) { k.uniform(out, cols, begin, end, p); });
}

}  // namespace langevin
