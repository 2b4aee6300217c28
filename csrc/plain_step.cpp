#include "plain_step.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

namespace langevin {
namespace {

namespace py = pybind11;

constexpr uint64_t kMaxStep = uint64_t{1} << 48, kMaxChain = uint64_t{1} << 32;
constexpr int64_t kMaxColumns = int64_t{1} << 34;

// A reference that is given back.
struct Owned {
  explicit Owned(PyObject* p) : object(p) {
    if (!p) PyErr_Clear();
  }
  Owned(const Owned&) = delete;
  ~Owned() { Py_XDECREF(object); }
  PyObject* object;
};

// The memory behind a memoryview, writable, while this lives.
struct Memory {
  explicit Memory(PyObject* object) {
    if (!object || PyObject_GetBuffer(object, &view, PyBUF_WRITABLE)) {
      PyErr_Clear();
      view.buf = nullptr;
    }
  }
  Memory(const Memory&) = delete;
  ~Memory() {
    if (view.buf) PyBuffer_Release(&view);
  }
  Py_buffer view{};
};

bool says_no(py::handle tensor, PyObject* method) {
  return Owned(PyObject_CallMethodNoArgs(tensor.ptr(), method)).object == Py_False;
}

bool is_false(py::handle object, PyObject* attribute) {
  return Owned(PyObject_GetAttr(object.ptr(), attribute)).object == Py_False;
}

bool number(py::handle object, double& value) {
  if (!PyFloat_CheckExact(object.ptr())) return false;
  value = PyFloat_AS_DOUBLE(object.ptr());
  return true;
}

// A finite number that is neither 0 nor infinite in the state's type.
bool coefficient(py::handle object, bool wide, double& value) {
  return number(object, value) && value > 0 &&
         (wide ? value < HUGE_VAL : value >= FLT_TRUE_MIN && value <= FLT_MAX);
}

bool bound(py::handle object, bool wide, double& value) {
  value = HUGE_VAL;
  return object.is_none() || coefficient(object, wide, value) ||
         (number(object, value) && value == HUGE_VAL);
}

bool integer(py::handle object, PyObject* attribute, uint64_t& value) {
  const Owned found(PyObject_GetAttr(object.ptr(), attribute));
  if (!found.object || !PyLong_CheckExact(found.object)) return false;
  value = PyLong_AsUnsignedLongLong(found.object);
  return !PyErr_Occurred() || (PyErr_Clear(), false);
}

bool is(py::handle text, const char* expected) {
  return PyUnicode_Check(text.ptr()) && !PyUnicode_CompareWithASCIIString(text.ptr(), expected);
}

bool read_clamp(py::handle clamp, bool wide, double& low, double& high) {
  low = -HUGE_VAL, high = HUGE_VAL;
  if (clamp.is_none()) return true;
  if (!PyTuple_CheckExact(clamp.ptr()) || PyTuple_GET_SIZE(clamp.ptr()) != 2) return false;
  const py::handle ends[] = {PyTuple_GET_ITEM(clamp.ptr(), 0), PyTuple_GET_ITEM(clamp.ptr(), 1)};
  if (!ends[0].is_none() && !number(ends[0], low)) return false;
  if (!ends[1].is_none() && !number(ends[1], high)) return false;
  return low < high && (wide || (low <= FLT_MAX && high >= -FLT_MAX));
}

bool same_shape(const DLTensor& a, const DLTensor& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

int64_t elements(const DLTensor& t) {
  int64_t count = 1;
  for (int i = 0; i < t.ndim; ++i) count *= t.shape[i];
  return count;
}

// Whether one's memory reaches into the other's; the very same memory is no trouble.
bool overlap(const DLTensor& a, const DLTensor& b, int64_t count) {
  const char *p = static_cast<char*>(a.data), *q = static_cast<char*>(b.data);
  if (p == q && a.bits == b.bits) return false;
  return p < q + count * b.bits / 8 && q < p + count * a.bits / 8;
}

bool read_types(const DLTensor& x, const DLTensor& grad, DTypes& types) {
  const auto is = [](const DLTensor& t, uint8_t code, uint8_t bits) {
    return t.code == code && t.bits == bits;
  };
  if (is(x, kDLFloat, 64)) {
    types = kDouble;
    return is(grad, kDLFloat, 64);
  }
  if (is(grad, kDLFloat, 32))
    types = kFloat;
  else if (is(grad, kDLBfloat, 16))
    types = kFloatBFloat16;
  else if (is(grad, kDLFloat, 16))
    types = kFloatFloat16;
  else
    return false;
  return is(x, kDLFloat, 32);
}

}  // namespace

PlainStep::PlainStep(py::module_ torch) {
  const py::object tensor = torch.attr("Tensor");
  tensor_ = py::object(tensor).release().ptr();
  get_num_threads_ = py::object(torch.attr("get_num_threads")).release().ptr();
  increment_version_ =
      py::object(torch.attr("autograd").attr("graph").attr("increment_version")).release().ptr();
  const auto intern = [](const char* name) { return PyUnicode_InternFromString(name); };
  is_neg_ = intern("is_neg"), is_inference_ = intern("is_inference");
  requires_grad_ = intern("requires_grad");
  cells_ = intern("_cells"), offset_ = intern("_offset"), stream_ = intern("_stream");
  first_chain_ = intern("_first_chain"), fixed_ = intern("_fixed");

  const char* name = "__dlpack_c_exchange_api__";
  if (!py::hasattr(tensor, name)) return;
  const py::object capsule = tensor.attr(name);
  void* found = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (!found) PyErr_Clear();
  auto* api = static_cast<DLPackExchangeAPI*>(found);
  while (api && api->major != 1) api = api->previous;
  if (api) read_ = api->dltensor_from_py_object_no_sync;
}

// A contiguous tensor of torch's own class in the CPU's memory.
bool PlainStep::read(py::handle object, DLTensor& t) const {
  if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != tensor_) return false;
  if (read_(object.ptr(), &t)) {
    PyErr_Clear();
    return false;
  }
  int64_t stride = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.strides && t.shape[i] != 1 && t.strides[i] != stride) return false;
    stride *= t.shape[i];
  }
  return t.data && t.device_type == kDLCPU && t.lanes == 1 && !t.byte_offset;
}

bool PlainStep::operator()(const StepKernels& kernels, py::handle x, py::handle grad,
                           py::handle drift, py::handle diffusion, py::handle noise,
                           py::handle max_grad_norm, py::handle per, py::handle noise_power,
                           py::handle reference_precision, py::handle clamp,
                           py::handle stats) const {
  DLTensor state, slope;
  DTypes types;
  if (!read(x, state) || !read(grad, slope) || !state.ndim || !same_shape(state, slope) ||
      !read_types(state, slope, types))
    return false;
  const int64_t count = elements(state);
  if (!count || overlap(state, slope, count)) return false;
  for (py::handle t : {x, grad})
    if (!is_false(t, requires_grad_) || !says_no(t, is_neg_)) return false;
  if (!says_no(x, is_inference_)) return false;

  Step s{};
  s.x = s.out = state.data, s.grad = slope.data;
  s.rows = state.shape[0], s.cols = count / s.rows;
  const bool wide = types == kDouble;
  double power;
  if (!coefficient(drift, wide, s.drift.value) ||
      !coefficient(diffusion, wide, s.diffusion.value) ||
      !bound(max_grad_norm, wide, s.bound.value) || !number(noise_power, power) ||
      !(power == 0 || power == 0.5 || power == 1) ||
      !number(reference_precision, s.reference_precision) ||
      !(s.reference_precision >= 0 && s.reference_precision < HUGE_VAL) ||
      !read_clamp(clamp, wide, s.low, s.high))
    return false;
  s.twice_noise_power = static_cast<int>(2 * power);
  s.per_coordinate = is(per, "coordinate");
  if (!s.per_coordinate && !is(per, "sample")) return false;

  const Owned cells(PyObject_GetAttr(noise.ptr(), cells_));
  const Memory memory(cells.object);
  uint64_t offset, stream;
  if (!memory.view.buf || memory.view.len != 2 * sizeof(int64_t) ||
      !integer(noise, offset_, offset) || offset >= kMaxStep || !integer(noise, stream_, stream) ||
      stream > UINT16_MAX || !integer(noise, first_chain_, s.noise.first_chain) ||
      s.noise.first_chain >= kMaxChain)
    return false;
  auto* place = static_cast<int64_t*>(memory.view.buf);
  s.noisy = true;
  s.noise.seed = place[0], s.noise.step = place[1] + offset;
  s.noise.stream = static_cast<uint32_t>(stream);
  if (s.cols > kMaxColumns || s.noise.step >= kMaxStep || s.noise.first_chain + s.rows > kMaxChain)
    return false;

  if (!stats.is_none()) {
    // A NamedTuple, that is, and not any tuple.
    if (!PyTuple_Check(stats.ptr()) || PyTuple_CheckExact(stats.ptr()) ||
        PyTuple_GET_SIZE(stats.ptr()) != 3)
      return false;
    DLTensor t[3];
    for (int i = 0; i < 3; ++i) {
      const bool flag = i == 2;
      const py::handle record = PyTuple_GET_ITEM(stats.ptr(), i);
      if (!read(record, t[i]) || !is_false(record, requires_grad_) || !says_no(record, is_neg_) ||
          !says_no(record, is_inference_) || t[i].ndim != 1 || t[i].shape[0] != s.rows ||
          t[i].code != (flag ? kDLBool : kDLFloat) || t[i].bits != (flag ? 8 : state.bits))
        return false;
    }
    s.grad_norm = t[0].data, s.gamma = t[1].data, s.finite = static_cast<bool*>(t[2].data);
  }

  // First, while no other thread of Python runs: noise may be skipped, but never repeated.
  if (is_false(noise, fixed_)) ++place[1];
  if (count < kSerial) {
    run_step(kernels, types, s, 1);
  } else {
    const auto threads = py::reinterpret_borrow<py::object>(get_num_threads_)().cast<int>();
    const py::gil_scoped_release release;
    run_step(kernels, types, s, threads);
  }
  const auto written = py::make_tuple(x);
  const auto tell = py::reinterpret_borrow<py::object>(increment_version_);
  tell(stats.is_none() ? py::object(written) : py::object(written + stats));
  return true;
}

}  // namespace langevin
