// Prefill attention with mma.sync, for one head dimension a .cu file; see attention.h for what it computes.
//
// FlashAttention-2's scheme (Dao 2023, arXiv 2307.08691): a block holds 128 packed queries of one KV head, 16 a warp,
// in registers and walks over KV in tiles of 64 tokens (32 for wide heads), two tiles in shared memory: cp.async fills
// one while the other is used. Rows of shared memory are 16 bytes longer than a head, so that the 8 rows an ldmatrix
// reads lie in different banks. Tokens outside the row's context are filled with zeros.
#pragma once

#include "native/exec/cuda/kernels/async.cuh"
#include "native/exec/cuda/kernels/attention.h"

namespace dyn::native::cuda {
namespace prefill {

inline constexpr uint32_t kWarps = 8;
inline constexpr uint32_t kThreads = kWarps * kWarp;
static_assert(kPrefillTileRows == kWarps * 16);

template <uint32_t kDim>
constexpr uint32_t kTokens = kDim > 128 ? 32 : 64;

template <uint32_t kDim>
constexpr size_t shared_bytes() {
  // Two tiles each of keys and values; the queries pass through the same room first.
  const size_t tiles = sizeof(Bf16) * 4 * kTokens<kDim> * (kDim + 8);
  const size_t queries = sizeof(Bf16) * kPrefillTileRows * (kDim + 8);
  return tiles > queries ? tiles : queries;
}

// Copies 16 bytes, or zeros.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

template <uint32_t kDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_attention_kernel(const __grid_constant__ PrefillAttentionParams p) {
  constexpr uint32_t kTile = kTokens<kDim>;
  constexpr uint32_t kStride = kDim + 8;
  constexpr uint32_t kChunks = kDim / 8;
  extern __shared__ __align__(16) Bf16 tiles[];  // [2][keys, values][kTile][kStride]

  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t g = lane / 4;
  const uint32_t t = lane % 4;
  const uint32_t kv_head = blockIdx.x;
  const uint32_t group = p.heads / p.kv.kv_heads;
  const PrefillTile work = p.tiles[blockIdx.y];
  const uint32_t first_token = p.row_offsets[work.row];
  const uint32_t row_tokens = p.row_offsets[work.row + 1] - first_token;
  const auto context = static_cast<uint32_t>(p.context_lens[work.row]);
  const uint32_t before = context - row_tokens;  // position of the row's first query
  const int32_t* table = p.pages + p.page_offsets[work.row];
  const auto first = static_cast<uint32_t>(work.first);
  const uint32_t queries = min(kPrefillTileRows, row_tokens * group - first);
  const uint32_t low = before + first / group;
  const uint32_t kv_end = before + (first + queries - 1) / group + 1;
  const uint32_t kv_begin = p.window != 0 && low + 1 > p.window ? (low + 1 - p.window) / kTile * kTile : 0;

  wait_for_predecessor();
  let_successor_start();

  auto query_offset = [&](uint32_t packed, size_t stride) {
    return size_t{first_token + packed / group} * stride + size_t{kv_head * group + packed % group} * kDim;
  };
  for (uint32_t i = threadIdx.x; i < kPrefillTileRows * kChunks; i += kThreads) {
    const uint32_t q = i / kChunks;
    const bool there = q < queries;
    copy_async(tiles + q * kStride + i % kChunks * 8,
               p.qkv + query_offset(first + (there ? q : 0), p.qkv_stride) + i % kChunks * 8, there);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  uint32_t q[kDim / 16][4];
#pragma unroll
  for (uint32_t d = 0; d < kDim / 16; ++d) {
    load_matrices(q[d], tiles + (warp * 16 + lane % 16) * kStride + d * 16 + lane / 16 * 8);
  }
  __syncthreads();

  auto fetch = [&](uint32_t start, uint32_t stage) {
    Bf16* to = tiles + stage * 2 * kTile * kStride;
    for (uint32_t i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
      const uint32_t token = start + i / kChunks;
      const int32_t page = token < kv_end ? __ldg(table + token / p.kv.tokens_per_page) : -1;
      const bool there = page >= 0;
      const size_t from = static_cast<size_t>(max(page, 0)) * p.kv.page_stride + kv_head * p.kv.head_stride +
                          static_cast<size_t>(token % p.kv.tokens_per_page) * kDim + i % kChunks * 8;
      Bf16* at = to + i / kChunks * kStride + i % kChunks * 8;
      copy_async(at, p.kv.keys + from, there);
      copy_async(at + kTile * kStride, p.kv.values + from, there);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  // Positions of this lane's queries: rows g and g + 8 of the warp's 16.
  const uint32_t position[2] = {before + (first + warp * 16 + g) / group, before + (first + warp * 16 + g + 8) / group};
  const float scale = p.soft_cap > 0.0F ? p.scale : p.scale * kLog2e;
  float out[kDim / 8][4] = {};
  float best[2] = {kLowest, kLowest};
  float sum[2] = {};

  fetch(kv_begin, 0);
  uint32_t stage = 0;
  for (uint32_t start = kv_begin; start < kv_end; start += kTile, stage ^= 1) {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    if (start + kTile < kv_end) fetch(start + kTile, stage ^ 1);
    const Bf16* keys = tiles + stage * 2 * kTile * kStride;
    const Bf16* values = keys + kTile * kStride;

    float s[kTile / 8][4] = {};
#pragma unroll
    for (uint32_t d = 0; d < kDim / 16; ++d) {
#pragma unroll
      for (uint32_t n = 0; n < kTile / 16; ++n) {
        uint32_t k[4];
        load_matrices(k, keys + (n * 16 + lane % 8 + lane / 16 * 8) * kStride + d * 16 + lane / 8 % 2 * 8);
        mma_16x8x16(s[2 * n], q[d][0], q[d][1], q[d][2], q[d][3], k[0], k[1]);
        mma_16x8x16(s[2 * n + 1], q[d][0], q[d][1], q[d][2], q[d][3], k[2], k[3]);
      }
    }
    // A tile in full view of all 16 queries needs no mask.
    const uint32_t warp_low = before + (first + warp * 16) / group;
    const uint32_t warp_high = before + (first + warp * 16 + 15) / group;
    const bool masked = start + kTile > warp_low + 1 || (p.window != 0 && start + p.window <= warp_high);
    float top[2] = {best[0], best[1]};
#pragma unroll
    for (uint32_t n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        float x = s[n][i] * scale;
        if (p.soft_cap > 0.0F) x = p.soft_cap * tanhf(x / p.soft_cap) * kLog2e;
        if (masked) {
          const uint32_t token = start + n * 8 + 2 * t + i % 2;
          const uint32_t at = position[i / 2];
          if (token > at || (p.window != 0 && token + p.window <= at)) x = -INFINITY;
        }
        s[n][i] = x;
        top[i / 2] = fmaxf(top[i / 2], x);
      }
    }
    float keep[2];
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
      keep[r] = exp2_fast(best[r] - top[r]);
      best[r] = top[r];
      sum[r] *= keep[r];
    }
#pragma unroll
    for (uint32_t n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        s[n][i] = exp2_fast(s[n][i] - best[i / 2]);
        sum[i / 2] += s[n][i];
      }
    }
#pragma unroll
    for (uint32_t d = 0; d < kDim / 8; ++d) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) out[d][i] *= keep[i / 2];
    }
#pragma unroll
    for (uint32_t n = 0; n < kTile / 16; ++n) {
      const uint32_t a0 = pack_bf16(s[2 * n][0], s[2 * n][1]);
      const uint32_t a1 = pack_bf16(s[2 * n][2], s[2 * n][3]);
      const uint32_t a2 = pack_bf16(s[2 * n + 1][0], s[2 * n + 1][1]);
      const uint32_t a3 = pack_bf16(s[2 * n + 1][2], s[2 * n + 1][3]);
#pragma unroll
      for (uint32_t d = 0; d < kDim / 16; ++d) {
        uint32_t v[4];
        load_matrices_transposed(v, values + (n * 16 + lane % 16) * kStride + d * 16 + lane / 16 * 8);
        mma_16x8x16(out[2 * d], a0, a1, a2, a3, v[0], v[1]);
        mma_16x8x16(out[2 * d + 1], a0, a1, a2, a3, v[2], v[3]);
      }
    }
  }
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
    const uint32_t packed = warp * 16 + g + 8 * r;
    if (packed >= queries) continue;
    Bf16* to = p.out + query_offset(first + packed, size_t{p.heads} * kDim);
    const float factor = 1.0F / sum[r];
#pragma unroll
    for (uint32_t d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<uint32_t*>(to + d * 8 + 2 * t) = pack_bf16(out[d][2 * r] * factor, out[d][2 * r + 1] * factor);
    }
  }
}

}  // namespace prefill

template <uint32_t kDim>
cudaError_t launch_prefill_attention_dim(const PrefillAttentionParams& params, const Launch& on) {
  return launch_kernel(prefill::prefill_attention_kernel<kDim>, dim3(params.kv.kv_heads, params.num_tiles),
                       prefill::kThreads, prefill::shared_bytes<kDim>(), on, params);
}

}  // namespace dyn::native::cuda
