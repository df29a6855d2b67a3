// Fast kernels for AVX2 with FMA: 8 lanes, 16 registers.
#include <immintrin.h>

#include "native/exec/cpu/fast/kernels_impl.h"

namespace dyn::native {
namespace {

struct Avx2 : Vector<8> {
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

extern const FastKernels kFastKernelsAvx2;
const FastKernels kFastKernelsAvx2 = FastImpl<FmaArithmetic<Avx2, 4, 1>>::table(CpuIsa::kAvx2, "avx2");

}  // namespace dyn::native
