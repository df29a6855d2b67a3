// The decode attention kernel, for one head dimension a .cu file; see attention.h for what it computes.
//
// A block of 4 warps works for up to 8 query heads of one KV head of one row on one split of the row's tokens. A warp
// takes tiles of 16 tokens, four tiles apart. Scores are computed transposed, S^T = K Q^T (m = 16 tokens, n = 8 heads),
// and so is the output, O^T = V^T P^T (m = 16 dimensions, n = 8 heads), so that up to 8 heads fill the small side of
// the tensor core's tile and K and V go from memory to registers in 16-byte loads without passing shared memory: the
// order of the reduced dimension is free, V's pairs of tokens are made with byte permutations, P is turned with
// movmatrix.
//
// K and V of the next tile are fetched while this one is computed, the first before the wait for the predecessor. The
// new token is not read from its page: its block computes it from qkv, appends it, and adds its share when the warps
// merge. Order of summation: depends on context length and number of splits only.
#pragma once

#include "native/exec/cuda/kernels/attention.h"
#include "native/exec/cuda/kernels/device.cuh"

namespace dyn::native::cuda {
namespace decode {

inline constexpr uint32_t kWarps = 4;
inline constexpr uint32_t kThreads = kWarps * kWarp;
inline constexpr uint32_t kTile = 16;  // tokens

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Shared memory of a block, in floats.
template <uint32_t kDim>
constexpr uint32_t shared_floats() {
  return kWarps * kDecodeGroup * (kDim + 4)  // a warp's output
         + 2 * kWarps * kDecodeGroup         // its maxima and sums
         + kDecodeGroup * (kDim + 8) / 2     // queries, bf16
         + 2 * kDim;                         // the new key and value
}

// What the rotation of a head needs, for the elements of a lane: l, l + 32, ...
template <uint32_t kPer>
struct LaneAngles {
  float cosine[kPer];
  float sine[kPer];

  __device__ void load(const float* angles, uint32_t half) {
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) {
      const uint32_t i = threadIdx.x % kWarp + kWarp * j;
      const uint32_t at = i < half ? i : i - half;
      cosine[j] = i < 2 * half ? __ldcg(angles + at) : 1.0F;
      sine[j] = i < 2 * half ? __ldcg(angles + half + at) : 0.0F;
    }
  }
};

// One head of the new token: norm (null: none) and rotation.
template <uint32_t kDim, uint32_t kPer>
__device__ __forceinline__ void finish_head(float (&x)[kPer], const float* weight, const LaneAngles<kPer>& angles,
                                            uint32_t half, float eps, float* scratch) {
  const uint32_t lane = threadIdx.x % kWarp;
  if (weight != nullptr) {
    float sum = 0.0F;
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) sum += x[j] * x[j];
    const float factor = rsqrtf(warp_sum(sum) / kDim + eps);
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) {
      if (lane + kWarp * j < kDim) x[j] *= factor * __ldg(weight + lane + kWarp * j);
    }
  }
#pragma unroll
  for (uint32_t j = 0; j < kPer; ++j) {
    if (lane + kWarp * j < kDim) scratch[lane + kWarp * j] = x[j];
  }
  __syncwarp();
#pragma unroll
  for (uint32_t j = 0; j < kPer; ++j) {
    const uint32_t i = lane + kWarp * j;
    if (i < half) {
      x[j] = x[j] * angles.cosine[j] - scratch[i + half] * angles.sine[j];
    } else if (i < 2 * half) {
      x[j] = x[j] * angles.cosine[j] + scratch[i - half] * angles.sine[j];
    }
  }
  __syncwarp();
}

template <uint32_t kDim>
__global__ void __launch_bounds__(kThreads) decode_attention_kernel(const __grid_constant__ DecodeAttentionParams p) {
  constexpr uint32_t kSteps = (kDim + 31) / 32;   // of the score's reduction: 32 dimensions a 16-byte load
  constexpr uint32_t kBlocks = (kDim + 63) / 64;  // of the output: 64 dimensions a 16-byte load
  constexpr uint32_t kPer = (kDim + kWarp - 1) / kWarp;
  constexpr uint32_t kSharedDim = kDim + 4;
  extern __shared__ __align__(16) float shared[];
  float* outputs = shared;                                       // [kWarps][kDecodeGroup][kSharedDim]
  float* maxima = outputs + kWarps * kDecodeGroup * kSharedDim;  // [kWarps][kDecodeGroup]
  float* weights = maxima + kWarps * kDecodeGroup;               // [kWarps][kDecodeGroup]
  float* new_key = weights + kWarps * kDecodeGroup;              // [kDim]
  float* new_value = new_key + kDim;                             // [kDim]
  auto* queries = reinterpret_cast<Bf16*>(new_value + kDim);     // [kDecodeGroup][kDim + 8]
  __shared__ bool last;

  const uint32_t row = blockIdx.z;
  const uint32_t group = p.heads / p.kv.kv_heads;
  const uint32_t group_blocks = (group + kDecodeGroup - 1) / kDecodeGroup;
  const uint32_t kv_head = blockIdx.y / group_blocks;
  const uint32_t group_block = blockIdx.y % group_blocks;
  const uint32_t head0 = kv_head * group + group_block * kDecodeGroup;
  const uint32_t heads = min(kDecodeGroup, group - group_block * kDecodeGroup);
  const uint32_t table_row = p.rows_of != nullptr ? static_cast<uint32_t>(p.rows_of[row]) : row;
  const int32_t context = p.context_lens[table_row];
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t g = lane / 4;
  const uint32_t t = lane % 4;

  // Tokens before the new one, in tiles; tiles of this split.
  const uint32_t end = context > 0 ? static_cast<uint32_t>(context) - 1 : 0;
  const uint32_t begin = p.window != 0 && end + 1 > p.window ? end + 1 - p.window : 0;
  const uint32_t first_tile = begin / kTile;
  const uint32_t tiles = end > begin ? (end + kTile - 1) / kTile - first_tile : 0;
  const uint32_t per_split = max((tiles + p.splits - 1) / p.splits, kWarps);
  const uint32_t active = max(1U, (tiles + per_split - 1) / per_split);
  const uint32_t split = blockIdx.x;
  if (context <= 0 || split >= active) {
    wait_for_predecessor();
    let_successor_start();
    return;
  }
  const uint32_t tile_end = first_tile + min(tiles, (split + 1) * per_split);
  uint32_t tile = first_tile + split * per_split + warp;

  // Lane l knows the page of the warp's l-th tile from `known` on.
  const int32_t* table = p.pages + p.page_offsets[table_row];
  const uint32_t tiles_per_page = p.kv.tokens_per_page / kTile;
  int32_t page_of_lane = 0;
  uint32_t known = 0;
  auto learn_pages = [&](uint32_t from) {
    known = from;
    const uint32_t mine = from + lane * kWarps;
    page_of_lane = mine < tile_end ? __ldg(table + mine / tiles_per_page) : 0;
  };
  learn_pages(tile);

  uint4 keys[2][kSteps];
  uint4 values[4][kBlocks];
  auto tile_offset = [&](uint32_t at) {
    if ((at - known) / kWarps >= kWarp) learn_pages(at);
    const int32_t page = max(0, __shfl_sync(kAllLanes, page_of_lane, (at - known) / kWarps));
    return static_cast<size_t>(page) * p.kv.page_stride + kv_head * p.kv.head_stride +
           static_cast<size_t>(at % tiles_per_page) * (kTile * kDim);
  };
  auto load_keys = [&](size_t offset) {
    const Bf16* from = p.kv.keys + offset + g * kDim + 8 * t;
#pragma unroll
    for (uint32_t s = 0; s < kSteps; ++s) {
      const bool inside = kDim % 32 == 0 || 32 * s + 8 * t < kDim;
      keys[0][s] = inside ? load_stream(from + 32 * s) : uint4{0, 0, 0, 0};
      keys[1][s] = inside ? load_stream(from + 8 * kDim + 32 * s) : uint4{0, 0, 0, 0};
    }
  };
  // Tokens 2t, 2t + 1, 2t + 8, 2t + 9; those that are not visible read as zeros, so that no NaN of theirs gets through.
  auto load_values = [&](size_t offset, uint32_t at) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t token = 2 * t + i % 2 + i / 2 * 8;
      const bool visible = at * kTile + token < end && at * kTile + token >= begin;
      const Bf16* from = p.kv.values + offset + token * kDim + 8 * g;
#pragma unroll
      for (uint32_t b = 0; b < kBlocks; ++b) {
        const bool inside = kDim % 64 == 0 || 64 * b + 8 * g < kDim;
        values[i][b] = inside && visible ? load_stream(from + 64 * b) : uint4{0, 0, 0, 0};
      }
    }
  };
  if (tile < tile_end) {
    const size_t offset = tile_offset(tile);
    load_keys(offset);
    load_values(offset, tile);
  }

  // Brings the norms' weights near.
  if (p.q_norm != nullptr && p.k_norm != nullptr && threadIdx.x < kDim) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p.q_norm + threadIdx.x));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p.k_norm + threadIdx.x));
  }
  wait_for_predecessor();
  let_successor_start();

  // Queries of the group, and the new key and value where this block owns the row's last tokens.
  const uint32_t token_row = p.tokens != nullptr ? static_cast<uint32_t>(p.tokens[row]) : row;
  const Bf16* qkv = p.qkv + size_t{token_row} * p.qkv_stride;
  const float* angles = p.angles + size_t{token_row} * 2 * p.half;
  const bool owns_new = split == active - 1;
  // All loads first: their latency is most of what this costs.
  constexpr uint32_t kItems = (kDecodeGroup + 2 + kWarps - 1) / kWarps;
  const uint32_t items = heads + (owns_new ? 2 : 0);
  float loaded[kItems][kPer];
#pragma unroll
  for (uint32_t n = 0; n < kItems; ++n) {
    const uint32_t item = warp + n * kWarps;
    const uint32_t head = item < heads ? head0 + item : p.heads + kv_head + (item == heads + 1 ? p.kv.kv_heads : 0);
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) {
      const uint32_t i = lane + kWarp * j;
      loaded[n][j] = item < items && i < kDim ? bf16_to_float(__ldcg(qkv + size_t{head} * kDim + i)) : 0.0F;
    }
  }
  LaneAngles<kPer> lane_angles;
  lane_angles.load(angles, p.half);
#pragma unroll
  for (uint32_t n = 0; n < kItems; ++n) {
    const uint32_t item = warp + n * kWarps;
    if (item >= items) break;
    const bool is_query = item < heads;
    const bool is_value = item == heads + 1;
    float(&x)[kPer] = loaded[n];
    if (!is_value) {
      // A part of the outputs' room, not in use yet.
      finish_head<kDim, kPer>(x, is_query ? p.q_norm : p.k_norm, lane_angles, p.half, p.eps, outputs + warp * kDim);
    }
    const uint32_t page_index = end / p.kv.tokens_per_page;
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) {
      const uint32_t i = lane + kWarp * j;
      if (i >= kDim) continue;
      const Bf16 rounded = float_to_bf16(x[j]);
      if (is_query) {
        queries[item * (kDim + 8) + i] = rounded;
        continue;
      }
      (is_value ? new_value : new_key)[i] = bf16_to_float(rounded);
      if (group_block == 0) {
        const size_t at = static_cast<size_t>(table[page_index]) * p.kv.page_stride + kv_head * p.kv.head_stride +
                          static_cast<size_t>(end % p.kv.tokens_per_page) * kDim + i;
        (is_value ? p.kv.values : p.kv.keys)[at] = rounded;
      }
    }
  }
  __syncthreads();

  uint4 q[kSteps];
#pragma unroll
  for (uint32_t s = 0; s < kSteps; ++s) {
    const bool inside = g < heads && (kDim % 32 == 0 || 32 * s + 8 * t < kDim);
    q[s] = inside ? *reinterpret_cast<const uint4*>(queries + g * (kDim + 8) + 32 * s + 8 * t) : uint4{0, 0, 0, 0};
  }

  // Heads 2t and 2t + 1 of this lane.
  const float scale = p.soft_cap > 0.0F ? p.scale : p.scale * kLog2e;
  auto score = [&](float s) {
    return p.soft_cap > 0.0F ? p.soft_cap * tanhf(s * scale / p.soft_cap) * kLog2e : s * scale;
  };
  float out[kBlocks][4][4] = {};
  float max0 = kLowest;
  float max1 = kLowest;
  float sum0 = 0.0F;
  float sum1 = 0.0F;
  for (; tile < tile_end; tile += kWarps) {
    float s[4] = {};
#pragma unroll
    for (uint32_t i = 0; i < kSteps; ++i) {
      mma_16x8x16(s, keys[0][i].x, keys[1][i].x, keys[0][i].y, keys[1][i].y, q[i].x, q[i].y);
      mma_16x8x16(s, keys[0][i].z, keys[1][i].z, keys[0][i].w, keys[1][i].w, q[i].z, q[i].w);
    }
    const uint32_t next = tile + kWarps;
    size_t next_offset = 0;
    if (next < tile_end) {
      next_offset = tile_offset(next);
      load_keys(next_offset);
    }
    const uint32_t token = tile * kTile + g;
    const bool visible0 = token < end && token >= begin;
    const bool visible1 = token + 8 < end && token + 8 >= begin;
    s[0] = visible0 ? score(s[0]) : kLowest;
    s[1] = visible0 ? score(s[1]) : kLowest;
    s[2] = visible1 ? score(s[2]) : kLowest;
    s[3] = visible1 ? score(s[3]) : kLowest;
    float best0 = fmaxf(max0, fmaxf(s[0], s[2]));
    float best1 = fmaxf(max1, fmaxf(s[1], s[3]));
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      best0 = fmaxf(best0, __shfl_xor_sync(kAllLanes, best0, offset));
      best1 = fmaxf(best1, __shfl_xor_sync(kAllLanes, best1, offset));
    }
    const float keep0 = exp2_fast(max0 - best0);
    const float keep1 = exp2_fast(max1 - best1);
    max0 = best0;
    max1 = best1;
    s[0] = visible0 ? exp2_fast(s[0] - max0) : 0.0F;
    s[1] = visible0 ? exp2_fast(s[1] - max1) : 0.0F;
    s[2] = visible1 ? exp2_fast(s[2] - max0) : 0.0F;
    s[3] = visible1 ? exp2_fast(s[3] - max1) : 0.0F;
    sum0 = sum0 * keep0 + s[0] + s[2];
    sum1 = sum1 * keep1 + s[1] + s[3];
    const uint32_t p0 = transpose_8x8(pack_bf16(s[0], s[1]));
    const uint32_t p1 = transpose_8x8(pack_bf16(s[2], s[3]));
#pragma unroll
    for (uint32_t b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        auto part = [i](const uint4& v) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; };
        const uint32_t v0 = part(values[0][b]);
        const uint32_t v1 = part(values[1][b]);
        const uint32_t v2 = part(values[2][b]);
        const uint32_t v3 = part(values[3][b]);
        out[b][i][0] *= keep0;
        out[b][i][1] *= keep1;
        out[b][i][2] *= keep0;
        out[b][i][3] *= keep1;
        mma_16x8x16(out[b][i], __byte_perm(v0, v1, 0x5410), __byte_perm(v0, v1, 0x7632), __byte_perm(v2, v3, 0x5410),
                    __byte_perm(v2, v3, 0x7632), p0, p1);
      }
    }
    if (next < tile_end) load_values(next_offset, next);
  }
#pragma unroll
  for (int offset = 4; offset < kWarp; offset *= 2) {
    sum0 += __shfl_xor_sync(kAllLanes, sum0, offset);
    sum1 += __shfl_xor_sync(kAllLanes, sum1, offset);
  }
  if (g == 0) {
    maxima[warp * kDecodeGroup + 2 * t] = max0;
    maxima[warp * kDecodeGroup + 2 * t + 1] = max1;
    weights[warp * kDecodeGroup + 2 * t] = sum0;
    weights[warp * kDecodeGroup + 2 * t + 1] = sum1;
  }
  // Element 0 of out[b][i] is dimension 64 b + 8 g + 2 i of head 2 t.
#pragma unroll
  for (uint32_t b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t d = 64 * b + 8 * g + 2 * i;
      if (kDim % 64 != 0 && d >= kDim) continue;
      float* to = outputs + (warp * kDecodeGroup + 2 * t) * kSharedDim + d;
      *reinterpret_cast<float2*>(to) = {out[b][i][0], out[b][i][2]};
      *reinterpret_cast<float2*>(to + kSharedDim) = {out[b][i][1], out[b][i][3]};
    }
  }
  __syncthreads();

  // Warps merge, a head a warp. A partial result: [kDim] sums, then maximum, then weight.
  constexpr uint32_t kPartial = kDim + 2;
  for (uint32_t h = warp; h < heads; h += kWarps) {
    float best = kLowest;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) best = fmaxf(best, maxima[w * kDecodeGroup + h]);
    float new_score = kLowest;
    if (owns_new) {
      float dot = 0.0F;
      for (uint32_t i = lane; i < kDim; i += kWarp) dot += bf16_to_float(queries[h * (kDim + 8) + i]) * new_key[i];
      new_score = score(warp_sum(dot));
      best = fmaxf(best, new_score);
    }
    float factor[kWarps];
    float weight = owns_new ? exp2_fast(new_score - best) : 0.0F;
    const float new_factor = weight;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      factor[w] = exp2_fast(maxima[w * kDecodeGroup + h] - best);
      weight += factor[w] * weights[w * kDecodeGroup + h];
    }
    const size_t out_at = size_t{token_row} * p.heads * kDim + size_t{head0 + h} * kDim;
    float* partial = p.partials + ((size_t{row} * p.heads + head0 + h) * p.splits + split) * kPartial;
    for (uint32_t i = lane; i < kDim; i += kWarp) {
      float sum = owns_new ? new_factor * new_value[i] : 0.0F;
#pragma unroll
      for (uint32_t w = 0; w < kWarps; ++w) sum += factor[w] * outputs[(w * kDecodeGroup + h) * kSharedDim + i];
      if (active == 1) {
        p.out[out_at + i] = float_to_bf16(sum / weight);
      } else {
        partial[i] = sum;
      }
    }
    if (active > 1 && lane == 0) {
      partial[kDim] = best;
      partial[kDim + 1] = weight;
    }
  }
  if (active == 1) return;

  // The block that comes last merges the splits, in their order.
  __threadfence();
  __syncthreads();
  uint32_t* arrivals = p.arrivals + size_t{row} * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) last = atomicAdd(arrivals, 1U) == active - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) *arrivals = 0;
  for (uint32_t h = warp; h < heads; h += kWarps) {
    const float* partial = p.partials + (size_t{row} * p.heads + head0 + h) * p.splits * kPartial;
    // Lane l holds maximum and weight of splits l and l + 32.
    static_assert(kMaxDecodeSplits <= 2 * kWarp);
    float m[2];
    float w[2];
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      const uint32_t s = lane + kWarp * j;
      m[j] = s < active ? __ldcg(partial + s * kPartial + kDim) : kLowest;
      w[j] = s < active ? __ldcg(partial + s * kPartial + kDim + 1) : 0.0F;
    }
    const float best = warp_max(fmaxf(m[0], m[1]));
    const float f[2] = {exp2_fast(m[0] - best), exp2_fast(m[1] - best)};
    const float weight = warp_sum(f[0] * w[0] + f[1] * w[1]);
    float sums[kPer] = {};
    constexpr uint32_t kBatch = 8;
    for (uint32_t s = 0; s < active; s += kBatch) {
      float x[kBatch][kPer];
#pragma unroll
      for (uint32_t j = 0; j < kBatch; ++j) {
#pragma unroll
        for (uint32_t i = 0; i < kPer; ++i) {
          const uint32_t d = lane + kWarp * i;
          x[j][i] = s + j < active && d < kDim ? __ldcg(partial + (s + j) * kPartial + d) : 0.0F;
        }
      }
#pragma unroll
      for (uint32_t j = 0; j < kBatch; ++j) {
        const uint32_t at = s + j;
        const float lower = __shfl_sync(kAllLanes, f[0], at % kWarp);
        const float upper = __shfl_sync(kAllLanes, f[1], at % kWarp);
#pragma unroll
        for (uint32_t i = 0; i < kPer; ++i) sums[i] += (at < kWarp ? lower : upper) * x[j][i];
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < kPer; ++i) {
      const uint32_t d = lane + kWarp * i;
      if (d < kDim)
        p.out[size_t{token_row} * p.heads * kDim + size_t{head0 + h} * kDim + d] = float_to_bf16(sums[i] / weight);
    }
  }
}

}  // namespace decode

template <uint32_t kDim>
cudaError_t launch_decode_attention_dim(const DecodeAttentionParams& params, const Launch& on) {
  const uint32_t group = params.heads / params.kv.kv_heads;
  const dim3 grid(params.splits, params.kv.kv_heads * ((group + kDecodeGroup - 1) / kDecodeGroup), params.rows);
  return launch_kernel(decode::decode_attention_kernel<kDim>, grid, decode::kThreads,
                       sizeof(float) * decode::shared_floats<kDim>(), on, params);
}

}  // namespace dyn::native::cuda
