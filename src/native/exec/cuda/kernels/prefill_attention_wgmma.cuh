// Prefill attention with wgmma, for heads of 64 and 128; see attention.h for what it computes.
//
// FlashAttention-3's scheme (Shah et al. 2024, arXiv 2407.08608): a block holds 128 packed queries of one KV head, 64 a
// warpgroup; one thread of a third warpgroup has the copy engine fetch pages of KV into two stages of 128 tokens. While
// the product of probabilities and values of one tile runs, a warpgroup computes the softmax of the next one; the two
// warpgroups drift apart, so that one's softmax hides behind the other's products.
// Tokens behind the last query's are masked; their values are cleared, so that no NaN gets through.
#pragma once

#include "native/exec/cuda/kernels/attention.h"
#include "native/exec/cuda/kernels/tensor_map.h"
#include "native/exec/cuda/kernels/wgmma.cuh"

namespace dyn::native::cuda {
namespace prefill_wgmma {

inline constexpr uint32_t kGroupThreads = 128;
inline constexpr uint32_t kConsumerGroups = 2;
inline constexpr uint32_t kThreads = (kConsumerGroups + 1) * kGroupThreads;
inline constexpr uint32_t kTile = 128;  // tokens
inline constexpr uint32_t kStages = 2;
inline constexpr uint32_t kLine = 128;  // bytes: 64 dimensions
static_assert(kPrefillTileRows == kConsumerGroups * 64);

struct Params {
  PrefillAttentionParams p;
  CUtensorMap keys;  // 64 dimensions, tokens of a page, KV head, page
  CUtensorMap values;
};

template <uint32_t kDim>
constexpr uint32_t kTileBytes = kTile * kDim * sizeof(Bf16);
template <uint32_t kDim>
constexpr size_t kSharedBytes = (1 + 2 * kStages) * kTileBytes<kDim> + 1024;

struct Barriers {
  uint64_t keys_full[kStages];
  uint64_t keys_empty[kStages];
  uint64_t values_full[kStages];
  uint64_t values_empty[kStages];
};

// What a block works on.
struct Work {
  const int32_t* table;
  uint32_t first_token;  // of the row, in the flat arrays
  uint32_t first;        // packed query
  uint32_t queries;
  uint32_t before;  // position of the row's first token
  uint32_t kv_begin;
  uint32_t kv_end;
  uint32_t group;
};

__device__ __forceinline__ Work find_work(const PrefillAttentionParams& p) {
  const PrefillTile tile = p.tiles[blockIdx.y];
  Work w{};
  w.table = p.pages + p.page_offsets[tile.row];
  w.group = p.heads / p.kv.kv_heads;
  w.first_token = p.row_offsets[tile.row];
  const uint32_t row_tokens = p.row_offsets[tile.row + 1] - w.first_token;
  w.before = static_cast<uint32_t>(p.context_lens[tile.row]) - row_tokens;
  w.first = static_cast<uint32_t>(tile.first);
  w.queries = min(kPrefillTileRows, row_tokens * w.group - w.first);
  const uint32_t low = w.before + w.first / w.group;
  w.kv_end = w.before + (w.first + w.queries - 1) / w.group + 1;
  const uint32_t size = p.kv.tokens_per_page;
  w.kv_begin = p.window != 0 && low + 1 > p.window ? (low + 1 - p.window) / size * size : 0;
  return w;
}

template <uint32_t kDim>
__device__ __forceinline__ void fetch(const Params& params, const Work& w, uint8_t* keys, uint8_t* values,
                                      Barriers& b) {
  constexpr uint32_t kHalf = kTile * kLine;
  const uint32_t size = params.p.kv.tokens_per_page;
  const auto head = static_cast<int32_t>(blockIdx.x);
  uint32_t index = 0;
  for (uint32_t start = w.kv_begin; start < w.kv_end; start += kTile, ++index) {
    const uint32_t stage = index % kStages;
    const uint32_t phase = index / kStages % 2;
    const uint32_t pages = (min(kTile, w.kv_end - start) + size - 1) / size;
    const uint32_t bytes = pages * size * kDim * sizeof(Bf16);
    auto copy = [&](const CUtensorMap& map, uint8_t* to, uint64_t* full, uint64_t* empty) {
      barrier_wait(empty, phase ^ 1);
      barrier_expect(full, bytes);
      for (uint32_t i = 0; i < pages; ++i) {
        const int32_t page = max(0, __ldg(w.table + start / size + i));
        for (uint32_t half = 0; half < kDim / 64; ++half) {
          copy_tensor(to + half * kHalf + i * size * kLine, &map, static_cast<int32_t>(half * 64), 0, head, page, full);
        }
      }
    };
    copy(params.keys, keys + stage * kTileBytes<kDim>, b.keys_full + stage, b.keys_empty + stage);
    copy(params.values, values + stage * kTileBytes<kDim>, b.values_full + stage, b.values_empty + stage);
  }
}

template <uint32_t kDim>
__global__ void __launch_bounds__(kThreads, 1) prefill_attention_kernel(const __grid_constant__ Params params) {
  constexpr uint32_t kHalf = kTile * kLine;
  const PrefillAttentionParams& p = params.p;
  extern __shared__ __align__(1024) uint8_t raw[];
  __shared__ Barriers b;
  uint8_t* shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  uint8_t* queries = shared;  // [kDim / 64][128 rows][kLine]
  uint8_t* keys = queries + kTileBytes<kDim>;
  uint8_t* values = keys + kStages * kTileBytes<kDim>;

  if (threadIdx.x == 0) {
    constexpr uint32_t kConsumerWarps = kConsumerGroups * kGroupThreads / kWarp;
    for (uint32_t i = 0; i < kStages; ++i) {
      barrier_init(b.keys_full + i, 1);
      barrier_init(b.values_full + i, 1);
      barrier_init(b.keys_empty + i, kConsumerWarps);
      barrier_init(b.values_empty + i, kConsumerWarps);
    }
    barrier_init_done();
  }
  __syncthreads();
  const Work w = find_work(p);
  wait_for_predecessor();
  let_successor_start();
  const uint32_t group_index = threadIdx.x / kGroupThreads;
  const uint32_t thread = threadIdx.x % kGroupThreads;

  if (group_index == kConsumerGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (thread == 0) fetch<kDim>(params, w, keys, values, b);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const uint32_t warp = thread / kWarp;
    const uint32_t lane = thread % kWarp;
    const uint32_t g = lane / 4;
    const uint32_t t = lane % 4;
    const uint32_t barrier_id = 1 + group_index;
    auto query_offset = [&](uint32_t packed, size_t stride) {
      return size_t{w.first_token + packed / w.group} * stride + size_t{blockIdx.x * w.group + packed % w.group} * kDim;
    };
    for (uint32_t i = thread; i < 64 * kDim / 8; i += kGroupThreads) {
      const uint32_t row = group_index * 64 + i / (kDim / 8);
      const uint32_t chunk = i % (kDim / 8);
      uint4 x{0, 0, 0, 0};
      if (row < w.queries)
        x = __ldcg(reinterpret_cast<const uint4*>(p.qkv + query_offset(w.first + row, p.qkv_stride)) + chunk);
      *reinterpret_cast<uint4*>(queries + chunk / 8 * kHalf + row * kLine + (chunk % 8 ^ row % 8) * 16) = x;
    }
    fence_async_proxy();
    named_barrier(barrier_id, kGroupThreads);

    const uint32_t row0 = w.first + group_index * 64 + warp * 16 + g;
    const uint32_t position[2] = {w.before + row0 / w.group, w.before + (row0 + 8) / w.group};
    const uint32_t group_low = w.before + (w.first + group_index * 64) / w.group;
    const uint32_t group_high = w.before + (w.first + group_index * 64 + 63) / w.group;
    const float scale = p.scale * kLog2e;
    const uint32_t query_address = shared_address(queries) + group_index * 64 * kLine;
    const uint32_t keys_address = shared_address(keys);
    const uint32_t values_address = shared_address(values);

    float s[kTile / 2];
    float out[kDim / 2];
    uint32_t probabilities[kTile / 4];
#pragma unroll
    for (uint32_t i = 0; i < kDim / 2; ++i) out[i] = 0.0F;
    float best[2] = {kLowest, kLowest};
    float sum[2] = {0.0F, 0.0F};
    float keep[2] = {0.0F, 0.0F};

    auto multiply_keys = [&](uint32_t stage) {
      wgmma_fence();
#pragma unroll
      for (uint32_t d = 0; d < kDim / 16; ++d) {
        const uint32_t offset = d / 4 * kHalf + d % 4 * 32;
        wgmma_shared(s, describe(query_address + offset, 16),
                     describe(keys_address + stage * kTileBytes<kDim> + offset, 16), d != 0);
      }
      wgmma_commit();
    };
    auto multiply_values = [&](uint32_t stage) {
      wgmma_fence();
#pragma unroll
      for (uint32_t i = 0; i < kTile / 16; ++i) {
        wgmma_registers(out, probabilities + 4 * i,
                        describe(values_address + stage * kTileBytes<kDim> + i * 16 * kLine, kHalf));
      }
      wgmma_commit();
    };
    auto softmax = [&](uint32_t start) {
      if (start + kTile > group_low + 1 || (p.window != 0 && start + p.window <= group_high)) {
#pragma unroll
        for (uint32_t i = 0; i < kTile / 2; ++i) {
          const uint32_t token = start + i / 4 * 8 + 2 * t + i % 2;
          const uint32_t at = position[i / 2 % 2];
          if (token > at || (p.window != 0 && token + p.window <= at)) s[i] = -INFINITY;
        }
      }
      float top[2] = {best[0], best[1]};
#pragma unroll
      for (uint32_t i = 0; i < kTile / 2; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
        keep[r] = exp2_fast((best[r] - top[r]) * scale);
        best[r] = top[r];
        sum[r] *= keep[r];
      }
      const float offset[2] = {best[0] * scale, best[1] * scale};
#pragma unroll
      for (uint32_t i = 0; i < kTile / 2; ++i) {
        s[i] = exp2_fast(fmaf(s[i], scale, -offset[i / 2 % 2]));
        sum[i / 2 % 2] += s[i];
      }
    };
    auto round_probabilities = [&] {
#pragma unroll
      for (uint32_t i = 0; i < kTile / 4; ++i) probabilities[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
    };
    auto release = [&](uint64_t* empty) {
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
    };

    barrier_wait(b.keys_full, 0);
    multiply_keys(0);
    wgmma_wait<0>();
    pin(s);
    release(b.keys_empty);
    softmax(w.kv_begin);
    round_probabilities();
    uint32_t index = 1;
    for (uint32_t start = w.kv_begin + kTile; start < w.kv_end; start += kTile, ++index) {
      const uint32_t stage = index % kStages;
      const uint32_t before = (index - 1) % kStages;
      barrier_wait(b.keys_full + stage, index / kStages % 2);
      multiply_keys(stage);
      barrier_wait(b.values_full + before, (index - 1) / kStages % 2);
      multiply_values(before);
      wgmma_wait<1>();
      pin(s);
      release(b.keys_empty + stage);
      softmax(start);
      wgmma_wait<0>();
      pin(out);
      pin(s);
      release(b.values_empty + before);
#pragma unroll
      for (uint32_t i = 0; i < kDim / 2; ++i) out[i] *= keep[i / 2 % 2];
      round_probabilities();
    }
    const uint32_t last = (index - 1) % kStages;
    barrier_wait(b.values_full + last, (index - 1) / kStages % 2);
    const uint32_t valid = w.kv_end - w.kv_begin - (index - 1) * kTile;
    // Both warpgroups clear all of it: neither waits for the other.
    for (uint32_t i = thread; i < (kTile - valid) * (kDim / 8); i += kGroupThreads) {
      const uint32_t row = valid + i / (kDim / 8);
      const uint32_t chunk = i % (kDim / 8);
      *reinterpret_cast<uint4*>(values + last * kTileBytes<kDim> + chunk / 8 * kHalf + row * kLine + chunk % 8 * 16) = {
          0, 0, 0, 0};
    }
    fence_async_proxy();
    named_barrier(barrier_id, kGroupThreads);
    wgmma_fence();
    multiply_values(last);
    wgmma_wait<0>();
    pin(out);

#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
      const uint32_t packed = group_index * 64 + warp * 16 + g + 8 * r;
      if (packed >= w.queries) continue;
      Bf16* to = p.out + query_offset(w.first + packed, size_t{p.heads} * kDim);
      const float factor = 1.0F / sum[r];
#pragma unroll
      for (uint32_t d = 0; d < kDim / 8; ++d) {
        *reinterpret_cast<uint32_t*>(to + d * 8 + 2 * t) =
            pack_bf16(out[4 * d + 2 * r] * factor, out[4 * d + 2 * r + 1] * factor);
      }
    }
  }
}

}  // namespace prefill_wgmma

template <uint32_t kDim>
cudaError_t launch_prefill_attention_wgmma(const PrefillAttentionParams& p, const Launch& on) {
  prefill_wgmma::Params params{};
  params.p = p;
  constexpr uint64_t kManyPages = 1ULL << 24;
  const TensorShape<4> shape{
      .sizes = {kDim, p.kv.tokens_per_page, p.kv.kv_heads, kManyPages},
      .strides = {kDim * sizeof(Bf16), p.kv.head_stride * sizeof(Bf16), p.kv.page_stride * sizeof(Bf16)},
      .box = {64, p.kv.tokens_per_page, 1, 1}};
  cudaError_t error = describe_tensor<4>(params.keys, p.kv.keys, shape);
  if (error == cudaSuccess) error = describe_tensor<4>(params.values, p.kv.values, shape);
  if (error != cudaSuccess) return error;
  return launch_kernel(prefill_wgmma::prefill_attention_kernel<kDim>, dim3(p.kv.kv_heads, p.num_tiles),
                       prefill_wgmma::kThreads, prefill_wgmma::kSharedBytes<kDim>, on, params);
}

}  // namespace dyn::native::cuda
