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

std::vector<float> rotary_frequencies(const Rope& rope, uint32_t head_dim) {
  const uint32_t half = head_dim / 2;
  std::vector<float> frequencies(half);
  for (uint32_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    float frequency = 1.0F / std::pow(rope.theta, exponent);
    switch (rope.scaling) {
      case RopeScaling::kNone:
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
