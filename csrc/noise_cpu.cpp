// Noise alone, for one instruction set; compiled once for each (see lanes.h).
#include "noise_cpu.h"

namespace langevin {
namespace {

float normals_in_registers(int64_t count) {
  const Source p(Position{7, 2, 0, 1});
  F sum{};
  for (int64_t i = 0; i < count; i += kChunk) {
    F z[4];
    draw_row<Normals>(i / 4, 1, p, z);
    sum += (z[0] + z[1]) + (z[2] + z[3]);
  }
  return Lanes::tree_sum(sum);
}

}  // namespace

const NoiseKernels LANGEVIN_OF_ISA(_noise) = {draw<Normals>, draw<Uniforms>, normals_in_registers};

}  // namespace langevin
