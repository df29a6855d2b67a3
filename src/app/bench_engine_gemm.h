// What the executor's products reach at most, by number of rows: with weights that stay in the caches, so that only
// arithmetic counts.
//
//   auto peaks = measure_gemm({.threads = 2, .path = CpuPath::kFast, .cols = 1024, .rows = {1, 8, 512}, .seconds =
//   0.05}); peaks[0].kernels;  peaks[0].flops_per_s;
//
// One figure for each instruction set of the path that this machine has and each number of rows: the best of some
// passes, every thread multiplying with a matrix of its own. Thread rules: any one thread; the threads it starts have
// ended when it returns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "native/exec/cpu/cpu_executor.h"

namespace dyn::app::bench {

struct GemmOptions {
  unsigned threads = 1;
  native::CpuPath path = native::CpuPath::kFast;
  native::MatrixLayout layout = native::MatrixLayout::kPackedBf16;
  uint32_t cols = 1024;        // of the weights, a multiple of 16: the model's hidden size
  std::vector<uint32_t> rows;  // of activations
  double seconds = 0.05;       // for each figure
};

struct GemmPeak {
  std::string kernels;
  uint32_t rows = 0;
  double flops_per_s = 0;
};

Result<std::vector<GemmPeak>> measure_gemm(const GemmOptions& options);

}  // namespace dyn::app::bench
