// Noise alone, for one instruction set; compiled once for each (see lanes.h).
#include "noise_cpu.h"

namespace langevin {

const NoiseKernels LANGEVIN_OF_ISA(_noise) = {draw<Normals>, draw<Uniforms>, normals_in_registers};

}  // namespace langevin
