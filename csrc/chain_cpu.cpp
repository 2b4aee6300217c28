// Whole chains of the analytic energies for one instruction set: a block is two registers of
// chains, two streams of everything, and stays in registers where it has one or two columns.
#include "chain_moves_cpu.h"
#include "energies.h"

namespace langevin {
namespace {

template <class V>
LANGEVIN_INLINE Pair<V> exp2_of(const Pair<V>& x) {
  return {exp2_of(x.a), exp2_of(x.b)};
}
template <class V>
LANGEVIN_INLINE Pair<V> tanh_of(const Pair<V>& x) {
  return {tanh_of(x.a), tanh_of(x.b)};
}

// An energy whose formula is not known when a loop is compiled.
template <class T>
struct SomeEnergy {
  using M = TwoRegisters<T>;
  using V = typename M::V;
  static constexpr int kFixed = 1;
  int n() const { return 1; }
  virtual void gradient(const V* x, V* g, int64_t cols, V* u) const = 0;
  virtual void value_and_gradient(const V* x, V* g, int64_t cols, V* u) const = 0;
  virtual void values(const V* x, T* u) const = 0;
};

// U of a block of chains at x (cols, lanes), in double precision.
template <template <class> class Formula, class T>
void exact_values(const Chain& c, const T* x, T* u) {
  using Wide = TwoRegisters<double>;
  constexpr int kLanes = TwoRegisters<T>::lanes, kParts = kLanes / Wide::lanes;
  const Formula<Wide> formula(c.numbers, c.components, c.cols);
  std::vector<typename Wide::V> point(c.cols), slope(c.cols);
  for (int part = 0; part < kParts; ++part) {
    for (int64_t j = 0; j < c.cols; ++j) load(x + j * kLanes + part * Wide::lanes, point[j]);
    alignas(64) double lane[Wide::lanes];
    store(lane, formula.template gradient<0, true>(point.data(), slope.data(), c.cols));
    for (int i = 0; i < Wide::lanes; ++i)
      u[part * Wide::lanes + i] = static_cast<T>(c.factor * lane[i]);
  }
}

template <class T, template <class> class Formula, int Cols>
struct Analytic final : SomeEnergy<T> {
  using M = TwoRegisters<T>;
  using V = typename M::V;
  const Chain& c;
  const std::vector<T> numbers;
  const Formula<M> formula;

  explicit Analytic(const Chain& chain)
      : c(chain),
        numbers(c.numbers, c.numbers + c.count),
        formula(numbers.data(), c.components, c.cols) {}
  LANGEVIN_METHOD void gradient(const V* x, V* g, int64_t cols, V* u) const override {
    *u = formula.template gradient<Cols, false>(x, g, cols);
    if (c.factor != 1) scale(g, cols, u);
  }
  void value_and_gradient(const V* x, V* g, int64_t cols, V* u) const override {
    *u = formula.template gradient<Cols, true>(x, g, cols);
    if (c.factor != 1) scale(g, cols, u);
  }
  LANGEVIN_METHOD void values(const V* x, T* u) const override {
    T few[Cols ? Cols * M::lanes : 1];  // x itself may be in registers
    std::vector<T> many(Cols ? 0 : c.cols * M::lanes);
    T* const lanes = Cols ? few : many.data();
    for (int64_t j = 0; j < columns<Cols>(c.cols); ++j) store(lanes + j * M::lanes, x[j]);
    exact_values<Formula>(c, lanes, u);
  }

 private:
  LANGEVIN_METHOD void scale(V* g, int64_t cols, V* u) const {
    const T factor = static_cast<T>(c.factor);
    for (int64_t j = 0; j < columns<Cols>(cols); ++j) g[j] *= factor;
    *u *= factor;
  }
};

template <template <class, int> class Move, int Cols, class Energy>
int64_t blocks(const Chain& c, const Energy& energy, int64_t begin, int64_t end) {
  using M = typename Energy::M;
  constexpr int kArrays = Move<Energy, Cols>::kArrays;
  using V = typename M::V;
  V few[kArrays][Cols ? Cols : 1], *memory[kArrays];  // in registers
  std::vector<V> many(Cols ? 0 : kArrays * c.cols);   // a thread's stack may be small
  for (int i = 0; i < kArrays; ++i) memory[i] = Cols ? few[i] : many.data() + i * c.cols;
  int64_t good = c.steps;
  for (int64_t row = begin; row < end; row += M::lanes) {
    const int64_t count = std::min<int64_t>(M::lanes, end - row);
    good = std::min(good, take_steps<Move, Cols>(c, energy, row, count, memory));
  }
  return good;
}

// The rules that are slower than their formulas share loops.
template <class T, template <class> class Formula, int Cols>
int64_t rows(const Chain& c, int64_t begin, int64_t end) {
  constexpr int kShared = Cols == 2 ? 2 : 0;
  const Analytic<T, Formula, Cols> energy(c);
  const SomeEnergy<T>& some = energy;
  switch (c.rule) {
    case kMetropolis:
      return blocks<Metropolis, kShared>(c, some, begin, end);
    case kKinetic:
      return blocks<Splitting, kShared>(c, some, begin, end);
    case kEvaluation:
      return blocks<Evaluation, 0>(c, some, begin, end);
    default:
      return blocks<Overdamped, Cols>(c, energy, begin, end);
  }
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
