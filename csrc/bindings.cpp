// langevin_ext._C: data pointers, sizes and scalars in, from langevin_ext/backends/native.py, which
// is given what has been checked. Only plain_step takes tensors, and looks at them itself.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "accept.h"
#include "chain.h"
#include "kinetic.h"
#include "mlp.h"
#include "philox.h"
#include "plain_step.h"
#include "step.h"
#include "step_backward.h"
#include "tally.h"

namespace py = pybind11;
using namespace langevin;

// From Python a coefficient is a float, or the address of (rows,) values.
template <>
struct py::detail::type_caster<Coefficient> {
  PYBIND11_TYPE_CASTER(Coefficient, const_name("float | int"));
  bool load(handle source, bool) {
    value = {0, nullptr};
    if (PyLong_Check(source.ptr()))
      value.each = PyLong_AsVoidPtr(source.ptr());
    else
      value.value = PyFloat_AsDouble(source.ptr());
    return !PyErr_Occurred() || (PyErr_Clear(), false);
  }
};

namespace {

const Kernels* current = *kernels_begin();

void use_isa(const std::string& name) {
  const Kernels* k = kernels_named(name.c_str());
  if (!k) throw std::invalid_argument("no kernels for '" + name + "' in this build and processor");
  current = k;
}

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

// Memory that a kernel reads or writes; none where the address is null.
struct Memory {
  const void* begin;
  int64_t bytes;
  bool meets(const Memory& other) const {
    const auto *a = static_cast<const char*>(begin), *b = static_cast<const char*>(other.begin);
    return a && b && a < b + other.bytes && b < a + bytes;
  }
};

template <int R, int N>
bool apart(const Memory (&read)[R], const Memory (&written)[N]) {
  for (const Memory& r : read)
    for (const Memory& w : written)
      if (r.meets(w)) return false;
  return true;
}

// The kernels return false, and have done nothing, if something that they read shares memory with
// something that they write. But a gradient may be what is stepped: an element is read before it is
// written.

bool step(int types, uintptr_t x, uintptr_t grad, uintptr_t out, int64_t rows, int64_t cols,
          Coefficient drift, Coefficient diffusion, Coefficient bound, double reference_precision,
          double low, double high, int twice_noise_power, bool per_coordinate, bool noisy,
          uint64_t seed, uint64_t at, uint32_t stream, uint64_t first_chain, uintptr_t grad_norm,
          uintptr_t gamma, uintptr_t finite, int threads) {
  const Step s{pointer(x),
               pointer(grad),
               pointer(out),
               rows,
               cols,
               drift,
               diffusion,
               bound,
               reference_precision,
               low,
               high,
               twice_noise_power,
               per_coordinate,
               noisy,
               {seed, at, stream, first_chain},
               pointer(grad_norm),
               pointer(gamma),
               static_cast<bool*>(pointer(finite))};
  const bool halves = types == kFloatBFloat16 || types == kFloatFloat16;
  const int64_t size = types == kDouble ? sizeof(double) : sizeof(float), each = rows * size;
  const Memory written[] = {
      {s.out, each * cols}, {s.grad_norm, each}, {s.gamma, each}, {s.finite, rows}};
  const Memory read[] = {{grad == out && !halves ? nullptr : s.grad, each * cols / (halves + 1)},
                         {s.drift.each, each},
                         {s.diffusion.each, each},
                         {s.bound.each, each}};
  if (!apart(read, written)) return false;
  const Kernels& k = *current;
  py::gil_scoped_release release;
  run_step(k.step, static_cast<DTypes>(types), s, threads);
  return true;
}

// Everything in the state's type; what is written is the caller's own and apart.
void step_backward(bool wide, uintptr_t cotangent, uintptr_t x, uintptr_t grad, int64_t rows,
                   int64_t cols, Coefficient drift, Coefficient diffusion, Coefficient bound,
                   double reference_precision, double low, double high, int twice_noise_power,
                   bool per_coordinate, bool noisy, uint64_t seed, uint64_t at, uint32_t stream,
                   uint64_t first_chain, uintptr_t dx, uintptr_t dgrad, uintptr_t ddrift,
                   uintptr_t ddiffusion, uintptr_t dbound, int threads) {
  StepBackward b{};
  b.step = {pointer(x),
            pointer(grad),
            nullptr,
            rows,
            cols,
            drift,
            diffusion,
            bound,
            reference_precision,
            low,
            high,
            twice_noise_power,
            per_coordinate,
            noisy,
            {seed, at, stream, first_chain},
            nullptr,
            nullptr,
            nullptr};
  b.cotangent = pointer(cotangent);
  b.dx = pointer(dx);
  b.dgrad = pointer(dgrad);
  b.ddrift = pointer(ddrift);
  b.ddiffusion = pointer(ddiffusion);
  b.dbound = pointer(dbound);
  const Kernels& k = *current;
  py::gil_scoped_release release;
  run_step_backward(k.step_backward, wide ? kDoubleState : kFloatState, b, threads);
}

bool kinetic(bool wide, uintptr_t x, uintptr_t v, uintptr_t grad, int64_t rows, int64_t cols,
             Coefficient kick, Coefficient drift, Coefficient keep, Coefficient spread,
             Coefficient second_kick, Coefficient second_drift, bool noisy, uint64_t seed,
             uint64_t at, uint32_t stream, uint64_t first_chain, uintptr_t energies,
             uintptr_t grad_norm, uintptr_t gamma, uintptr_t finite, int threads) {
  const Kinetic s{pointer(x),
                  pointer(v),
                  pointer(grad),
                  rows,
                  cols,
                  kick,
                  drift,
                  keep,
                  spread,
                  second_kick,
                  second_drift,
                  noisy,
                  {seed, at, stream, first_chain},
                  static_cast<double*>(pointer(energies)),
                  pointer(grad_norm),
                  pointer(gamma),
                  static_cast<bool*>(pointer(finite))};
  const int64_t size = wide ? sizeof(double) : sizeof(float), each = rows * size;
  const Memory written[] = {
      {s.x, each * cols},  {s.v, each * cols}, {s.energies, 2 * rows * int64_t{sizeof(double)}},
      {s.grad_norm, each}, {s.gamma, each},    {s.finite, rows}};
  const Memory read[] = {{grad == x || grad == v ? nullptr : s.grad, each * cols},
                         {s.kick.each, each},
                         {s.drift.each, each},
                         {s.keep.each, each},
                         {s.spread.each, each},
                         {s.second_kick.each, each},
                         {s.second_drift.each, each}};
  if (!apart(read, written)) return false;
  const Kernels& k = *current;
  py::gil_scoped_release release;
  run_kinetic(k.kinetic, wide ? kDoubleState : kFloatState, s, threads);
  return true;
}

bool accept(bool wide, uintptr_t x, uintptr_t grad, uintptr_t energy, uintptr_t y, uintptr_t grad_y,
            uintptr_t energy_y, int64_t rows, int64_t cols, Coefficient drift,
            Coefficient diffusion, Coefficient bound, uintptr_t given, uint64_t seed, uint64_t at,
            uint32_t stream, uint64_t first_chain, uintptr_t log_ratio, uintptr_t accepted,
            int threads) {
  const Accept s{pointer(x),
                 pointer(grad),
                 pointer(energy),
                 pointer(y),
                 pointer(grad_y),
                 pointer(energy_y),
                 rows,
                 cols,
                 drift,
                 diffusion,
                 bound,
                 static_cast<const double*>(pointer(given)),
                 {seed, at, stream, first_chain},
                 static_cast<double*>(pointer(log_ratio)),
                 static_cast<bool*>(pointer(accepted))};
  const int64_t size = wide ? sizeof(double) : sizeof(float), each = rows * size;
  const int64_t doubles = rows * int64_t{sizeof(double)};
  const Memory written[] = {{s.x, each * cols},
                            {s.grad, each * cols},
                            {s.energy, each},
                            {s.log_ratio, doubles},
                            {s.accepted, rows}};
  const Memory read[] = {{s.y, each * cols},   {s.grad_y, each * cols},  {s.energy_y, each},
                         {s.drift.each, each}, {s.diffusion.each, each}, {s.bound.each, each},
                         {s.given, doubles}};
  if (!apart(read, written)) return false;
  const Kernels& k = *current;
  py::gil_scoped_release release;
  run_accept(k.accept, wide ? kDoubleState : kFloatState, s, threads);
  return true;
}

template <class T>
void add_all(uintptr_t grad_norm, uintptr_t gamma, uintptr_t log_ratio, uintptr_t weight,
             const Sums& sums, int64_t rows) {
  const Recorded<T> step{
      static_cast<const T*>(pointer(grad_norm)), static_cast<const T*>(pointer(gamma)),
      static_cast<const double*>(pointer(log_ratio)), static_cast<const double*>(pointer(weight))};
  add(step, sums, rows);
}

void tally(bool wide, uintptr_t grad_norm, uintptr_t gamma, uintptr_t log_ratio, uintptr_t weight,
           uintptr_t norm_sum, uintptr_t gamma_sum, uintptr_t clipped_sum, uintptr_t acceptance_sum,
           uintptr_t weight_sum, int64_t rows) {
  const auto doubles = [](uintptr_t address) { return static_cast<double*>(pointer(address)); };
  const Sums sums{doubles(norm_sum), doubles(gamma_sum), doubles(clipped_sum),
                  doubles(acceptance_sum), doubles(weight_sum)};
  const py::gil_scoped_release release;
  (wide ? add_all<double> : add_all<float>)(grad_norm, gamma, log_ratio, weight, sums, rows);
}

bool finite_everywhere(bool wide, uintptr_t flags, uintptr_t energy, int64_t rows) {
  const auto* set = static_cast<const bool*>(pointer(flags));
  const py::gil_scoped_release release;
  return wide ? all_finite(set, static_cast<const double*>(pointer(energy)), rows)
              : all_finite(set, static_cast<const float*>(pointer(energy)), rows);
}

// One of the elementary functions; false where there is none of this name and type.
bool elementary(const std::string& name, bool wide, uintptr_t x, uintptr_t out, int64_t n) {
  const ElementaryKernels& k = current->elementary;
  if (wide) {
    const auto f = name == "exp"    ? k.wide_exp
                   : name == "tanh" ? k.wide_tanh
                   : name == "log"  ? k.wide_log
                                    : nullptr;
    if (f) f(static_cast<const double*>(pointer(x)), static_cast<double*>(pointer(out)), n);
    return f;
  }
  const auto f = name == "exp"        ? k.exp
                 : name == "tanh"     ? k.tanh
                 : name == "log"      ? k.log
                 : name == "softplus" ? k.softplus
                                      : nullptr;
  if (f) f(static_cast<const float*>(pointer(x)), static_cast<float*>(pointer(out)), n);
  return f;
}

// A network as Python describes it: a sequence of (weight, bias, in, out, activation, slope, beta,
// threshold), addresses as ints, and a factor.
struct Network {
  std::vector<MlpLayer> layers;
  float factor;
  Network(const py::sequence& described, float times) : factor(times) {
    for (const py::handle each : described) {
      const auto t = py::cast<py::tuple>(each);
      const auto floats = [&](int i) {
        return static_cast<const float*>(pointer(py::cast<uintptr_t>(t[i])));
      };
      layers.push_back({floats(0), floats(1), py::cast<int64_t>(t[2]), py::cast<int64_t>(t[3]),
                        static_cast<Activation>(py::cast<int>(t[4])), py::cast<float>(t[5]),
                        py::cast<float>(t[6]), py::cast<float>(t[7])});
    }
  }
  Mlp mlp() const { return {layers.data(), static_cast<int>(layers.size()), factor}; }
};

// Whole chains. What is not a number is an address, null for what is not there:
//   energy  analytic (kind, components, numbers, how many, factor), or a network's (layers, factor)
//   move    (rule, coefficients, schedule, how many of them it has, reference precision, low, high,
//           2 noise power, per coordinate, noisy, second stream)
//   state   (x, energy, grad, velocity, proposal, log ratio, accepted, grad norm, gamma, finite,
//           frozen)
//   record  (first, sums of norm, gamma, clipped, acceptance, mean, squares, trajectory, every)
int64_t chain(bool wide, const py::tuple& energy, const py::tuple& move, const py::tuple& state,
              const py::tuple& record, int64_t rows, int64_t cols, int64_t steps, uint64_t seed,
              uint64_t at, uint32_t stream, uint64_t first_chain, bool tolerant, int threads) {
  const auto address = [](const py::handle& h) { return pointer(py::cast<uintptr_t>(h)); };
  const auto doubles = [&](const py::handle& h) { return static_cast<double*>(address(h)); };
  Chain c{};
  c.rule = static_cast<ChainRule>(py::cast<int>(move[0]));
  int given = 0;
  for (const py::handle& each : py::cast<py::list>(move[1]))
    c.with[given++] = py::cast<Coefficient>(each);
  c.schedule = doubles(move[2]);
  c.scheduled = py::cast<int64_t>(move[3]);
  c.reference_precision = py::cast<double>(move[4]);
  c.low = py::cast<double>(move[5]);
  c.high = py::cast<double>(move[6]);
  c.twice_noise_power = py::cast<int>(move[7]);
  c.per_coordinate = py::cast<bool>(move[8]);
  c.noisy = py::cast<bool>(move[9]);
  c.second_stream = py::cast<uint32_t>(move[10]);

  c.x = address(state[0]);
  c.energy = address(state[1]);
  c.grad = address(state[2]);
  c.v = address(state[3]);
  c.proposal = address(state[4]);
  c.log_ratio = doubles(state[5]);
  c.accepted = static_cast<bool*>(address(state[6]));
  c.grad_norm = address(state[7]);
  c.gamma = address(state[8]);
  c.finite = static_cast<bool*>(address(state[9]));
  c.frozen = static_cast<const bool*>(address(state[10]));

  c.first = py::cast<int64_t>(record[0]);
  c.norm_sum = doubles(record[1]);
  c.gamma_sum = doubles(record[2]);
  c.clipped_sum = doubles(record[3]);
  c.acceptance_sum = doubles(record[4]);
  c.mean = doubles(record[5]);
  c.squares = doubles(record[6]);
  c.trajectory = address(record[7]);
  c.every = py::cast<int64_t>(record[8]);

  c.rows = rows;
  c.cols = cols;
  c.steps = steps;
  c.position = {seed, at, stream, first_chain};
  c.tolerant = tolerant;
  const Kernels& k = *current;
  if (energy.size() == 2) {
    const Network net(py::cast<py::sequence>(energy[0]), py::cast<float>(energy[1]));
    py::gil_scoped_release release;
    return run_chain(k.mlp, net.mlp(), c, threads);
  }
  c.kind = static_cast<EnergyKind>(py::cast<int>(energy[0]));
  c.components = py::cast<int64_t>(energy[1]);
  c.numbers = doubles(energy[2]);
  c.count = py::cast<int64_t>(energy[3]);
  c.factor = py::cast<double>(energy[4]);
  if (cols > kMostColumns || c.components > kMostComponents)
    throw std::invalid_argument("more columns or components than formulas have room for");
  py::gil_scoped_release release;
  return run_chain(k.chain, wide ? kDoubleState : kFloatState, c, threads);
}

void mlp_gradient(const py::sequence& layers, float factor, uintptr_t x, uintptr_t u, uintptr_t g,
                  int64_t rows, int threads) {
  const Network net(layers, factor);
  const Kernels& k = *current;
  py::gil_scoped_release release;
  run_mlp(k.mlp, net.mlp(), static_cast<const float*>(pointer(x)), static_cast<float*>(pointer(u)),
          static_cast<float*>(pointer(g)), rows, threads);
}

template <void (*Run)(const Kernels&, float*, int64_t, int64_t, const Position&, int)>
void fill(uintptr_t out, int64_t rows, int64_t cols, uint64_t seed, uint64_t at, uint32_t stream,
          uint64_t first_chain, int threads) {
  const Kernels& k = *current;
  py::gil_scoped_release release;
  Run(k, static_cast<float*>(pointer(out)), rows, cols, {seed, at, stream, first_chain}, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of langevin_ext; call them through langevin_ext.backends.native.";
  py::list names;
  for (auto k = kernels_begin(); k != kernels_end(); ++k) names.append((*k)->name);
  m.attr("isas") = py::tuple(names);  // best first
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.attr("compiler") = __VERSION__;
  m.def("isa", [] { return current->name; });
  m.def("use_isa", &use_isa);
  static const PlainStep plain(py::module_::import("torch"));
  if (plain.works())
    m.def("plain_step",
          [](py::handle x, py::handle grad, py::handle drift, py::handle diffusion,
             py::handle noise, py::handle max_grad_norm, py::handle per, py::handle noise_power,
             py::handle reference_precision, py::handle clamp, py::handle stats) {
            return plain(current->step, x, grad, drift, diffusion, noise, max_grad_norm, per,
                         noise_power, reference_precision, clamp, stats);
          });
  else
    m.attr("plain_step") = py::none();
  m.def("step", &step);
  m.def("step_backward", &step_backward);
  m.def("kinetic", &kinetic);
  m.def("accept", &accept);
  m.def("chain", &chain);
  m.attr("chain_rules") = py::make_tuple("overdamped", "metropolis", "kinetic", "evaluation");
  m.attr("chain_energies") = py::make_tuple(
      "diagonal_gaussian", "full_gaussian", "round_mixture", "diagonal_mixture", "full_mixture",
      "rings", "two_moons", "banana", "funnel", "double_well", "quartic_well", "logistic");
  m.attr("chain_limits") = py::make_tuple(kMostColumns, kMostComponents);
  m.def("tally", &tally);
  m.def("all_finite", &finite_everywhere);
  m.def("elementary", &elementary);
  m.def("mlp_gradient", &mlp_gradient);
  m.def("normal", &fill<run_normal>);
  m.def("uniform", &fill<run_uniform>);
  m.def("philox4x32", [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
    const auto w = philox4x32<OneLane>({c0, c1, c2, c3}, Key::of(key));
    return py::make_tuple(static_cast<uint32_t>(w.w0), static_cast<uint32_t>(w.w1),
                          static_cast<uint32_t>(w.w2), static_cast<uint32_t>(w.w3));
  });
  m.def("normals_in_registers", [](int64_t count) {
    const Kernels& k = *current;
    py::gil_scoped_release release;
    return k.noise.normals_in_registers(count);
  });
}
