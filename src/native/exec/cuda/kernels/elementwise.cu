#include "native/exec/cuda/kernels/elementwise.h"

#include <algorithm>

#include "native/exec/cuda/kernels/device.cuh"

namespace dyn::native::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kFinishWarps = 4;

unsigned blocks_for(uint64_t items) {
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

__global__ void __launch_bounds__(kThreads) embed_kernel(const EmbedParams p) {
  wait_for_predecessor();
  let_successor_start();
  const uint32_t t = blockIdx.x;
  uint32_t token = p.tokens[t];
  if (p.from_sample != nullptr && token == p.previous_marker) token = __ldcg(p.previous_tokens + p.from_sample[t]);
  if (token >= p.vocab) token = 0;
  const Bf16* from = p.embedding + size_t{token} * p.hidden;
  float* to = p.x + size_t{t} * p.hidden;
  for (uint32_t i = threadIdx.x * 4; i < p.hidden; i += kThreads * 4) {
    const uint2 v = *reinterpret_cast<const uint2*>(from + i);
    *reinterpret_cast<float4*>(to + i) = {p.scale * low_bf16(v.x), p.scale * high_bf16(v.x), p.scale * low_bf16(v.y),
                                          p.scale * high_bf16(v.y)};
  }
}

__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNormParams p) {
  __shared__ float scratch[kWarp];
  wait_for_predecessor();
  let_successor_start();
  const uint32_t from = p.input_rows != nullptr ? static_cast<uint32_t>(p.input_rows[blockIdx.x]) : blockIdx.x;
  const auto* x = reinterpret_cast<const float4*>(p.x + size_t{from} * p.size);
  const auto* weight = reinterpret_cast<const float4*>(p.weight);
  auto* y = reinterpret_cast<uint2*>(p.y + size_t{blockIdx.x} * p.size);
  float sum = 0.0F;
  for (uint32_t i = threadIdx.x; i < p.size / 4; i += kThreads) {
    const float4 v = x[i];
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float factor = rsqrtf(block_sum(sum, scratch) / static_cast<float>(p.size) + p.eps);
  for (uint32_t i = threadIdx.x; i < p.size / 4; i += kThreads) {
    const float4 v = x[i];
    const float4 w = weight[i];
    y[i] = {pack_bf16(v.x * factor * w.x, v.y * factor * w.y), pack_bf16(v.z * factor * w.z, v.w * factor * w.w)};
  }
}

__global__ void __launch_bounds__(kThreads) post_norm_add_kernel(const PostNormAddParams p) {
  __shared__ float scratch[kWarp];
  wait_for_predecessor();
  let_successor_start();
  const auto* y = reinterpret_cast<const float4*>(p.y + size_t{blockIdx.x} * p.size);
  const auto* weight = reinterpret_cast<const float4*>(p.weight);
  auto* x = reinterpret_cast<float4*>(p.x + size_t{blockIdx.x} * p.size);
  float sum = 0.0F;
  for (uint32_t i = threadIdx.x; i < p.size / 4; i += kThreads) {
    const float4 v = y[i];
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float factor = rsqrtf(block_sum(sum, scratch) / static_cast<float>(p.size) + p.eps);
  for (uint32_t i = threadIdx.x; i < p.size / 4; i += kThreads) {
    const float4 v = y[i];
    const float4 w = weight[i];
    float4 r = x[i];
    r.x += v.x * factor * w.x;
    r.y += v.y * factor * w.y;
    r.z += v.z * factor * w.z;
    r.w += v.w * factor * w.w;
    x[i] = r;
  }
}

__global__ void __launch_bounds__(kThreads) gated_activation_kernel(const GatedActivationParams p) {
  wait_for_predecessor();
  let_successor_start();
  const uint32_t chunks = p.size / 8;
  const uint64_t at = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= uint64_t{p.rows} * chunks) return;
  const uint64_t row = at / chunks;
  const auto i = static_cast<uint32_t>(at % chunks) * 8;
  const Bf16* from = p.gate_up + row * 2 * p.size + i;
  const uint4 gate = *reinterpret_cast<const uint4*>(from);
  const uint4 up = *reinterpret_cast<const uint4*>(from + p.size);
  auto act = [&](float x) { return p.activation == GatedActivation::kSilu ? silu(x) : gelu_tanh(x); };
  auto both = [&](uint32_t a, uint32_t b) {
    return pack_bf16(act(low_bf16(a)) * low_bf16(b), act(high_bf16(a)) * high_bf16(b));
  };
  *reinterpret_cast<uint4*>(p.y + row * p.size + i) = {both(gate.x, up.x), both(gate.y, up.y), both(gate.z, up.z),
                                                       both(gate.w, up.w)};
}

__global__ void __launch_bounds__(kThreads) rotary_angles_kernel(const RotaryAnglesParams p) {
  wait_for_predecessor();
  let_successor_start();
  const uint64_t at = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= uint64_t{p.num_tokens} * p.half) return;
  const uint64_t token = at / p.half;
  const uint64_t i = at % p.half;
  const bool far = p.long_tokens != nullptr && p.long_tokens[token] != 0;
  const float factor = far ? p.long_factor : p.factor;
  const float angle = static_cast<float>(p.positions[token]) * (far ? p.long_frequencies : p.frequencies)[i];
  float sine = 0.0F;
  float cosine = 0.0F;
  sincosf(angle, &sine, &cosine);
  float* to = p.angles + token * 2 * p.half;
  to[i] = cosine * factor;
  to[p.half + i] = sine * factor;
}

// A warp a head. Lane l holds elements l, l + 32, ...: up to 8 of them.
__global__ void __launch_bounds__(kFinishWarps* kWarp) finish_qkv_kernel(const FinishQkvParams p) {
  constexpr int kMax = 8;
  __shared__ float rotated[kFinishWarps][kMax * kWarp];
  wait_for_predecessor();
  let_successor_start();
  const uint32_t kv_heads = p.kv.kv_heads;
  const uint32_t all_heads = p.heads + 2 * kv_heads;
  const uint64_t item = uint64_t{blockIdx.x} * kFinishWarps + threadIdx.x / kWarp;
  if (item >= uint64_t{p.num_tokens} * all_heads) return;
  const uint64_t token = item / all_heads;
  const auto head = static_cast<uint32_t>(item % all_heads);
  const uint32_t lane = threadIdx.x % kWarp;
  Bf16* row = p.qkv + item * p.head_dim;
  const bool is_query = head < p.heads;
  const bool is_value = head >= p.heads + kv_heads;

  float x[kMax];
  float sum = 0.0F;
#pragma unroll
  for (int j = 0; j < kMax; ++j) {
    const uint32_t i = lane + kWarp * static_cast<uint32_t>(j);
    x[j] = i < p.head_dim ? bf16_to_float(row[i]) : 0.0F;
    sum += x[j] * x[j];
  }
  if (!is_value) {
    if (const float* weight = is_query ? p.q_norm : p.k_norm; weight != nullptr) {
      const float factor = rsqrtf(warp_sum(sum) / static_cast<float>(p.head_dim) + p.eps);
#pragma unroll
      for (int j = 0; j < kMax; ++j) {
        const uint32_t i = lane + kWarp * static_cast<uint32_t>(j);
        if (i < p.head_dim) x[j] *= factor * weight[i];
      }
    }
    float* all = rotated[threadIdx.x / kWarp];
#pragma unroll
    for (int j = 0; j < kMax; ++j) all[lane + kWarp * static_cast<uint32_t>(j)] = x[j];
    __syncwarp();
    const float* angles = p.angles + token * 2 * p.half;
#pragma unroll
    for (int j = 0; j < kMax; ++j) {
      const uint32_t i = lane + kWarp * static_cast<uint32_t>(j);
      if (i < p.half) {
        x[j] = x[j] * angles[i] - all[i + p.half] * angles[p.half + i];
      } else if (i < 2 * p.half) {
        x[j] = x[j] * angles[i - p.half] + all[i - p.half] * angles[i];
      }
    }
  }
  Bf16* to = row;
  if (!is_query) {
    const int64_t slot = p.kv_slots[token];
    if (slot < 0) return;
    const uint32_t kv_head = (head - p.heads) % kv_heads;
    to = (is_value ? p.kv.values : p.kv.keys) + static_cast<size_t>(slot / p.kv.tokens_per_page) * p.kv.page_stride +
         kv_head * p.kv.head_stride + static_cast<size_t>(slot % p.kv.tokens_per_page) * p.head_dim;
  }
#pragma unroll
  for (int j = 0; j < kMax; ++j) {
    const uint32_t i = lane + kWarp * static_cast<uint32_t>(j);
    if (i < p.head_dim) to[i] = float_to_bf16(x[j]);
  }
}

__global__ void __launch_bounds__(kThreads) page_copy_kernel(const PageCopyParams p) {
  wait_for_predecessor();
  let_successor_start();
  const auto* from = reinterpret_cast<const uint4*>(p.pool + static_cast<size_t>(p.from[blockIdx.y]) * p.page_bytes);
  auto* to = reinterpret_cast<uint4*>(p.pool + static_cast<size_t>(p.to[blockIdx.y]) * p.page_bytes);
  for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.page_bytes / 16; i += gridDim.x * kThreads) {
    to[i] = from[i];
  }
}

}  // namespace

cudaError_t launch_embed(const EmbedParams& params, const Launch& on) {
  if (params.num_tokens == 0) return cudaSuccess;
  return launch_kernel(embed_kernel, dim3(params.num_tokens), kThreads, 0, on, params);
}

cudaError_t launch_rms_norm(const RmsNormParams& params, const Launch& on) {
  if (params.rows == 0) return cudaSuccess;
  return launch_kernel(rms_norm_kernel, dim3(params.rows), kThreads, 0, on, params);
}

cudaError_t launch_post_norm_add(const PostNormAddParams& params, const Launch& on) {
  if (params.rows == 0) return cudaSuccess;
  return launch_kernel(post_norm_add_kernel, dim3(params.rows), kThreads, 0, on, params);
}

cudaError_t launch_gated_activation(const GatedActivationParams& params, const Launch& on) {
  if (params.rows == 0) return cudaSuccess;
  return launch_kernel(gated_activation_kernel, dim3(blocks_for(uint64_t{params.rows} * (params.size / 8))), kThreads,
                       0, on, params);
}

cudaError_t launch_rotary_angles(const RotaryAnglesParams& params, const Launch& on) {
  if (params.num_tokens == 0) return cudaSuccess;
  return launch_kernel(rotary_angles_kernel, dim3(blocks_for(uint64_t{params.num_tokens} * params.half)), kThreads, 0,
                       on, params);
}

cudaError_t launch_finish_qkv(const FinishQkvParams& params, const Launch& on) {
  if (params.num_tokens == 0) return cudaSuccess;
  if (params.head_dim > 256 || params.half * 2 > params.head_dim) return cudaErrorInvalidValue;
  const uint64_t items = uint64_t{params.num_tokens} * (params.heads + 2 * params.kv.kv_heads);
  return launch_kernel(finish_qkv_kernel, dim3(static_cast<unsigned>((items + kFinishWarps - 1) / kFinishWarps)),
                       kFinishWarps * kWarp, 0, on, params);
}

cudaError_t launch_page_copy(const PageCopyParams& params, const Launch& on) {
  if (params.count == 0) return cudaSuccess;
  const auto blocks = std::min<uint64_t>(64, (params.page_bytes / 16 + kThreads - 1) / kThreads);
  return launch_kernel(page_copy_kernel, dim3(static_cast<unsigned>(blocks), params.count), kThreads, 0, on, params);
}

}  // namespace dyn::native::cuda
