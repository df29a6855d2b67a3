#include "native/exec/cpu/kernels.h"

namespace dyn::native {

extern const Kernels kKernelsPortable;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;

namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}

}  // namespace

auto gated_activation(const Kernels& kernels, Activation activation) -> decltype(kernels.silu_mul) {
  switch (activation) {
    case Activation::kSilu:
      return kernels.silu_mul;
    case Activation::kGeluTanh:
      return kernels.gelu_mul;
  }
  return nullptr;
}

const Kernels* kernels_for(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kBest:
      return has_avx512() ? &kKernelsAvx512 : has_avx2() ? &kKernelsAvx2 : &kKernelsPortable;
    case CpuIsa::kPortable:
      return &kKernelsPortable;
    case CpuIsa::kAvx2:
      return has_avx2() ? &kKernelsAvx2 : nullptr;
    case CpuIsa::kAvx512:
      return has_avx512() ? &kKernelsAvx512 : nullptr;
    case CpuIsa::kAvx512Bf16:
      return has_avx512_bf16() ? &kKernelsAvx512 : nullptr;
  }
  return nullptr;
}

}  // namespace dyn::native
