// Device and pinned memory as values, CUDA's error codes as an exception of the module.
//
//   auto x = DeviceMemory<float>::allocate(tokens * hidden, "activations");
//   check(cudaMemsetAsync(x.data(), 0, x.bytes(), stream), "clearing x");
//
// Fault never leaves the module: the functions of api.cc turn it into a Status. Ownership: unique. Thread rules: any
// thread with the device current.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "native/exec/executor_abi.h"

namespace dyn::native::cuda {

struct Fault {
  Status status = Status::kFailed;
  std::string text;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears what can be cleared
  throw Fault{error == cudaErrorMemoryAllocation ? Status::kNoMemory : Status::kFailed,
              std::string(what) + ": " + cudaGetErrorString(error)};
}

template <class T, bool kPinned>
class Memory {
 public:
  Memory() = default;
  static Memory allocate(size_t count, const char* what) {
    Memory memory;
    if (count == 0) return memory;
    void* at = nullptr;
    const cudaError_t error = kPinned ? cudaMallocHost(&at, count * sizeof(T)) : cudaMalloc(&at, count * sizeof(T));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw Fault{Status::kNoMemory, std::string(what) + ": no room for " + std::to_string((count * sizeof(T)) >> 20) +
                                         (kPinned ? " MiB of pinned host memory" : " MiB on the GPU")};
    }
    check(error, what);
    memory.data_ = static_cast<T*>(at);
    memory.count_ = count;
    return memory;
  }
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Memory() {
    if (data_ != nullptr) kPinned ? cudaFreeHost(data_) : cudaFree(data_);
  }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] size_t count() const { return count_; }
  [[nodiscard]] size_t bytes() const { return count_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

template <class T>
using DeviceMemory = Memory<T, false>;
template <class T>
using PinnedMemory = Memory<T, true>;

// A CUDA event without timing.
class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "event"); }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace dyn::native::cuda
