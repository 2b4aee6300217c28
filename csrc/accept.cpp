// Accept-or-reject split among threads.
#include "accept.h"

#include "threads.h"

namespace langevin {

void run_accept(const AcceptKernels& k, StateTypes type, const Accept& s, int threads) {
  constexpr int64_t kUniform = 4;  // elements that a row's uniform number costs as much as
  threads = useful_threads(s.rows * (s.cols + kUniform), threads);
  parallel(s.rows, 1, threads, [&](int64_t begin, int64_t end) { k.rows[type](s, begin, end); });
}

}  // namespace langevin
