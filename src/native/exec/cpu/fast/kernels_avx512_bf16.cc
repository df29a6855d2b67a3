// Fast kernels for AVX-512 with BF16 and VBMI: products of BF16 with vdpbf16ps, 32 multiply-adds an instruction.
//
// vdpbf16ps rounds to nearest even and takes and gives zero for denormal numbers (Intel SDM, volume 2).
#include <immintrin.h>

#include "native/exec/cpu/fast/kernels_impl.h"

namespace dyn::native {
namespace {

struct Avx512 : Vector<16> {
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
};

// The two bytes of |n| as BF16, for n from 0 to 127: tables for vpermi2b.
struct ByteTables {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};

constexpr ByteTables byte_tables() {
  ByteTables tables{};
  for (uint32_t n = 1; n < 128; ++n) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, static_cast<float>(n)) >> 16;
    tables.low[n] = static_cast<uint8_t>(bits & 0xFF);
    tables.high[n] = static_cast<uint8_t>(bits >> 8);
  }
  return tables;
}

constexpr ByteTables kByteTables = byte_tables();

struct Bf16Arithmetic {
  using Vector = Avx512;
  using F = Avx512::Float;
  using X = uint16_t;
  using Line = __m512bh;
  using Pair = __m512bh;
  struct Sum {
    F lanes[1];
  };
  static constexpr uint32_t kRows = 6;
  static constexpr uint32_t kPanels = 4;
  static constexpr uint32_t kManyPanels = 8;
  static constexpr uint32_t kFewPanels = 4;

  static Line load(const uint16_t* at) { return reinterpret_cast<Line>(_mm512_loadu_si512(at)); }
  // 64 bytes are two lines: |n| looked up, its sign put back, low and high bytes interleaved.
  static void load_two(const int8_t* at, Line (&lines)[2]) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i bytes = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(at));
    const __m512i size = _mm512_abs_epi8(bytes);
    const __m512i low =
        _mm512_permutex2var_epi8(_mm512_load_si512(kByteTables.low), size, _mm512_load_si512(kByteTables.low + 64));
    const __m512i high =
        _mm512_permutex2var_epi8(_mm512_load_si512(kByteTables.high), size, _mm512_load_si512(kByteTables.high + 64));
    constexpr int kOrWithSign = 0xF8;  // a | (b & c)
    const __m512i with_sign = _mm512_ternarylogic_epi64(high, bytes, _mm512_set1_epi8(-128), kOrWithSign);
    lines[0] = reinterpret_cast<Line>(_mm512_unpacklo_epi8(low, with_sign));
    lines[1] = reinterpret_cast<Line>(_mm512_unpackhi_epi8(low, with_sign));
  }
  static void widen_two(const int8_t* at, uint16_t* to) {
    Line lines[2];
    load_two(at, lines);
    __builtin_memcpy(to, lines, sizeof lines);
  }
  static Pair pair(const X* x) {
    int32_t both = 0;
    __builtin_memcpy(&both, x, sizeof both);
    return reinterpret_cast<Pair>(_mm512_set1_epi32(both));
  }
  static void multiply_add(Sum& sum, const Line& line, const Pair& x) {
    sum.lanes[0] = _mm512_dpbf16_ps(sum.lanes[0], line, x);
  }
  static void store_bf16(uint16_t* at, F v) {
    const __m256bh half = _mm512_cvtneps_pbh(v);
    __builtin_memcpy(at, &half, sizeof half);
  }
  static void store(X* at, F v) { store_bf16(at, v); }
};

}  // namespace

extern const FastKernels kFastKernelsAvx512Bf16;
const FastKernels kFastKernelsAvx512Bf16 = FastImpl<Bf16Arithmetic>::table(CpuIsa::kAvx512Bf16, "avx512_bf16");

}  // namespace dyn::native
