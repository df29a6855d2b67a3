#include "native/exec/cuda/kernels/linear_small.h"

#include <algorithm>

#include "native/exec/cuda/kernels/device.cuh"

namespace dyn::native::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kPiece = 64;       // of k, for one warp at a time: two 16-byte loads a row
constexpr int kInputPad = 32;    // elements; puts the rows that a quarter of a warp reads into different banks
constexpr size_t kPartialsBytes = 24 * 1024;
constexpr size_t kMaxInputBytes = 128 * 1024;

// What the host works out for a launch.
struct Shape {
  SmallLinearParams p;
  uint32_t tiles;         // of n
  uint32_t rows;          // of input, at most; the first dimension of partial sums
  uint32_t input_stride;  // elements of a row in shared memory
  uint32_t pieces;        // of k for one warp, rounded up
  uint32_t slots;         // tiles whose partial sums fit
  uint32_t ends;          // tiles that one trip through the ring can end
};

// 16-byte loads in flight a thread: 2 kTilesN a unit.
template <int kTilesN>
constexpr int ring_units() {
  return std::max(2, 8 / kTilesN);
}

// Row of the weights behind column `c` of a tile. Gated tiles hold as many gate rows as up rows.
template <int kTilesN>
__device__ __forceinline__ uint32_t weight_row(const LinearParams& l, uint32_t tile, uint32_t c) {
  if (l.output != LinearOutput::kGatedBf16) return min(tile * 8 * kTilesN + c, l.n - 1);
  constexpr uint32_t kHalf = 4 * kTilesN;
  const uint32_t half_n = l.n / 2;
  return c < kHalf ? min(tile * kHalf + c, half_n - 1) : half_n + min(tile * kHalf + c - kHalf, half_n - 1);
}

// Float rows times the norm's weight into shared memory; sums of squares into `squares` [rows][kWarps].
__device__ __forceinline__ void stage_normed(const LinearParams& l, uint32_t rows, uint32_t stride, const float* weight,
                                             Bf16* input, float* squares) {
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t lane = threadIdx.x % kWarp;
  // Warps of a row: all for one row, one for eight and more.
  const uint32_t shift = rows <= 1 ? 3 : rows <= 2 ? 2 : rows <= 4 ? 1 : 0;
  const uint32_t part = warp & ((1U << shift) - 1);
  const uint32_t step = kWarp << shift;
  const uint32_t quads = l.k / 4;
  const uint32_t padded_quads = (l.k + kPiece - 1) / kPiece * (kPiece / 4);
  for (uint32_t row = warp >> shift; row < rows; row += kWarps >> shift) {
    const uint32_t from = l.input_rows != nullptr ? static_cast<uint32_t>(l.input_rows[row]) : row;
    const auto* x = reinterpret_cast<const float4*>(l.x_f32 + size_t{from} * l.k);
    const auto* w = reinterpret_cast<const float4*>(weight);
    auto* to = reinterpret_cast<uint2*>(input + size_t{row} * stride);
    float sum = 0.0F;
    constexpr int kBatch = 8;
    for (uint32_t base = part * kWarp + lane; base < padded_quads; base += kBatch * step) {
      float4 v[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const uint32_t i = base + static_cast<uint32_t>(j) * step;
        v[j] = i < quads ? __ldcg(x + i) : float4{0, 0, 0, 0};
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const uint32_t i = base + static_cast<uint32_t>(j) * step;
        if (i >= padded_quads) break;
        sum += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
        const float4 f = i < quads ? w[i] : float4{0, 0, 0, 0};
        to[i] = {pack_bf16(v[j].x * f.x, v[j].y * f.y), pack_bf16(v[j].z * f.z, v[j].w * f.w)};
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      for (uint32_t i = part; i < kWarps; i += 1U << shift) squares[row * kWarps + i] = i == part ? sum : 0.0F;
    }
  }
}

__device__ __forceinline__ void write_result(const LinearParams& l, uint32_t out_row, uint32_t column, float value,
                                             float before) {
  const size_t at = size_t{out_row} * l.y_stride + column;
  switch (l.output) {
    case LinearOutput::kF32:
      static_cast<float*>(l.y)[at] = value;
      break;
    case LinearOutput::kAddF32:
      static_cast<float*>(l.y)[at] = before + value;
      break;
    default:
      static_cast<Bf16*>(l.y)[at] = float_to_bf16(value);
  }
}

template <int kTilesN, int kTilesM, bool kShared>
__global__ void __launch_bounds__(kThreads, 2) linear_small_kernel(const __grid_constant__ Shape s) {
  constexpr int kUnits = ring_units<kTilesN>();
  constexpr uint32_t kColumns = 8 * kTilesN;
  constexpr uint32_t kBlockRows = 16 * kTilesM;
  const LinearParams& l = s.p.linear;
  extern __shared__ __align__(16) uint8_t shared[];
  auto* squares = reinterpret_cast<float*>(shared);        // [kBlockRows][kWarps]
  float* factors = squares + kBlockRows * kWarps;          // [kBlockRows] 1 / rms
  float* partials = factors + kBlockRows;                  // [slots][kWarps][rows][kColumns]
  auto* input = reinterpret_cast<Bf16*>(partials + size_t{s.slots} * kWarps * s.rows * kColumns);
  auto* norm = reinterpret_cast<float*>(input + (kShared ? size_t{s.rows} * s.input_stride : 0));

  let_successor_start();
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t g = threadIdx.x % kWarp / 4;
  const uint32_t t = threadIdx.x % 4;
  const bool grouped = s.p.group_offsets != nullptr;
  const uint32_t k_pieces = (l.k + kPiece - 1) / kPiece;
  const bool gated = l.output == LinearOutput::kGatedBf16;

  const Bf16* weights = l.weights;
  uint32_t first_row = 0;
  uint32_t rows = l.m;
  if (grouped) {
    // Which rows an expert has is a result of the kernels before.
    wait_for_predecessor();
    const int32_t begin = __ldcg(s.p.group_offsets + blockIdx.y);
    const int32_t count = __ldcg(s.p.group_offsets + blockIdx.y + 1) - begin;
    const auto skip = static_cast<int32_t>(blockIdx.z * kBlockRows);
    if (count <= skip) return;
    first_row = static_cast<uint32_t>(begin + skip);
    rows = min(static_cast<uint32_t>(count - skip), kBlockRows);
    weights = s.p.group_weights[blockIdx.y];
  }

  const uint32_t my_tiles = blockIdx.x < s.tiles ? (s.tiles - blockIdx.x - 1) / gridDim.x + 1 : 0;
  const uint32_t total = my_tiles * s.pieces;

  // The side that loads: runs ahead of the side that multiplies by kUnits units.
  uint4 ring[kUnits][kTilesN][2];
  uint32_t load_index = 0;
  uint32_t load_piece = 0;
  uint32_t load_tile = blockIdx.x;
  const Bf16* load_row[kTilesN];
  auto aim = [&] {
#pragma unroll
    for (int r = 0; r < kTilesN; ++r) {
      load_row[r] = weights + size_t{weight_row<kTilesN>(l, load_tile, static_cast<uint32_t>(r) * 8 + g)} * l.k + 8 * t;
    }
  };
  aim();
  auto load = [&](uint4(&unit)[kTilesN][2]) {
    if (load_index >= total) return;
    const uint32_t k = (warp + kWarps * load_piece) * kPiece;
#pragma unroll
    for (int r = 0; r < kTilesN; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const bool inside = k + 32 * h + 8 * t < l.k;
        unit[r][h] = inside ? load_stream(load_row[r] + k + 32 * h) : uint4{0, 0, 0, 0};
      }
    }
    ++load_index;
    if (++load_piece == s.pieces) {
      load_piece = 0;
      load_tile += gridDim.x;
      aim();
    }
  };
#pragma unroll
  for (int u = 0; u < kUnits; ++u) load(ring[u]);

  const bool normed = l.x_f32 != nullptr;
  if (kShared && normed) {
    for (uint32_t i = threadIdx.x; i < l.k / 4; i += kThreads) {
      reinterpret_cast<float4*>(norm)[i] = __ldg(reinterpret_cast<const float4*>(l.norm_weight) + i);
    }
    __syncthreads();
  }
  if (!grouped) wait_for_predecessor();

  // A flush writes results [0, slots * rows * columns); the residual of a thread's first one is fetched early.
  const uint32_t columns = gated ? kColumns / 2 : kColumns;
  const uint32_t columns_n = gated ? l.n / 2 : l.n;
  float before = 0.0F;
  const bool early = l.output == LinearOutput::kAddF32 && my_tiles <= s.slots && threadIdx.x < my_tiles * rows * columns;
  if (early) {
    const uint32_t slot = threadIdx.x / (rows * columns);
    const uint32_t column = (blockIdx.x + slot * gridDim.x) * columns + threadIdx.x % columns;
    const uint32_t row = threadIdx.x / columns % rows;
    if (column < columns_n) before = __ldcg(static_cast<const float*>(l.y) + size_t{first_row + row} * l.y_stride + column);
  }

  auto input_row = [&](uint32_t row) {
    const uint32_t at = first_row + row;
    return s.p.pair_of != nullptr ? static_cast<uint32_t>(__ldcg(s.p.pair_of + at)) / s.p.chosen : at;
  };
  const Bf16* x_rows[2 * kTilesM];
  if constexpr (kShared) {
    if (normed) {
      stage_normed(l, rows, s.input_stride, norm, input, squares);
    } else {
      const uint32_t chunks = k_pieces * (kPiece / 8);
      for (uint32_t i = threadIdx.x; i < rows * chunks; i += kThreads) {
        const uint32_t row = i / chunks;
        const uint32_t k = i % chunks * 8;
        const auto* from = reinterpret_cast<const uint4*>(l.x + size_t{input_row(row)} * l.x_stride + k);
        *reinterpret_cast<uint4*>(input + size_t{row} * s.input_stride + k) = k < l.k ? __ldcg(from) : uint4{0, 0, 0, 0};
      }
    }
    __syncthreads();
    if (normed && threadIdx.x < rows) {
      float sum = 0.0F;
      for (int i = 0; i < kWarps; ++i) sum += squares[threadIdx.x * kWarps + i];
      factors[threadIdx.x] = rsqrtf(sum / static_cast<float>(l.k) + l.eps);
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * kTilesM; ++i) {
    const uint32_t row = min(static_cast<uint32_t>(i) * 8 + g, rows - 1);
    x_rows[i] = kShared ? input + size_t{row} * s.input_stride + 8 * t : l.x + size_t{input_row(row)} * l.x_stride + 8 * t;
  }

  float sums[kTilesM][kTilesN][4] = {};
  uint32_t piece = 0;
  uint32_t slot = 0;
  uint32_t flushed = 0;  // tiles
  for (uint32_t index = 0; index < total;) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (index >= total) break;
      const uint32_t at = warp + kWarps * piece;
      if (at < k_pieces) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint4 x[2 * kTilesM];
#pragma unroll
          for (int i = 0; i < 2 * kTilesM; ++i) {
            const uint32_t k = at * kPiece + 32 * h;
            const bool there = static_cast<uint32_t>(i) * 8 + g < rows && (kShared || k + 8 * t < l.k);
            x[i] = there ? *reinterpret_cast<const uint4*>(x_rows[i] + k) : uint4{0, 0, 0, 0};
          }
#pragma unroll
          for (int r = 0; r < kTilesN; ++r) {
            const uint4 w = ring[u][r][h];
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
              mma_16x8x16(sums[i][r], x[2 * i].x, x[2 * i + 1].x, x[2 * i].y, x[2 * i + 1].y, w.x, w.y);
              mma_16x8x16(sums[i][r], x[2 * i].z, x[2 * i + 1].z, x[2 * i].w, x[2 * i + 1].w, w.z, w.w);
            }
          }
        }
      }
      load(ring[u]);
      ++index;
      if (++piece < s.pieces) continue;
      piece = 0;
#pragma unroll
      for (int i = 0; i < 2 * kTilesM; ++i) {
        const uint32_t row = static_cast<uint32_t>(i) * 8 + g;
        float* to = partials + ((size_t{slot} * kWarps + warp) * s.rows + row) * kColumns + 2 * t;
#pragma unroll
        for (int r = 0; r < kTilesN; ++r) {
          float* sum = sums[i / 2][r] + i % 2 * 2;
          if (row < rows) *reinterpret_cast<float2*>(to + r * 8) = {sum[0], sum[1]};
          sum[0] = sum[1] = 0.0F;
        }
      }
      ++slot;
    }
    if (index < total && slot + s.ends <= s.slots) continue;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < slot * rows * columns; i += kThreads) {
      const uint32_t tile = blockIdx.x + (flushed + i / (rows * columns)) * gridDim.x;
      const uint32_t row = i / columns % rows;
      const uint32_t c = i % columns;
      const uint32_t column = tile * columns + c;
      if (column >= columns_n) continue;
      const float* from = partials + (size_t{i / (rows * columns)} * kWarps * s.rows + row) * kColumns + c;
      auto total_of = [&](uint32_t offset, uint32_t weight) {
        float sum = 0.0F;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += from[size_t{s.rows} * kColumns * w + offset];
        if (normed) sum *= factors[row];
        return l.bias != nullptr ? sum + l.bias[weight] : sum;
      };
      float value = total_of(0, column);
      if (gated) {
        const float gate = l.activation == GatedActivation::kSilu ? silu(value) : gelu_tanh(value);
        value = gate * total_of(columns, columns_n + column);
      } else if (l.output == LinearOutput::kAddF32 && !(early && flushed == 0 && i == threadIdx.x)) {
        before = __ldcg(static_cast<const float*>(l.y) + size_t{first_row + row} * l.y_stride + column);
      }
      write_result(l, first_row + row, column, value, before);
    }
    __syncthreads();
    flushed += slot;
    slot = 0;
  }
}

template <int kTilesN, int kTilesM>
cudaError_t launch_tiles(SmallLinearParams p, const Launch& on) {
  constexpr uint32_t kColumns = 8 * kTilesN;
  const LinearParams& l = p.linear;
  const bool grouped = p.group_offsets != nullptr;
  Shape s{};
  s.tiles = (l.n + kColumns - 1) / kColumns;
  s.rows = grouped ? 16 * kTilesM : l.m;
  s.pieces = ((l.k + kPiece - 1) / kPiece + kWarps - 1) / kWarps;
  constexpr uint32_t kUnits = ring_units<kTilesN>();
  s.ends = (kUnits + s.pieces - 1) / s.pieces;
  const size_t slot_bytes = sizeof(float) * kWarps * s.rows * kColumns;
  s.slots = std::max(s.ends, static_cast<uint32_t>(kPartialsBytes / slot_bytes));
  s.input_stride = (l.k + kPiece - 1) / kPiece * kPiece + kInputPad;
  const size_t input_bytes = sizeof(Bf16) * s.rows * s.input_stride;
  const bool normed = l.x_f32 != nullptr;
  const bool shared = normed || input_bytes <= kMaxInputBytes;
  const uint32_t blocks = std::min(s.tiles, p.sms * p.blocks_per_sm);
  s.slots = std::min(s.slots, std::max(s.ends, (s.tiles + blocks - 1) / blocks));
  s.p = p;
  const size_t bytes = sizeof(float) * 16 * kTilesM * (kWarps + 1) + s.slots * slot_bytes +
                       (shared ? input_bytes : 0) + (normed ? sizeof(float) * l.k : 0);
  const dim3 grid(blocks, p.groups, grouped ? (l.m + 16 * kTilesM - 1) / (16 * kTilesM) : 1);
  return launch_kernel(shared ? linear_small_kernel<kTilesN, kTilesM, true> : linear_small_kernel<kTilesN, kTilesM, false>,
                       grid, kThreads, bytes, on, s);
}

}  // namespace

cudaError_t launch_linear_small(const SmallLinearParams& params, const Launch& on) {
  SmallLinearParams p = params;
  LinearParams& l = p.linear;
  const bool gated = l.output == LinearOutput::kGatedBf16;
  if (l.x_stride == 0) l.x_stride = l.k;
  if (l.y_stride == 0) l.y_stride = gated ? l.n / 2 : l.n;
  if (l.k % 8 != 0 || l.m == 0 || (p.group_offsets == nullptr && l.m > kMaxSmallRows)) return cudaErrorInvalidValue;
  if (l.m > 16 && p.group_offsets == nullptr) return launch_tiles<2, 2>(p, on);
  return gated ? launch_tiles<2, 1>(p, on) : launch_tiles<1, 1>(p, on);
}

}  // namespace dyn::native::cuda
