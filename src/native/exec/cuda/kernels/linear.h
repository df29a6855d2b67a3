// Linear: y = norm(x) W^T + bias for any number of rows, with what comes before and after fused where that is faster.
//
//   Linear linear;                                   // owns a cuBLASLt handle and its workspace
//   if (cudaError_t e = linear.init(); e != cudaSuccess) ...
//   linear.run({.x_f32 = x, .norm_weight = w, .eps = eps, .weights = qkv, .m = t, .n = qkv_size, .k = hidden,
//               .output = LinearOutput::kBf16, .y = qkv_out, .y_stride = qkv_size, .scratch = scratch}, on);
//
// Paths, chosen by m (measured crossovers in linear.cu):
//   small   m <= 16 (32): weights stream from memory straight into tensor-core registers, K split over the warps of a
//           block, 8 rows of weights a tile; RMSNorm of the input fused for few rows; bias, residual add and gated
//           activation in the epilogue. Bytes: 2 n k. Goal: 90 % of read bandwidth for matrices of 30 MB and more.
//   large   cuBLASLt on bfloat16 with float accumulation; norm before and gated activation after are kernels of their
//   own.
// kAddF32 adds to y (the residual stream), on every path. The result of a row depends on the path, on the small path
// not on the other rows. Ownership: Linear owns handle, workspace and algorithm cache, callers everything else. Thread
// rules: one thread. Weights row-major [n][k] as in safetensors, k a multiple of 8.
#pragma once

#include <memory>

#include "native/exec/cuda/kernels/elementwise.h"
#include "native/exec/cuda/kernels/launch.h"

namespace dyn::native::cuda {

enum class LinearOutput : uint8_t {
  kBf16,       // y bf16 [m][n]
  kF32,        // y float [m][n]
  kAddF32,     // y float [m][n] += result
  kGatedBf16,  // y bf16 [m][n / 2]: weights are gate rows, then up rows
};

struct LinearParams {
  // Either bf16 input ...
  const Bf16* x = nullptr;  // [m][x_stride]
  size_t x_stride = 0;      // elements; 0: k
  // ... or float input that is normed first; row r of the input is x_f32 row input_rows[r].
  const float* x_f32 = nullptr;         // [..][k]
  const float* norm_weight = nullptr;   // [k]
  const int32_t* input_rows = nullptr;  // [m] or null
  float eps = 1e-6F;

  const Bf16* weights = nullptr;  // [n][k]
  const float* bias = nullptr;    // [n] or null
  uint32_t m = 0;
  uint32_t n = 0;
  uint32_t k = 0;
  LinearOutput output = LinearOutput::kBf16;
  GatedActivation activation = GatedActivation::kSilu;
  void* y = nullptr;
  size_t y_stride = 0;      // elements; 0: n, for kGatedBf16 n / 2
  Bf16* scratch = nullptr;  // linear_scratch_elements(); not shared with another Linear in flight
};

// Room for the normed input and the result before a gated activation, in bfloat16 elements.
size_t linear_scratch_elements(uint32_t max_m, uint32_t max_k, uint32_t max_gated_n);

class Linear {
 public:
  enum class Path : uint8_t { kAuto, kSmall, kLarge };

  Linear();
  ~Linear();
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  // Of the current device. `fixed_algorithm`: cuBLASLt's first choice always (the same bits in every process);
  // otherwise tune() may pick others.
  cudaError_t init(bool fixed_algorithm = true);

  // Times cuBLASLt's candidates for this shape (its device pointers must be valid; y is overwritten, kAddF32's y too)
  // and keeps the best. Synchronises; not during capture. No effect with fixed_algorithm or on the small path.
  cudaError_t tune(const LinearParams& params, const Launch& on);

  cudaError_t run(const LinearParams& params, const Launch& on, Path path = Path::kAuto);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dyn::native::cuda
