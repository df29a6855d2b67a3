// What every kernel's launch function takes, and the rules that all kernels keep.
//
//   Launch on{.stream = stream, .overlap = true};
//   if (cudaError_t e = launch_rms_norm({...}, on); e != cudaSuccess) ...
//
// A kernel has one struct of parameters, passed by value, and one launch function that only enqueues. Launch functions
// allocate nothing and read no device memory, so all of them may be captured into a CUDA graph; the shape of a grid
// depends on host values of the struct only, lengths and positions are read on the device.
//
// Overlap (programmatic dependent launch): with `overlap` a kernel may start while its predecessor on the stream still
// runs. Before it waits for the predecessor it reads only what the whole step leaves alone: weights, block tables,
// positions, context lengths, KV of earlier steps. Those must be in place before the first kernel of a chain starts:
// the first kernel after a copy or memset is launched without `overlap`.
//
// Numbers: weights, GEMM inputs and KV are bfloat16; residual stream, norms, softmax and accumulation are float.
// Vectors (norm weights, biases) are float. Addresses of rows that are read with 16-byte loads are multiples of 16
// bytes, so sizes that run along a row (hidden, intermediate, head_dim) are multiples of 8. Ownership: nothing is
// owned. Thread rules: any thread, with the stream's device current.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

namespace dyn::native::cuda {

// The bits of a bfloat16; spares users of these headers the CUDA ones.
using Bf16 = uint16_t;

struct Launch {
  cudaStream_t stream = nullptr;
  bool overlap = false;
};

}  // namespace dyn::native::cuda
