// Kernels for AVX2 with FMA and F16C: 8 lanes, 16 registers.
#include <immintrin.h>

#include "native/exec/cpu/kernels_impl.h"

namespace dyn::native {
namespace {

struct Avx2 : Vector<8> {
  static constexpr uint32_t kGemmRows = 3;
  static constexpr uint32_t kGemmColumns = 4;
  static constexpr uint32_t kFewColumns = 4;
  static constexpr uint32_t kHeadVectors = 2;
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float load_f16(const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
};

}  // namespace

extern const Kernels kKernelsAvx2;
const Kernels kKernelsAvx2 = Impl<Avx2>::table(CpuIsa::kAvx2, "avx2");

}  // namespace dyn::native
