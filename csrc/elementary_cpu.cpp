// The elementary functions over arrays, for one instruction set; compiled once for each.
#include "elementary.h"
#include "kernels.h"
#include "lanes.h"

namespace langevin {
namespace {

struct Exp {
  template <class V>
  LANGEVIN_INLINE V of(V x) {
    return exp_of(x);
  }
};
struct Tanh {
  template <class V>
  LANGEVIN_INLINE V of(V x) {
    return tanh_of(x);
  }
};
struct Log {
  template <class V>
  LANGEVIN_INLINE V of(V x) {
    return log_of(x);
  }
};
struct Softplus {
  template <class V>
  LANGEVIN_INLINE V of(V x) {
    return softplus_of(x);
  }
};

template <class Function, class T>
void map(const T* x, T* out, int64_t n) {
  for (int64_t j = 0; j < n; j += Register<T>::lanes) {
    typename Register<T>::V v;
    load_up_to(x + j, n - j, v);
    store_up_to(out + j, n - j, Function::of(v));
  }
}

}  // namespace

const ElementaryKernels LANGEVIN_OF_ISA(_elementary) = {
    map<Exp, float>,  map<Tanh, float>,  map<Log, float>, map<Softplus, float>,
    map<Exp, double>, map<Tanh, double>, map<Log, double>};

}  // namespace langevin
