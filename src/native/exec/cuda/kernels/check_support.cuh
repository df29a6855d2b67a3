// What kernel checks and benchmarks share: device buffers, random inputs, comparison, timing.
//
//   Device<float> y(1000);            // poisoned: every byte 0xFF, so an element that nobody wrote is NaN
//   Device<Bf16> w = random_bf16(rng, n * k, 0.05F);
//   report("linear m=3", relative_error(y.host(), expected), 1e-2);
//
// For programs, not for the library: an error of CUDA ends the process with a message.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "native/exec/cuda/kernels/launch.h"

namespace dyn::native::cuda {

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

template <class T>
class Device {
 public:
  explicit Device(size_t count = 0) : count_(count) {
    if (count == 0) return;
    require(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
    require(cudaMemset(data_, 0xFF, count * sizeof(T)), "cudaMemset");
  }
  explicit Device(const std::vector<T>& from) : Device(from.size()) { put(from); }
  Device(Device&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  Device& operator=(Device&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Device() { cudaFree(data_); }
  void put(const std::vector<T>& from) {
    require(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  void clear() { require(cudaMemset(data_, 0, count_ * sizeof(T)), "cudaMemset"); }
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> to(count_);
    require(cudaDeviceSynchronize(), "kernels");
    require(cudaMemcpy(to.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy to the host");
    return to;
  }
  T* get() const { return data_; }
  [[nodiscard]] size_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

inline float widen(Bf16 x) {
  const uint32_t bits = uint32_t{x} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline Bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<Bf16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

using Rng = std::mt19937_64;

inline std::vector<float> random_floats(Rng& rng, size_t count, float deviation, float mean = 0.0F) {
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> v(count);
  for (float& x : v) x = normal(rng);
  return v;
}
inline std::vector<Bf16> random_bf16(Rng& rng, size_t count, float deviation) {
  std::vector<Bf16> v(count);
  std::normal_distribution<float> normal(0.0F, deviation);
  for (Bf16& x : v) x = narrow(normal(rng));
  return v;
}
inline std::vector<float> widen(const std::vector<Bf16>& from) {
  std::vector<float> to(from.size());
  std::transform(from.begin(), from.end(), to.begin(), [](Bf16 x) { return widen(x); });
  return to;
}

// |out - expected| / |expected|; NaN anywhere gives NaN.
inline double relative_error(const std::vector<float>& out, const std::vector<double>& expected) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(out[i]) - expected[i];
    difference += d * d;
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

// Counts failures of the whole program.
inline int& failures() {
  static int count = 0;
  return count;
}
inline void report(const std::string& name, double error, double limit) {
  const bool good = error <= limit;  // false for NaN
  if (!good) ++failures();
  std::printf("%s %-64s error %.3g (limit %.3g)\n", good ? "ok  " : "FAIL", name.c_str(), error, limit);
}

// Median time of `repeats` runs in microseconds.
inline double median_us(cudaStream_t stream, int repeats, const std::function<void()>& run) {
  cudaEvent_t start;
  cudaEvent_t stop;
  require(cudaEventCreate(&start), "event");
  require(cudaEventCreate(&stop), "event");
  std::vector<float> times;
  run();
  for (int i = 0; i < repeats; ++i) {
    require(cudaEventRecord(start, stream), "event");
    run();
    require(cudaEventRecord(stop, stream), "event");
    require(cudaEventSynchronize(stop), "kernels");
    float ms = 0.0F;
    require(cudaEventElapsedTime(&ms, start, stop), "event");
    times.push_back(ms * 1e3F);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<size_t>(repeats / 2)];
}

}  // namespace dyn::native::cuda
