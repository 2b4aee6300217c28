// Whole chains of the analytic energies for one instruction set: a block is two registers of
// chains, two streams of everything, and stays in registers where it has one or two columns.
#include "chain_cpu.h"

#include "energies.h"

namespace langevin {
namespace {

template <class V>
LANGEVIN_INLINE Pair<V> exp_of(const Pair<V>& x) {
  return {exp_of(x.a), exp_of(x.b)};
}
template <class V>
LANGEVIN_INLINE Pair<V> exp2_of(const Pair<V>& x) {
  return {exp2_of(x.a), exp2_of(x.b)};
}
template <class V>
LANGEVIN_INLINE Pair<V> tanh_of(const Pair<V>& x) {
  return {tanh_of(x.a), tanh_of(x.b)};
}

struct OneDouble {
  using V = double;
  using T = double;
};

template <class T, template <class> class Formula>
struct Analytic {
  using M = TwoRegisters<T>;
  using V = typename M::V;
  static constexpr int kFixed = 1;
  const Formula<M>& formula;

  int n() const { return 1; }
  template <int Cols>
  LANGEVIN_METHOD void gradient(const V* x, V* g, int64_t cols, V* size) const {
    *size = formula.template gradient<Cols>(x, g, cols);
  }
  void energies(const Chain& c, int64_t row, int64_t count, const V* x) const {
    const Formula<OneDouble> exact(c.numbers, c.components, c.cols);
    std::vector<T> states(count * c.cols);
    for (int64_t j = 0; j < c.cols; ++j) scatter<M>(states.data() + j, count, c.cols, 1, x + j);
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<double> state(&states[i * c.cols], &states[i * c.cols] + c.cols);
      static_cast<T*>(c.energy)[row + i] = static_cast<T>(exact.energy(state.data(), c.cols));
    }
  }
};

template <class T, template <class> class Formula, int Cols>
int64_t rows(const Chain& c, int64_t begin, int64_t end) {
  using M = TwoRegisters<T>;
  const std::vector<T> numbers(c.numbers, c.numbers + c.count);
  const Formula<M> formula(numbers.data(), c.components, c.cols);
  const Analytic<T, Formula> energy{formula};
  int64_t good = c.steps;
  for (int64_t row = begin; row < end; row += M::lanes) {
    typename M::V x[Cols ? Cols : kMostColumns], g[Cols ? Cols : kMostColumns];
    const int64_t count = std::min<int64_t>(M::lanes, end - row);
    good = std::min(good, Loop<Analytic<T, Formula>, Cols>::block(c, energy, row, count, x, g));
  }
  return good;
}

template <class T, template <class> class Formula>
int64_t any_columns(const Chain& c, int64_t begin, int64_t end) {
  if (c.cols == 1) return rows<T, Formula, 1>(c, begin, end);
  if (c.cols == 2) return rows<T, Formula, 2>(c, begin, end);
  return rows<T, Formula, 0>(c, begin, end);
}

template <class T>
int64_t chain_rows(const Chain& c, int64_t begin, int64_t end) {
  switch (c.kind) {
    case kDiagonalGaussian:
      return any_columns<T, DiagonalGaussian>(c, begin, end);
    case kFullGaussian:
      return any_columns<T, FullGaussian>(c, begin, end);
    case kRoundMixture:
      return any_columns<T, RoundMixture>(c, begin, end);
    case kDiagonalMixture:
      return any_columns<T, DiagonalMixture>(c, begin, end);
    case kFullMixture:
      return any_columns<T, FullMixture>(c, begin, end);
    case kRings:
      return rows<T, Rings, 2>(c, begin, end);
    case kTwoMoons:
      return rows<T, TwoMoons, 2>(c, begin, end);
    case kBanana:
      return rows<T, Banana, 2>(c, begin, end);
    case kFunnel:
      return rows<T, Funnel, 0>(c, begin, end);
    case kDoubleWell:
      return any_columns<T, DoubleWell>(c, begin, end);
    case kQuarticWell:
      return any_columns<T, QuarticWell>(c, begin, end);
    default:
      return any_columns<T, Logistic>(c, begin, end);
  }
}

}  // namespace

const ChainKernels LANGEVIN_OF_ISA(_chain) = {
    {chain_rows<float>, chain_rows<double>},
    {TwoRegisters<float>::lanes, TwoRegisters<double>::lanes},
};

}  // namespace langevin
