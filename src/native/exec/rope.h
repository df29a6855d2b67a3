// Rotary embedding's frequencies, the same for all executors.
//
//   std::vector<float> f = rotary_frequencies(config.rope, config.head_dim);   // [head_dim / 2]
//   angle = static_cast<float>(position) * f[i];          // fp32, as transformers computes it
//
// Source: transformers 4.57, modeling_rope_utils.py (default, linear, llama3).
#pragma once

#include <vector>

#include "native/model/model_config.h"

namespace dyn::native {

std::vector<float> rotary_frequencies(const Rope& rope, uint32_t head_dim);

}  // namespace dyn::native
