// Mixture of experts: routing and the grouped products.
//
//   launch_route({.logits = router_logits, .tokens = t, .experts = 128, .chosen = 8, ...}, on);
//   launch_group_tokens({...}, on);                                     // sorts (token, choice) pairs by expert
//   launch_grouped_linear({.x = normed, .gather = true, .output gated ...}, on);        // gate-up of every expert
//   launch_grouped_linear({.x = inner, .gather = false, ...}, on);                      // down
//   launch_combine_experts({...}, on);                                  // x += sum of share * expert output
//
// Weights of an expert are read once a step for every 16 of its tokens. Grouped rows are ordered by (expert, token,
// choice); a row's result does not depend on the others. Router logits come from Linear (kF32). Of equal probabilities
// the lower expert is chosen first; shares are summed in the order of choice. See launch.h.
#pragma once

#include "native/exec/cuda/kernels/elementwise.h"
#include "native/exec/cuda/kernels/launch.h"

namespace dyn::native::cuda {

// Softmax over all experts, the best `chosen` (<= 32) of them; `normalize`: their shares are brought to a sum of 1.
struct RouteParams {
  const float* logits = nullptr;      // [tokens][experts]
  int32_t* chosen_experts = nullptr;  // [tokens][chosen]
  float* shares = nullptr;            // [tokens][chosen]
  uint32_t tokens = 0;
  uint32_t experts = 0;  // at most 1024
  uint32_t chosen = 0;
  bool normalize = false;
};
cudaError_t launch_route(const RouteParams& params, const Launch& on);

// One block; pairs = tokens * chosen.
struct GroupTokensParams {
  const int32_t* chosen_experts = nullptr;  // [pairs]
  int32_t* expert_offsets = nullptr;        // [experts + 1] first grouped row of each expert
  int32_t* pair_of = nullptr;               // [pairs] grouped row -> pair (token * chosen + choice)
  int32_t* row_of = nullptr;                // [pairs] pair -> grouped row
  uint32_t pairs = 0;
  uint32_t experts = 0;
};
cudaError_t launch_group_tokens(const GroupTokensParams& params, const Launch& on);

// For every expert: y[its grouped rows] = x[rows] W_e^T. Grid: tiles of n x experts x tiles of 16 rows (blocks without
// rows leave at once).
struct GroupedLinearParams {
  const Bf16* x = nullptr;               // [tokens][k] with gather, else [pairs][k]
  const Bf16* const* weights = nullptr;  // [experts] device array of device pointers, each [n][k]
  const int32_t* expert_offsets = nullptr;
  const int32_t* pair_of = nullptr;
  Bf16* y_bf16 = nullptr;  // [pairs][n / 2], gated; or null
  float* y_f32 = nullptr;  // [pairs][n]; or null
  uint32_t pairs = 0;      // host bound of the rows of one expert is min(pairs / chosen)
  uint32_t chosen = 0;
  uint32_t experts = 0;
  uint32_t n = 0;
  uint32_t k = 0;
  bool gather = false;
  GatedActivation activation = GatedActivation::kSilu;
};
cudaError_t launch_grouped_linear(const GroupedLinearParams& params, const Launch& on);

// x[t] += sum over choices of shares[t][c] * y[row_of[t * chosen + c]].
struct CombineExpertsParams {
  const float* y = nullptr;  // [pairs][hidden]
  const float* shares = nullptr;
  const int32_t* row_of = nullptr;
  float* x = nullptr;  // [tokens][hidden]
  uint32_t tokens = 0;
  uint32_t chosen = 0;
  uint32_t hidden = 0;
};
cudaError_t launch_combine_experts(const CombineExpertsParams& params, const Launch& on);

}  // namespace dyn::native::cuda
