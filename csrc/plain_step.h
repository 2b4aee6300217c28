// The short way to a step, for calls that have nothing unusual about them: langevin_step_ costs
// more in attributes of tensors and checks of numbers than the kernel does on a small state. Here
// they are read from C++, and whatever is not plain is left to the checks in Python, which know
// what is legal and what to say otherwise.
//
// Tensors are seen through DLPack's C exchange API (version 1.3, published by torch as
// torch.Tensor.__dlpack_c_exchange_api__), so that torch's headers are not needed; the structures
// are those of the standard.
#pragma once

#include <pybind11/pybind11.h>

#include "step.h"

namespace langevin {

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // null when contiguous
  uint64_t byte_offset;
};

struct DLPackExchangeAPI {
  uint32_t major, minor;
  DLPackExchangeAPI* previous;
  void* others[3];
  int (*dltensor_from_py_object_no_sync)(void* object, DLTensor* out);
};

enum : int32_t { kDLCPU = 1 };
enum : uint8_t { kDLFloat = 2, kDLBfloat = 4, kDLBool = 6 };

class PlainStep {
 public:
  // torch: the module. `works` is false where it lacks the exchange API.
  explicit PlainStep(pybind11::module_ torch);
  bool works() const { return read_; }

  // langevin_step_ of these arguments, the noise advanced and autograd told; or false, and nothing
  // done, unless every one of them is plain.
  bool operator()(const StepKernels& kernels, pybind11::handle x, pybind11::handle grad,
                  pybind11::handle drift, pybind11::handle diffusion, pybind11::handle noise,
                  pybind11::handle max_grad_norm, pybind11::handle per,
                  pybind11::handle noise_power, pybind11::handle reference_precision,
                  pybind11::handle clamp, pybind11::handle stats) const;

 private:
  bool read(pybind11::handle object, DLTensor& tensor) const;

  PyObject *tensor_, *get_num_threads_, *increment_version_;
  PyObject *is_neg_, *is_inference_, *requires_grad_, *cells_, *offset_, *stream_, *first_chain_,
      *fixed_;
  int (*read_)(void*, DLTensor*) = nullptr;
};

}  // namespace langevin
