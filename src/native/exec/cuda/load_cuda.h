// From a model directory to a CUDA executor: device, weights, activations, KV pool, graphs, in this order.
//
//   auto loaded = load_cuda_executor({.limits = limits, .max_seq_len = n, .choose_pages = pages}, config, directory);
//   loaded->executor->enqueue(plan);
//
// What cannot work (no module, no driver, no GPU of the right kind, a model the kernels do not know, too little memory)
// is one line, before weights are read where that can be known. Ownership: the caller owns the result. Thread rules:
// one thread, which the executor is used on afterwards.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "native/exec/cuda/cuda_device.h"
#include "native/exec/executor.h"
#include "native/model/model_config.h"
#include "native/model/weights.h"

namespace dyn::native {

struct CudaLoadOptions {
  int32_t device = 0;
  LoadFormat format = LoadFormat::kSafetensors;
  ExecutorLimits limits;  // num_pages counts where choose_pages is empty
  uint32_t max_seq_len = 0;
  // Pages of the KV pool when so many bytes are left on the device.
  std::function<Result<uint32_t>(uint64_t free_bytes)> choose_pages;
  LoadProgress progress;
};

struct LoadedCuda {
  std::unique_ptr<Executor> executor;
  cuda::DeviceFacts device{};
  uint64_t weight_bytes = 0;
  double device_s = 0;    // module and driver ready
  double weights_s = 0;   // on the device
  double executor_s = 0;  // activations, KV pool, graphs
};

Result<LoadedCuda> load_cuda_executor(const CudaLoadOptions& options, const ModelConfig& config,
                                      const std::string& directory);

}  // namespace dyn::native
