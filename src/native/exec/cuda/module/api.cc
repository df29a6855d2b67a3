// The module's function table: every function makes the device current, turns a Fault into a Status and lets nothing
// else out.
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>

#include "native/exec/cuda/module/device.h"
#include "native/exec/executor_abi.h"

namespace dyn::native::cuda {
namespace {

void say(ErrorText* error, const char* text) {
  if (error == nullptr) return;
  const size_t size = std::min(std::strlen(text), sizeof error->text - 1);
  std::memcpy(error->text, text, size);
  error->text[size] = '\0';
}

template <class Body>
Status guarded(ErrorText* error, const Body& body) noexcept {
  try {
    body();
    return Status::kOk;
  } catch (const Fault& fault) {
    say(error, fault.text.c_str());
    return fault.status;
  } catch (const std::bad_alloc&) {
    say(error, "no host memory is left");
    return Status::kNoMemory;
  } catch (const std::exception& e) {
    say(error, e.what());
    return Status::kFailed;
  }
}

// The device may be used from another thread than the one that opened it.
template <class Body>
Status on_device(Device* device, ErrorText* error, const Body& body) noexcept {
  return guarded(error, [&] {
    device->make_current();
    body(*device);
  });
}

Status probe(int32_t index, DeviceFacts* facts, ErrorText* error) {
  return guarded(error, [&] { *facts = probe_device(index); });
}

Status open(const HostCalls* host, int32_t index, Device** handle, ErrorText* error) {
  return guarded(error, [&] {
    probe_device(index);
    *handle = new Device(*host, index);
  });
}

void close(Device* handle) {
  delete handle;
}

Status memory(Device* handle, uint64_t* free_bytes, uint64_t* total_bytes, ErrorText* error) {
  return on_device(handle, error, [&](Device&) {
    size_t free = 0;
    size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "GPU memory");
    *free_bytes = free;
    *total_bytes = total;
  });
}

uint32_t upload_slots(Device*) {
  return Device::kUploadSlots;
}

Status reserve_weights(Device* handle, uint64_t bytes, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.reserve_weights(bytes); });
}

Status upload_buffer(Device* handle, uint32_t slot, void** buffer, uint64_t* capacity, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) {
    *buffer = device.upload_buffer(slot);
    *capacity = Device::kUploadBytes;
  });
}

Status upload(Device* handle, uint32_t slot, uint64_t offset, uint64_t bytes, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.upload(slot, offset, bytes); });
}

Status finish_uploads(Device* handle, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.finish_uploads(); });
}

Status prepare(Device* handle, const ModelSpec* model, const StepLimits* limits, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.prepare(*model, *limits); });
}

Status reserve_kv(Device* handle, uint32_t num_pages, uint64_t page_bytes, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.reserve_kv(num_pages, page_bytes); });
}

Status capture(Device* handle, const StagedStep* step, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.capture(*step); });
}

Status staging(Device* handle, uint32_t flight, void** buffer, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { *buffer = device.staging(flight); });
}

Status enqueue(Device* handle, const StagedStep* step, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.enqueue(*step); });
}

Status collect(Device* handle, uint32_t flight, StepOutcome* outcome, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { *outcome = device.collect(flight); });
}

Status read_logits(Device* handle, uint32_t of_tokens, const uint32_t* indices, uint32_t count, float* to,
                   ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { device.read_logits(of_tokens != 0, indices, count, to); });
}

Status measure_read(Device* handle, uint64_t buffer_bytes, double* bytes_per_s, ErrorText* error) {
  return on_device(handle, error, [&](Device& device) { *bytes_per_s = device.measure_read(buffer_bytes); });
}

constexpr ExecutorApi kApi{
    .struct_size = sizeof(ExecutorApi),
    .build_id = DYN_EXECUTOR_BUILD_ID,
    .probe = probe,
    .open = open,
    .close = close,
    .memory = memory,
    .upload_slots = upload_slots,
    .reserve_weights = reserve_weights,
    .upload_buffer = upload_buffer,
    .upload = upload,
    .finish_uploads = finish_uploads,
    .prepare = prepare,
    .reserve_kv = reserve_kv,
    .capture = capture,
    .staging = staging,
    .enqueue = enqueue,
    .collect = collect,
    .read_logits = read_logits,
    .measure_read = measure_read,
};

}  // namespace
}  // namespace dyn::native::cuda

extern "C" __attribute__((visibility("default"))) const dyn::native::cuda::ExecutorApi* dyn_executor_api() {
  return &dyn::native::cuda::kApi;
}
