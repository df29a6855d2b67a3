#include "native/exec/cuda/load_cuda.h"

#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "native/exec/cuda/cuda_executor.h"

namespace dyn::native {
namespace {

double lap(std::chrono::steady_clock::time_point& last) {
  const auto now = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(now - std::exchange(last, now)).count();
}

}  // namespace

Result<LoadedCuda> load_cuda_executor(const CudaLoadOptions& options, const ModelConfig& config,
                                      const std::string& directory) {
  if (auto checked = check_cuda_model(config, options.limits); !checked) return checked.error();
  auto last = std::chrono::steady_clock::now();
  LoadedCuda loaded;
  auto device = CudaDevice::open({.index = options.device});
  if (!device) return device.error();
  loaded.device = device->facts();
  loaded.device_s = lap(last);

  const uint64_t wanted = lay_out_cuda_weights(config).bytes;
  const auto free = device->free_bytes();
  if (!free) return free.error();
  if (wanted > *free) {
    return Error{
        Code::kOverloaded,
        fmt::format("the weights need {} MiB and {} MiB are free on {}: choose a smaller model, or free the GPU",
                    wanted >> 20, *free >> 20, loaded.device.name)};
  }
  auto weights = upload_weights(*device, config, directory, options.format, options.progress);
  if (!weights) return weights.error();
  loaded.weight_bytes = weights->bytes;
  loaded.weights_s = lap(last);

  auto executor = make_cuda_executor(std::move(*device), config, *weights, options.limits,
                                     {.max_seq_len = options.max_seq_len, .choose_pages = options.choose_pages});
  if (!executor) return executor.error();
  loaded.executor = std::move(*executor);
  loaded.executor_s = lap(last);
  return loaded;
}

}  // namespace dyn::native
