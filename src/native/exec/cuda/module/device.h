// Device: a GPU with one model on it. Weights, activations, KV pool, staging buffers, CUDA graphs, and the stream that
// all steps run on.
//
//   Device device(host, 0);
//   device.reserve_weights(bytes);  ... uploads ...
//   device.prepare(model, limits);  device.reserve_kv(pages, page_bytes);  device.capture(padding_step);
//   device.enqueue(step);  device.collect(step.flight);
//
// A step is: one copy of the staging buffer to the device, page copies and token counts where the plan has them, the
// forward pass with sampling (a CUDA graph when the step has a bucket), one copy of the results back. All on one
// stream, so that a step may read what the one before wrote (its tokens, its KV). There is one device copy of the
// staging area: graphs name fixed addresses, and the copy of step n + 1 follows step n on the stream. Ownership:
// everything on the device. Thread rules: one thread, except upload_buffer() and upload() (a slot each).
#pragma once

#include <memory>
#include <vector>

#include "native/exec/cuda/kernels/linear.h"
#include "native/exec/cuda/module/forward.h"
#include "native/exec/cuda/module/memory.h"
#include "native/exec/executor_abi.h"

namespace dyn::native::cuda {

// Facts of a usable GPU; throws Fault with kNoDevice.
DeviceFacts probe_device(int32_t index);

struct Device {
 public:
  Device(const HostCalls& host, int32_t index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  static constexpr uint32_t kUploadSlots = 16;
  static constexpr size_t kUploadBytes = size_t{8} << 20;

  void reserve_weights(uint64_t bytes);
  void* upload_buffer(uint32_t slot);
  void upload(uint32_t slot, uint64_t offset, uint64_t bytes);
  void finish_uploads();

  void prepare(const ModelSpec& model, const StepLimits& limits);
  void reserve_kv(uint32_t num_pages, uint64_t page_bytes);
  void capture(const StagedStep& step);
  void* staging(uint32_t flight);

  void enqueue(const StagedStep& step);
  StepOutcome collect(uint32_t flight);
  void read_logits(bool of_tokens, const uint32_t* indices, uint32_t count, float* to);
  double measure_read(uint64_t buffer_bytes);

  void make_current() const;

 private:
  struct UploadSlot {
    PinnedMemory<std::byte> buffer;
    Event done;
  };
  struct Flight {
    PinnedMemory<std::byte> staging;
    PinnedMemory<std::byte> results;
    Event done;
    uint32_t num_samples = 0;
    bool any_top = false;
    bool pending = false;
  };
  struct Graph {
    uint32_t rows = 0;
    cudaGraphExec_t exec = nullptr;
  };

  StepPointers pointers(const StagedStep& step) const;
  const Graph* graph_of(const StagedStep& step) const;

  HostCalls host_;
  int32_t index_;
  cudaStream_t stream_ = nullptr;
  cudaStream_t upload_stream_ = nullptr;
  DeviceMemory<std::byte> weights_;
  std::vector<UploadSlot> uploads_;
  std::unique_ptr<Forward> forward_;
  StepLimits limits_{};
  size_t staging_bytes_ = 0;
  DeviceMemory<std::byte> staged_;
  DeviceMemory<std::byte> kv_;
  uint64_t page_bytes_ = 0;
  std::vector<Flight> flights_;
  std::vector<Graph> graphs_;
  StagedStep last_{};
};

}  // namespace dyn::native::cuda
