// CudaDevice: one GPU behind the executor module, with errors as Results.
//
//   auto device = CudaDevice::open({.index = 0});       // loads libdynamo_exec_cuda.so beside the worker
//   if (!device) return device.error();                 // one line: no module, no driver, no GPU, too old
//   device->facts().name;
//   device->check(device->api().reserve_weights(device->handle(), bytes, device->error_text()), "weights");
//
// The worker links no CUDA: everything goes through the function table of executor_abi.h. The module is opened
// RTLD_NOW | RTLD_LOCAL once a process and never closed. Ownership: CudaDevice owns the module's handle; memory on the
// device lives as long as it. Thread rules: as the function table's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "native/exec/executor_abi.h"

namespace dyn::native {

// The function table of the module: of this build, or an error that says what was looked for where. `path` empty:
// libdynamo_exec_cuda.so beside the program, then in ../lib/dynamo-trtllm. Later calls give the first success.
Result<const cuda::ExecutorApi*> load_cuda_module(const std::string& path = {});

class CudaDevice {
 public:
  struct Options {
    int32_t index = 0;                       // as CUDA numbers devices (CUDA_VISIBLE_DEVICES holds)
    const cuda::ExecutorApi* api = nullptr;  // for tests; null: load_cuda_module()
  };
  static Result<CudaDevice> open(const Options& options);
  CudaDevice(CudaDevice&& other) noexcept;
  CudaDevice& operator=(CudaDevice&& other) noexcept;
  ~CudaDevice();

  [[nodiscard]] const cuda::ExecutorApi& api() const { return *api_; }
  [[nodiscard]] cuda::Device* handle() const { return handle_; }
  [[nodiscard]] const cuda::DeviceFacts& facts() const { return facts_; }
  [[nodiscard]] Result<uint64_t> free_bytes() const;

  // An Error of the status, or nothing when it is kOk.
  static Result<void> check(cuda::Status status, const cuda::ErrorText& error, const char* what);

 private:
  CudaDevice(const cuda::ExecutorApi* api, cuda::Device* handle, const cuda::DeviceFacts& facts)
      : api_(api), handle_(handle), facts_(facts) {}

  const cuda::ExecutorApi* api_ = nullptr;
  cuda::Device* handle_ = nullptr;
  cuda::DeviceFacts facts_{};
};

// Whether a GPU that the module can use is there; the error says why not. Takes no memory on it.
Result<cuda::DeviceFacts> probe_cuda(int32_t index = 0);

}  // namespace dyn::native
