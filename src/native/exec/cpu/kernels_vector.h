// Vector<W>: W floats in the compiler's vector extension, so that one text compiles to SSE2, AVX2 and AVX-512.
//
// Only for kernels_impl.h and the files that include it; internal linkage, see there.
#pragma once

#include <stdint.h>

namespace dyn::native {
namespace {

template <int W>
struct Vector {
  static constexpr uint32_t kWidth = W;
  using Float = float __attribute__((vector_size(W * 4)));
  using Int = int32_t __attribute__((vector_size(W * 4)));
  using Unsigned = uint32_t __attribute__((vector_size(W * 4)));
  using Half = uint16_t __attribute__((vector_size(W * 2)));

  static Float load(const float* at) {
    Float v;
    __builtin_memcpy(&v, at, sizeof v);
    return v;
  }
  static void store(float* at, Float v) { __builtin_memcpy(at, &v, sizeof v); }
  static Float set(float value) { return Float{} + value; }

  static Unsigned load_half(const uint16_t* at) {
    Half v;
    __builtin_memcpy(&v, at, sizeof v);
    return __builtin_convertvector(v, Unsigned);
  }
  static Float load_bf16(const uint16_t* at) { return reinterpret_cast<Float>(load_half(at) << 16); }
  static Float load_f16(const uint16_t* at) {
    const Unsigned half = load_half(at);
    const Unsigned magnitude = half & 0x7FFF;
    // As a float of the same bits the value is too small by 2^112, denormals included; infinity and NaN need their
    // exponent.
    const Float finite = reinterpret_cast<Float>(magnitude << 13) * 0x1p112F;
    const Unsigned special = magnitude >= 0x7C00 ? Unsigned{} + 0x7F80'0000U : Unsigned{};
    return reinterpret_cast<Float>(reinterpret_cast<Unsigned>(finite) | special | ((half & 0x8000) << 16));
  }

  // 2^n for whole n from -126 to 127.
  static Float power_of_two(Float n) { return reinterpret_cast<Float>((__builtin_convertvector(n, Int) + 127) << 23); }

  // Lanes below `count` of v, the others of `other`.
  static Float keep_below(Float v, Float other, int32_t count) {
    Int lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane < count ? v : other;
  }

  // Lanes from `count` on of v, the others of `other`.
  static Float keep_from(Float v, Float other, int32_t count) {
    Int lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane < count ? other : v;
  }

  // Halves are folded onto each other until one lane is left: the order of every sum.
  static float sum(Float v) {
    if constexpr (W == 1) {
      return v[0];
    } else {
      return Vector<W / 2>::sum(low(v) + high(v));
    }
  }
  static float highest(Float v) {
    if constexpr (W == 1) {
      return v[0];
    } else {
      const auto a = low(v);
      const auto b = high(v);
      return Vector<W / 2>::highest(a > b ? a : b);
    }
  }

 private:
  using HalfFloat = float __attribute__((vector_size(W * 4 / (W > 1 ? 2 : 1))));
  static HalfFloat low(Float v) {
    HalfFloat half;
    __builtin_memcpy(&half, &v, sizeof half);
    return half;
  }
  static HalfFloat high(Float v) {
    HalfFloat half;
    __builtin_memcpy(&half, reinterpret_cast<const char*>(&v) + sizeof half, sizeof half);
    return half;
  }
};

}  // namespace
}  // namespace dyn::native
