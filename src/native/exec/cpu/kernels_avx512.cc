// Kernels for AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers.
#include <immintrin.h>

#include "native/exec/cpu/kernels_impl.h"

namespace dyn::native {
namespace {

struct Avx512 : Vector<16> {
  static constexpr uint32_t kGemmRows = 6;
  static constexpr uint32_t kGemmColumns = 4;
  static constexpr uint32_t kFewColumns = 8;
  static constexpr uint32_t kHeadVectors = 4;
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float load_f16(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
};

}  // namespace

extern const Kernels kKernelsAvx512;
const Kernels kKernelsAvx512 = Impl<Avx512>::table(CpuIsa::kAvx512, "avx512");

}  // namespace dyn::native
