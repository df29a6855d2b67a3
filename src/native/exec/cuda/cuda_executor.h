// The CUDA executor: bfloat16 weights and KV on one NVIDIA GPU, driven through the executor module. Pipeline depth 2:
// the host plans a step while the device works on the one before, whose tokens the device resolves itself.
//
//   auto device = CudaDevice::open({});
//   auto weights = upload_weights(*device, config, directory, LoadFormat::kSafetensors, progress);
//   auto executor = make_cuda_executor(std::move(*device), config, *weights, limits,
//                                      {.max_seq_len = 4096, .choose_pages = pages_of_free_bytes});
//
// Steps of decode rows alone replay CUDA graphs, one for each bucket of batch sizes, sampling included; others are
// launched kernel by kernel. Sampling is done on the device, with two exceptions that the host's Sampler does from
// copied logits: rows with bad words, and rows that want more alternatives than the device's sampler gives. Such a step
// is not overlapped with the next, and neither is one with prompt log-probabilities, which the host scores too.
//
// Numbers: residual stream, norms, softmax, logits in F32; inputs of products and KV in bfloat16. A row's result is
// close to the CPU executor's, not equal, and may change in the last bits with the batch (other kernels are faster
// there). KV page, one contiguous piece of cuda_kv_bytes_per_page(): for each layer the keys [kv head][token][dim],
// then the values likewise. Ownership: the executor owns device, weights and KV. Thread rules: one thread (see
// executor.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.h"
#include "native/exec/cuda/cuda_device.h"
#include "native/exec/cuda/cuda_weights.h"
#include "native/exec/executor.h"
#include "native/model/model_config.h"

namespace dyn::native {

struct CudaExecutorOptions {
  uint32_t max_seq_len = 0;  // longest context of a row
  // Pages of the KV pool when so many bytes are free on the device, activations taken off; instead of limits.num_pages.
  std::function<Result<uint32_t>(uint64_t free_bytes)> choose_pages;
  bool graphs = true;  // false: every step is launched kernel by kernel (for tests)
};

Result<std::unique_ptr<Executor>> make_cuda_executor(CudaDevice device, const ModelConfig& config,
                                                     const CudaWeights& weights, ExecutorLimits limits,
                                                     const CudaExecutorOptions& options);

// Size of one page of the KV pool, all layers.
uint64_t cuda_kv_bytes_per_page(const ModelConfig& config, uint32_t tokens_per_block);

// What the kernels cannot do of a model and of limits; before weights are read.
Result<void> check_cuda_model(const ModelConfig& config, const ExecutorLimits& limits);

}  // namespace dyn::native
