#include "native/exec/cpu/fast/kernels.h"

namespace dyn::native {

extern const FastKernels kFastKernelsPortable;
extern const FastKernels kFastKernelsAvx2;
extern const FastKernels kFastKernelsAvx512;
extern const FastKernels kFastKernelsAvx512Bf16;

const FastKernels* fast_kernels_for(CpuIsa isa) {
  if (isa == CpuIsa::kBest) {
    for (const CpuIsa better : {CpuIsa::kAvx512Bf16, CpuIsa::kAvx512, CpuIsa::kAvx2}) {
      if (const FastKernels* kernels = fast_kernels_for(better)) return kernels;
    }
    return &kFastKernelsPortable;
  }
  if (kernels_for(isa) == nullptr) return nullptr;
  switch (isa) {
    case CpuIsa::kAvx2:
      return &kFastKernelsAvx2;
    case CpuIsa::kAvx512:
      return &kFastKernelsAvx512;
    case CpuIsa::kAvx512Bf16:
      return &kFastKernelsAvx512Bf16;
    case CpuIsa::kBest:
    case CpuIsa::kPortable:
      break;
  }
  return &kFastKernelsPortable;
}

}  // namespace dyn::native
