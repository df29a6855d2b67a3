// Elementwise kernels: embedding, norms, activation, rotary angles, finishing of q/k/v rows, page copies.
//
//   launch_embed({.embedding = table, .tokens = tokens, .x = x, .num_tokens = t, .hidden = h, .vocab = v}, on);
//   launch_rms_norm({.x = x, .weight = w, .y = normed, .rows = t, .size = h, .eps = 1e-6F}, on);
//
// All are bound by memory: each reads its inputs and writes its outputs once; a row a block (a head a warp in
// finish_qkv). On an H200 about 2 us plus bytes / 4 TB/s. See launch.h for the common rules.
#pragma once

#include "native/exec/cuda/kernels/kv_layout.h"
#include "native/exec/cuda/kernels/launch.h"

namespace dyn::native::cuda {

// x[t] = scale * embedding[token of t]. A token equal to `previous_marker` is taken from
// previous_tokens[from_sample[t]].
struct EmbedParams {
  const Bf16* embedding = nullptr;            // [vocab][hidden]
  const uint32_t* tokens = nullptr;           // [T]
  const uint32_t* from_sample = nullptr;      // [T] or null: no token is the marker
  const uint32_t* previous_tokens = nullptr;  // [samples of the step before]
  float* x = nullptr;                         // [T][hidden]
  uint32_t num_tokens = 0;
  uint32_t hidden = 0;
  uint32_t vocab = 0;  // a token beyond it reads row 0
  float scale = 1.0F;
  uint32_t previous_marker = 0xFFFF'FFFF;
};
cudaError_t launch_embed(const EmbedParams& params, const Launch& on);

// y = x * rsqrt(mean(x^2) + eps) * weight, for GEMM input. Row r of y comes from row input_rows[r] of x.
struct RmsNormParams {
  const float* x = nullptr;             // [..][size]
  const int32_t* input_rows = nullptr;  // [rows] or null: row r
  const float* weight = nullptr;        // [size]
  Bf16* y = nullptr;                    // [rows][size]
  uint32_t rows = 0;
  uint32_t size = 0;
  float eps = 1e-6F;
};
cudaError_t launch_rms_norm(const RmsNormParams& params, const Launch& on);

// x += rms_norm(y) * weight: the norm after attention or feed-forward network (Gemma).
struct PostNormAddParams {
  const float* y = nullptr;       // [rows][size]
  const float* weight = nullptr;  // [size]
  float* x = nullptr;             // [rows][size]
  uint32_t rows = 0;
  uint32_t size = 0;
  float eps = 1e-6F;
};
cudaError_t launch_post_norm_add(const PostNormAddParams& params, const Launch& on);

enum class GatedActivation : uint8_t { kSilu, kGeluTanh };

// y[r][i] = act(gate_up[r][i]) * gate_up[r][size + i].
struct GatedActivationParams {
  const Bf16* gate_up = nullptr;  // [rows][2 size]
  Bf16* y = nullptr;              // [rows][size]
  uint32_t rows = 0;
  uint32_t size = 0;
  GatedActivation activation = GatedActivation::kSilu;
};
cudaError_t launch_gated_activation(const GatedActivationParams& params, const Launch& on);

// Angles of a step, once a step and kind of rotary embedding: cos and sin of position * frequency, times `factor`.
struct RotaryAnglesParams {
  const int32_t* positions = nullptr;       // [T]
  const float* frequencies = nullptr;       // [half]
  const float* long_frequencies = nullptr;  // [half] or null
  const uint8_t* long_tokens = nullptr;     // [T] or null: tokens that take the long ones
  float* angles = nullptr;                  // [T][2][half]: cosines, then sines
  uint32_t num_tokens = 0;
  uint32_t half = 0;  // rotary dimensions / 2
  float factor = 1.0F;
  float long_factor = 1.0F;
};
cudaError_t launch_rotary_angles(const RotaryAnglesParams& params, const Launch& on);

// In place: norm of query and key heads, rotation (first half of the rotary dimensions paired with the second), keys
// and values into their pages. Queries stay in qkv, ready for prefill_attention. A slot of -1 writes no KV.
struct FinishQkvParams {
  Bf16* qkv = nullptr;                // [T][(heads + 2 kv_heads) * head_dim]
  const float* q_norm = nullptr;      // [head_dim] or null
  const float* k_norm = nullptr;      // [head_dim] or null
  const float* angles = nullptr;      // [T][2][half]
  const int64_t* kv_slots = nullptr;  // [T] page * tokens_per_page + place in the page
  KvLayout kv;
  uint32_t num_tokens = 0;
  uint32_t heads = 0;
  uint32_t head_dim = 0;  // at most 256, even
  uint32_t half = 0;      // rotary dimensions / 2
  float eps = 1e-6F;
};
cudaError_t launch_finish_qkv(const FinishQkvParams& params, const Launch& on);

// Copies whole pages, all layers: page from[i] to page to[i].
struct PageCopyParams {
  std::byte* pool = nullptr;
  const int32_t* from = nullptr;  // [count]
  const int32_t* to = nullptr;    // [count]
  uint32_t count = 0;
  uint64_t page_bytes = 0;  // multiple of 16
};
cudaError_t launch_page_copy(const PageCopyParams& params, const Launch& on);

}  // namespace dyn::native::cuda
