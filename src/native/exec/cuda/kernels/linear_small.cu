#include "native/exec/cuda/kernels/linear_small.h"

#include <algorithm>
#include <type_traits>

#include "native/exec/cuda/kernels/async.cuh"
#include "native/exec/cuda/kernels/tensor_map.h"

namespace dyn::native::cuda {
namespace {

constexpr uint32_t kWarps = 8;
constexpr uint32_t kThreads = kWarps * kWarp;
constexpr uint32_t kPiece = 64;                            // of k, for one warp at a time: 128 bytes of a row
constexpr uint32_t kChunk = kWarps * kPiece;               // of k, for the block
constexpr uint32_t kInputPad = 8;                          // elements; puts neighbouring rows into different banks
constexpr uint32_t kConsumers = 1;                         // name of the multiplying warps' barrier
constexpr uint32_t kBoxBytes = 8 * kChunk * sizeof(Bf16);  // 8 rows of a chunk, which the copy engine brings at once
constexpr size_t kRingBytes = 80 * 1024;
constexpr uint32_t kMaxStages = kRingBytes / kBoxBytes;
constexpr uint32_t kRingTiles = 10;  // pieces of 8 rows of weights that a warp has in flight, 1 KB each
constexpr size_t kPartialsBytes = 16 * 1024;
constexpr size_t kAllShared = 226 * 1024;

// What the host works out for a launch.
struct Shape {
  SmallLinearParams p;
  uint32_t tiles;         // of n
  uint32_t rows;          // of input, at most; the first dimension of partial sums
  uint32_t input_stride;  // elements of a row in shared memory
  uint32_t chunks;        // of k
  uint32_t slots;         // tiles whose partial sums fit
  uint32_t stages;        // of the ring
  CUtensorMap map;        // of the weights: 64 of k, rows, k / 64
};

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

// bf16 rows into shared memory.
__device__ __forceinline__ void stage_plain(const Shape& s, uint32_t first_row, uint32_t rows, Bf16* input) {
  const LinearParams& l = s.p.linear;
  const uint32_t pieces = (l.k + kPiece - 1) / kPiece * (kPiece / 8);
  // Many loads in flight: their latency is all there is to it.
  constexpr uint32_t kBatch = 8;
  const uint32_t all = rows * pieces;
  for (uint32_t base = threadIdx.x; base < all; base += kBatch * kThreads) {
    uint4 x[kBatch];
#pragma unroll
    for (uint32_t j = 0; j < kBatch; ++j) {
      const uint32_t i = base + j * kThreads;
      x[j] = {0, 0, 0, 0};
      if (i >= all || i % pieces * 8 >= l.k) continue;
      const uint32_t at = first_row + i / pieces;
      const uint32_t from = s.p.pair_of != nullptr ? static_cast<uint32_t>(__ldcg(s.p.pair_of + at)) / s.p.chosen : at;
      x[j] = __ldcg(reinterpret_cast<const uint4*>(l.x + size_t{from} * l.x_stride) + i % pieces);
    }
#pragma unroll
    for (uint32_t j = 0; j < kBatch; ++j) {
      const uint32_t i = base + j * kThreads;
      if (i < all) *reinterpret_cast<uint4*>(input + size_t{i / pieces} * s.input_stride + i % pieces * 8) = x[j];
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

// Where 16-byte chunk `chunk` of line `line` lies in 8 lines of 128 bytes, swizzled as the copy engine does it. A
// quarter of a warp that reads every other chunk of two lines meets no bank twice.
__device__ __forceinline__ uint32_t swizzled(uint32_t line, uint32_t chunk) {
  return line * 128 + (chunk ^ (line % 8)) * 16;
}

// The weights of one warp on their way, copied by the warp itself: for any k and for weights of experts, of which the
// host does not know which are needed. A unit is 8 kTilesN rows of 128 bytes.
template <int kTilesN>
class CopiedWeights {
 public:
  static constexpr uint32_t kUnits = kRingTiles / kTilesN;
  static constexpr uint32_t kUnitBytes = kTilesN * 8 * 128;

  __device__ CopiedWeights(const Shape& shape, const Bf16* weights, uint8_t* ring)
      : s_(shape), weights_(weights), ring_(ring + threadIdx.x / kWarp * (kUnits * kUnitBytes)), tile_(blockIdx.x) {
    const uint32_t lane = threadIdx.x % kWarp;
    chunk_at_ = lane % 8;
    aim();
    for (uint32_t u = 0; u < kUnits; ++u) fetch(u);
  }

  // Waits for the next unit; fragment(r, h) reads it until next() is called.
  __device__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kUnits - 1) : "memory");
    __syncwarp();
  }
  __device__ uint4 fragment(uint32_t r, uint32_t h) const {
    const uint32_t g = threadIdx.x % kWarp / 4;
    return *reinterpret_cast<const uint4*>(ring_ + unit_ * kUnitBytes + swizzled(r * 8 + g, threadIdx.x % 4 * 2 + h));
  }
  __device__ void next() {
    __syncwarp();
    fetch(unit_);
    if (++unit_ == kUnits) unit_ = 0;
  }

 private:
  // Rows of this lane in the tile: 4 j + lane / 8.
  __device__ void aim() {
    const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
    for (uint32_t j = 0; j < 2 * kTilesN; ++j) {
      row_[j] = weights_ +
                size_t{weight_row<kTilesN>(s_.p.linear, min(tile_, s_.tiles - 1), 4 * j + lane / 8)} * s_.p.linear.k;
    }
  }
  // Past the end nothing is copied, but groups are counted on.
  __device__ void fetch(uint32_t unit) {
    const uint32_t lane = threadIdx.x % kWarp;
    if (tile_ < s_.tiles) {
      const uint32_t k = (part_ * kWarps + threadIdx.x / kWarp) * kPiece + chunk_at_ * 8;
      const uint32_t bytes = k < s_.p.linear.k ? 16 : 0;
      const uint32_t from = bytes != 0 ? k : 0;
#pragma unroll
      for (uint32_t j = 0; j < 2 * kTilesN; ++j) {
        const uint32_t row = 4 * j + lane / 8;
        const uint32_t to = shared_address(ring_ + unit * kUnitBytes + swizzled(row, chunk_at_));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(row_[j] + from), "r"(bytes)
                     : "memory");
      }
      if (++part_ == s_.chunks) {
        part_ = 0;
        tile_ += gridDim.x;
        aim();
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  const Shape& s_;
  const Bf16* weights_;
  uint8_t* ring_;
  const Bf16* row_[2 * kTilesN];
  uint32_t chunk_at_;
  uint32_t tile_;
  uint32_t part_ = 0;
  uint32_t unit_ = 0;
};

// The weights of the block on their way, fetched by the copy engine. A stage is kTilesN boxes of 8 rows of a chunk, in
// a box 8 rows of 128 bytes for each warp. One thread of a ninth warp fetches, the others read as of CopiedWeights.
template <int kTilesN>
class FetchedWeights {
 public:
  __device__ FetchedWeights(uint32_t stages, uint8_t* ring, uint64_t* full, uint64_t* empty)
      : stages_(stages), ring_(ring), full_(full), empty_(empty) {}

  __device__ static void init(uint32_t stages, uint64_t* full, uint64_t* empty) {
    for (uint32_t i = 0; i < stages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, kWarps);
    }
    barrier_init_done();
  }

  __device__ void fetch_all(const Shape& s) {
    const uint64_t policy = evict_first_policy();
    const LinearParams& l = s.p.linear;
    const bool gated = l.output == LinearOutput::kGatedBf16;
    for (uint32_t tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
      for (uint32_t chunk = 0; chunk < s.chunks; ++chunk) {
        barrier_wait(empty_ + stage_, phase_ ^ 1);
        barrier_expect(full_ + stage_, kTilesN * kBoxBytes);
#pragma unroll
        for (uint32_t r = 0; r < kTilesN; ++r) {
          // Gated tiles are two boxes, one of gate rows and one of up rows.
          const uint32_t row = gated ? r * (l.n / 2) + tile * 8 : (tile * kTilesN + r) * 8;
          copy_tensor(ring_ + (stage_ * kTilesN + r) * kBoxBytes, &s.map, 0, static_cast<int32_t>(row),
                      static_cast<int32_t>(chunk * kWarps), full_ + stage_, policy);
        }
        advance();
      }
    }
  }

  __device__ void wait() { barrier_wait(full_ + stage_, phase_); }
  __device__ uint4 fragment(uint32_t r, uint32_t h) const {
    const uint32_t g = threadIdx.x % kWarp / 4;
    return *reinterpret_cast<const uint4*>(ring_ + (stage_ * kTilesN + r) * kBoxBytes + threadIdx.x / kWarp * 1024 +
                                           swizzled(g, threadIdx.x % 4 * 2 + h));
  }
  __device__ void next() {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(empty_ + stage_);
    advance();
  }

 private:
  __device__ void advance() {
    if (++stage_ < stages_) return;
    stage_ = 0;
    phase_ ^= 1;
  }

  uint32_t stages_;
  uint8_t* ring_;
  uint64_t* full_;
  uint64_t* empty_;
  uint32_t stage_ = 0;
  uint32_t phase_ = 0;
};

template <int kTilesN, int kTilesM, bool kFetched>
__global__ void __launch_bounds__(kThreads + (kFetched ? kWarp : 0), 2)
    linear_small_kernel(const __grid_constant__ Shape s) {
  constexpr uint32_t kColumns = 8 * kTilesN;
  constexpr uint32_t kBlockRows = 16 * kTilesM;
  const LinearParams& l = s.p.linear;
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages];
  __shared__ uint64_t empty[kMaxStages];
  uint8_t* ring = shared;
  auto* squares = reinterpret_cast<float*>(ring + kRingBytes);  // [kBlockRows][kWarps]
  float* factors = squares + kBlockRows * kWarps;               // [kBlockRows] 1 / rms
  float* partials = factors + kBlockRows;                       // [slots][kWarps][rows][kColumns]
  auto* input = reinterpret_cast<Bf16*>(partials + size_t{s.slots} * kWarps * s.rows * kColumns);
  auto* norm = reinterpret_cast<float*>(input + size_t{s.rows} * s.input_stride);

  const bool grouped = s.p.group_offsets != nullptr;
  const Bf16* weights = l.weights;
  uint32_t first_row = 0;
  uint32_t rows = l.m;
  if (grouped) {
    // Which rows an expert has is a result of the kernels before.
    wait_for_predecessor();
    let_successor_start();
    const int32_t begin = __ldcg(s.p.group_offsets + blockIdx.y);
    const int32_t count = __ldcg(s.p.group_offsets + blockIdx.y + 1) - begin;
    const auto skip = static_cast<int32_t>(blockIdx.z * kBlockRows);
    if (count <= skip) return;
    first_row = static_cast<uint32_t>(begin + skip);
    rows = min(static_cast<uint32_t>(count - skip), kBlockRows);
    weights = s.p.group_weights[blockIdx.y];
  }
  using Stream = std::conditional_t<kFetched, FetchedWeights<kTilesN>, CopiedWeights<kTilesN>>;
  auto make_stream = [&] {
    if constexpr (kFetched) {
      if (threadIdx.x == 0) Stream::init(s.stages, full, empty);
      __syncthreads();
      return Stream(s.stages, ring, full, empty);
    } else {
      return Stream(s, weights, ring);
    }
  };
  Stream stream = make_stream();
  if constexpr (kFetched) {
    if (threadIdx.x >= kThreads) {
      if (threadIdx.x == kThreads) stream.fetch_all(s);
      return;
    }
  }

  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t g = threadIdx.x % kWarp / 4;
  const uint32_t t = threadIdx.x % 4;
  const bool gated = l.output == LinearOutput::kGatedBf16;
  const bool normed = l.x_f32 != nullptr;
  const uint32_t my_tiles = (s.tiles - blockIdx.x - 1) / gridDim.x + 1;
  if (normed) {
    for (uint32_t i = threadIdx.x; i < l.k / 4; i += kThreads) {
      reinterpret_cast<float4*>(norm)[i] = __ldg(reinterpret_cast<const float4*>(l.norm_weight) + i);
    }
    named_barrier(kConsumers, kThreads);
  }
  if (!grouped) {
    wait_for_predecessor();
    // Not before: now every multiprocessor has one block of this kernel and room for one of the next. Blocks that start
    // while the kernel before still holds some multiprocessors pile up on the others.
    let_successor_start();
  }

  // A flush writes results [0, slots * rows * columns); the residual of a thread's first one is fetched early.
  const uint32_t columns = gated ? kColumns / 2 : kColumns;
  const uint32_t columns_n = gated ? l.n / 2 : l.n;
  float before = 0.0F;
  const bool early =
      l.output == LinearOutput::kAddF32 && my_tiles <= s.slots && threadIdx.x < my_tiles * rows * columns;
  if (early) {
    const uint32_t slot = threadIdx.x / (rows * columns);
    const uint32_t column = (blockIdx.x + slot * gridDim.x) * columns + threadIdx.x % columns;
    const uint32_t row = threadIdx.x / columns % rows;
    if (column < columns_n)
      before = __ldcg(static_cast<const float*>(l.y) + size_t{first_row + row} * l.y_stride + column);
  }

  if (normed) {
    stage_normed(l, rows, s.input_stride, norm, input, squares);
  } else {
    stage_plain(s, first_row, rows, input);
  }
  named_barrier(kConsumers, kThreads);
  if (normed && threadIdx.x < rows) {
    float sum = 0.0F;
    for (uint32_t i = 0; i < kWarps; ++i) sum += squares[threadIdx.x * kWarps + i];
    factors[threadIdx.x] = rsqrtf(sum / static_cast<float>(l.k) + l.eps);
  }

  float sums[kTilesM][kTilesN][4] = {};
  const Bf16* my_input = input + size_t{g} * s.input_stride + warp * kPiece + 16 * t;
  uint32_t slot = 0;
  uint32_t flushed = 0;  // tiles
  for (uint32_t tile = 0; tile < my_tiles; ++tile) {
    for (uint32_t chunk = 0; chunk < s.chunks; ++chunk) {
      stream.wait();
      if (chunk * kChunk + warp * kPiece < l.k) {
        uint4 w[2][kTilesN];
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
#pragma unroll
          for (uint32_t r = 0; r < kTilesN; ++r) w[h][r] = stream.fragment(r, h);
        }
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
#pragma unroll
          for (uint32_t i = 0; i < kTilesM; ++i) {
            uint4 x[2] = {};
#pragma unroll
            for (uint32_t j = 0; j < 2; ++j) {
              const uint32_t row = i * 16 + j * 8;
              if (row + g < rows) {
                x[j] = *reinterpret_cast<const uint4*>(my_input + row * s.input_stride + chunk * kChunk + 8 * h);
              }
            }
#pragma unroll
            for (uint32_t r = 0; r < kTilesN; ++r) {
              mma_16x8x16(sums[i][r], x[0].x, x[1].x, x[0].y, x[1].y, w[h][r].x, w[h][r].y);
              mma_16x8x16(sums[i][r], x[0].z, x[1].z, x[0].w, x[1].w, w[h][r].z, w[h][r].w);
            }
          }
        }
      }
      stream.next();
    }
#pragma unroll
    for (uint32_t i = 0; i < 2 * kTilesM; ++i) {
      const uint32_t row = i * 8 + g;
      float* to = partials + ((size_t{slot} * kWarps + warp) * s.rows + row) * kColumns + 2 * t;
#pragma unroll
      for (uint32_t r = 0; r < kTilesN; ++r) {
        float* sum = sums[i / 2][r] + i % 2 * 2;
        if (row < rows) *reinterpret_cast<float2*>(to + r * 8) = {sum[0], sum[1]};
        sum[0] = sum[1] = 0.0F;
      }
    }
    ++slot;
    if (tile + 1 < my_tiles && slot < s.slots) continue;
    named_barrier(kConsumers, kThreads);
    for (uint32_t i = threadIdx.x; i < slot * rows * columns; i += kThreads) {
      const uint32_t c = i % columns;
      const uint32_t row = i / columns % rows;
      const uint32_t from_slot = i / columns / rows;
      const uint32_t column = (blockIdx.x + (flushed + from_slot) * gridDim.x) * columns + c;
      if (column >= columns_n) continue;
      const float* from = partials + (size_t{from_slot} * kWarps * s.rows + row) * kColumns + c;
      auto total_of = [&](uint32_t offset, uint32_t weight) {
        float sum = 0.0F;
#pragma unroll
        for (uint32_t w = 0; w < kWarps; ++w) sum += from[size_t{s.rows} * kColumns * w + offset];
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
    if (tile + 1 < my_tiles) named_barrier(kConsumers, kThreads);
    flushed += slot;
    slot = 0;
  }
}

// False when the input does not fit into shared memory beside a ring of a useful size.
template <int kTilesN, int kTilesM, bool kFetched>
bool plan(const SmallLinearParams& p, Shape& s, size_t& bytes) {
  constexpr uint32_t kColumns = 8 * kTilesN;
  const LinearParams& l = p.linear;
  s.p = p;
  s.tiles = (l.n + kColumns - 1) / kColumns;
  s.rows = p.group_offsets != nullptr ? std::min(l.m, 16U * kTilesM) : l.m;
  s.chunks = (l.k + kChunk - 1) / kChunk;
  s.input_stride = (l.k + kPiece - 1) / kPiece * kPiece + kInputPad;
  const size_t slot_bytes = sizeof(float) * kWarps * s.rows * kColumns;
  const uint32_t my_tiles = (s.tiles + p.sms - 1) / p.sms;
  s.slots = std::min(my_tiles, std::max(1U, static_cast<uint32_t>(kPartialsBytes / slot_bytes)));
  const size_t fixed = sizeof(float) * 16 * kTilesM * (kWarps + 1) + s.slots * slot_bytes +
                       sizeof(Bf16) * s.rows * s.input_stride + (l.x_f32 != nullptr ? sizeof(float) * l.k : 0);
  // Never less than a third of a multiprocessor's memory, see let_successor_start.
  s.stages = kMaxStages / kTilesN;
  bytes = fixed + kRingBytes;
  return bytes <= kAllShared;
}

template <int kTilesN, int kTilesM, bool kFetched>
cudaError_t launch_tiles(const SmallLinearParams& p, const Launch& on) {
  Shape s{};
  size_t bytes = 0;
  if (!plan<kTilesN, kTilesM, kFetched>(p, s, bytes)) return cudaErrorNotSupported;
  const LinearParams& l = p.linear;
  if (kFetched) {
    const cudaError_t error = describe_tensor<3>(
        s.map, l.weights,
        {.sizes = {kPiece, l.n, l.k / kPiece}, .strides = {l.k * sizeof(Bf16), 128}, .box = {kPiece, 8, kWarps}});
    if (error != cudaSuccess) return error;
  }
  const bool grouped = p.group_offsets != nullptr;
  const dim3 grid(std::min(s.tiles, p.sms), p.groups, grouped ? (l.m + 16 * kTilesM - 1) / (16 * kTilesM) : 1);
  return launch_kernel(linear_small_kernel<kTilesN, kTilesM, kFetched>, grid, kThreads + (kFetched ? kWarp : 0), bytes,
                       on, s);
}

// Share of the machine that is busy when every multiprocessor takes turns at tiles of `rows` weights.
double balance(uint32_t n, uint32_t rows, uint32_t sms) {
  const uint32_t tiles = (n + rows - 1) / rows;
  return static_cast<double>(tiles) / (static_cast<double>((tiles + sms - 1) / sms) * sms);
}

SmallLinearParams with_strides(SmallLinearParams p) {
  LinearParams& l = p.linear;
  if (l.x_stride == 0) l.x_stride = l.k;
  if (l.y_stride == 0) l.y_stride = l.output == LinearOutput::kGatedBf16 ? l.n / 2 : l.n;
  return p;
}

}  // namespace

cudaError_t launch_linear_small(const SmallLinearParams& params, const Launch& on) {
  const SmallLinearParams p = with_strides(params);
  const LinearParams& l = p.linear;
  const bool grouped = p.group_offsets != nullptr;
  if (l.k % 8 != 0 || l.m == 0 || (!grouped && l.m > kMaxSmallRows)) return cudaErrorInvalidValue;
  if (grouped || l.k % kPiece != 0)
    return l.m > 16 && !grouped ? cudaErrorNotSupported : launch_tiles<2, 1, false>(p, on);
  if (l.m > 16) return launch_tiles<2, 2, true>(p, on);
  const bool wide = l.output == LinearOutput::kGatedBf16 || balance(l.n, 16, p.sms) + 0.02 > balance(l.n, 8, p.sms);
  return wide ? launch_tiles<2, 1, true>(p, on) : launch_tiles<1, 1, true>(p, on);
}

bool linear_small_fits(const SmallLinearParams& params) {
  Shape s{};
  size_t bytes = 0;
  if (params.linear.k % kPiece != 0) return params.linear.m <= 16 && plan<2, 1, false>(params, s, bytes);
  return params.linear.m <= 16 ? plan<2, 1, true>(params, s, bytes) : plan<2, 2, true>(params, s, bytes);
}

}  // namespace dyn::native::cuda
