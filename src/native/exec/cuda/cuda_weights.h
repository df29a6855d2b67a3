// Weights on the device: where each matrix and vector lies in one arena, and the way there.
//
//   auto weights = upload_weights(device, config, directory, LoadFormat::kSafetensors, progress);
//   weights->layers[0].qkv;      // byte offset into the arena
//
// Matrices are bfloat16 (F16 and F32 checkpoints are rounded to nearest even), vectors F32; q, k, v and gate, up are
// fused as in Weights; a layer's experts lie one behind the other, so that each kind of matrix is one array. Files are
// mapped and copied piece by piece through pinned buffers by several threads: the host never holds the model. Dummy
// weights have the CPU's values. Ownership: offsets only; the device owns the memory. Thread rules: blocks the caller;
// progress is called on its thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "native/exec/cuda/cuda_device.h"
#include "native/exec/executor_abi.h"
#include "native/model/model_config.h"
#include "native/model/weights.h"

namespace dyn::native {

struct CudaWeights {
  uint64_t bytes = 0;  // of the arena
  uint64_t embedding = 0;
  uint64_t final_norm = 0;
  uint64_t lm_head = 0;
  std::vector<cuda::LayerSpec> layers;
};

// Where everything goes; pure.
CudaWeights lay_out_cuda_weights(const ModelConfig& config);

Result<CudaWeights> upload_weights(const CudaDevice& device, const ModelConfig& config, const std::string& directory,
                                   LoadFormat format, const LoadProgress& progress = {});

}  // namespace dyn::native
