// Fast kernels for AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers.
#include <immintrin.h>

#include "native/exec/cpu/fast/kernels_impl.h"

namespace dyn::native {
namespace {

struct Avx512 : Vector<16> {
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

extern const FastKernels kFastKernelsAvx512;
const FastKernels kFastKernelsAvx512 = FastImpl<FmaArithmetic<Avx512, 8, 2>>::table(CpuIsa::kAvx512, "avx512");

}  // namespace dyn::native
