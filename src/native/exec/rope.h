// Rotary embedding's frequencies, the same for all executors.
//
//   std::vector<float> f = rotary_frequencies(config.rope, config.head_dim);   // [rotary_dim / 2]
//   angle = static_cast<float>(position) * f[i];          // fp32, as transformers computes it
//   cos(angle) * config.rope.attention_scale;             // and sin
//
// Source: transformers 4.57, modeling_rope_utils.py (default, linear, llama3,
// longrope). The part of a head behind rotary_dim is not rotated.
#pragma once

#include <vector>

#include "native/model/model_config.h"

namespace dyn::native {

uint32_t rotary_dim(const Rope& rope, uint32_t head_dim);

// `long_variant`: of rows with StepPlan::long_rope; the same as the other one where a model has none.
std::vector<float> rotary_frequencies(const Rope& rope, uint32_t head_dim, bool long_variant = false);

}  // namespace dyn::native
