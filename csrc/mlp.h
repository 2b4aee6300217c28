// Networks of linear layers and what follows them, as callers see them.
#pragma once

#include <cstdint>

namespace langevin {

struct Chain;

enum Activation { kIdentity, kRelu, kLeaky, kSilu, kTanh, kSoftplus };

// y <- activation(weight x + bias)
struct MlpLayer {
  const float* weight;  // (out, in), contiguous
  const float* bias;    // (out,), or null for none
  int64_t in, out;
  Activation activation;
  float slope;            // of a leaky one: below 0
  float beta, threshold;  // of softplus: log(1 + e^(beta z)) / beta, z itself where beta z is above
};

// U(x) = factor * network(x); the last layer has one output.
struct Mlp {
  const MlpLayer* layers;
  int count;
  float factor;
};

struct MlpKernels {
  // The weights as the other two want them, to be shared by threads and given back.
  void* (*pack)(const Mlp&);
  void (*drop)(void* packed);
  // U (rows,) and its gradient (rows, in) at x (rows, in), of rows [begin, end).
  void (*rows)(const void* packed, const float* x, float* u, float* g, int64_t begin, int64_t end);
  // Whole chains, as `ChainKernels::rows`.
  int64_t (*chain)(const void* packed, const Chain&, int64_t begin, int64_t end);
};

// Weights that cost as much as an element's noise: how work is counted for threads.
constexpr int64_t kWeights = 32;

inline int64_t work_of(const Mlp& net) {
  int64_t weights = 0;
  for (int l = 0; l < net.count; ++l) weights += net.layers[l].in * net.layers[l].out;
  return weights / kWeights;
}

void run_mlp(const MlpKernels&, const Mlp&, const float* x, float* u, float* g, int64_t rows,
             int threads);

}  // namespace langevin
