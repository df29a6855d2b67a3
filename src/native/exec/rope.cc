#include "native/exec/rope.h"

#include <cmath>
#include <numbers>

namespace dyn::native {
namespace {

// Long waves are stretched by `factor`, short ones kept, those between blended.
float scale_llama3(float frequency, const Rope& rope) {
  const auto original = static_cast<float>(rope.original_max_positions);
  const float wavelength = 2.0F * std::numbers::pi_v<float> / frequency;
  if (wavelength > original / rope.low_freq_factor) return frequency / rope.factor;
  if (wavelength < original / rope.high_freq_factor) return frequency;
  const float smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0F - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

uint32_t rotary_dim(const Rope& rope, uint32_t head_dim) {
  return rope.rotary_dim != 0 ? rope.rotary_dim : head_dim;
}

std::vector<float> rotary_frequencies(const Rope& rope, uint32_t head_dim, bool long_variant) {
  const uint32_t dim = rotary_dim(rope, head_dim);
  const uint32_t half = dim / 2;
  std::vector<float> frequencies(half);
  for (uint32_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    const float stretched =
        rope.scaling == RopeScaling::kLongRope ? (long_variant ? rope.long_factors : rope.short_factors)[i] : 1.0F;
    float frequency = 1.0F / (stretched * std::pow(rope.theta, exponent));
    switch (rope.scaling) {
      case RopeScaling::kNone:
      case RopeScaling::kLongRope:
        break;
      case RopeScaling::kLinear:
        frequency /= rope.factor;
        break;
      case RopeScaling::kLlama3:
        frequency = scale_llama3(frequency, rope);
        break;
    }
    frequencies[i] = frequency;
  }
  return frequencies;
}

}  // namespace dyn::native
