// The derivative of the step split among threads.
#include "step_backward.h"

#include "threads.h"

namespace langevin {

void run_step_backward(const StepBackwardKernels& k, StateTypes type, const StepBackward& b,
                       int threads) {
  threads = useful_threads(b.step.rows * b.step.cols, threads);
  parallel(b.step.rows, 1, threads,
           [&](int64_t begin, int64_t end) { k.rows[type](b, begin, end); });
}

}  // namespace langevin
