#include "native/exec/cuda/cuda_device.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <string_view>
#include <utility>

#include "base/log.h"

namespace dyn::native {
namespace {

constexpr const char* kModule = "libdynamo_exec_cuda.so";

std::string program_directory() {
  char path[4096];
  const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path);
  if (size <= 0) return ".";
  const std::string_view program(path, static_cast<size_t>(size));
  return std::string(program.substr(0, program.rfind('/')));
}

Result<const cuda::ExecutorApi*> open_module(const std::string& path) {
  void* module = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr)
    return Error{Code::kUnavailable, fmt::format("the CUDA module cannot be loaded: {}", ::dlerror())};
  using Entry = const cuda::ExecutorApi* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(module, cuda::kExecutorEntry));
  if (entry == nullptr)
    return Error{Code::kUnavailable, fmt::format("{} is no executor module: {}", path, ::dlerror())};
  const cuda::ExecutorApi* api = entry();
  if (api->struct_size != sizeof(cuda::ExecutorApi) ||
      std::string_view(api->build_id) != std::string_view(DYN_EXECUTOR_BUILD_ID)) {
    return Error{Code::kUnavailable, fmt::format("{} is of build {}, this program is of build {}: use the module that "
                                                 "came with it",
                                                 path, api->build_id, DYN_EXECUTOR_BUILD_ID)};
  }
  return api;
}

void log_line(void*, int32_t level, const char* text) {
  log::write(static_cast<log::Level>(std::clamp(level, 0, 4)), "engine", text);
}

constexpr cuda::HostCalls kHostCalls{.struct_size = sizeof(cuda::HostCalls), .user = nullptr, .log = log_line};

}  // namespace

Result<const cuda::ExecutorApi*> load_cuda_module(const std::string& path) {
  static std::mutex mutex;
  static const cuda::ExecutorApi* loaded = nullptr;
  const std::lock_guard lock(mutex);
  if (loaded != nullptr && path.empty()) return loaded;
  std::string place = path;
  if (place.empty()) {
    const std::string directory = program_directory();
    const std::string candidates[] = {directory + "/" + kModule, directory + "/../lib/dynamo-trtllm/" + kModule};
    for (const std::string& candidate : candidates) {
      if (::access(candidate.c_str(), R_OK) == 0) {
        place = candidate;
        break;
      }
    }
    if (place.empty()) {
      return Error{Code::kUnavailable, fmt::format("this build has no CUDA module: neither {} nor {} is there",
                                                   candidates[0], candidates[1])};
    }
  }
  auto api = open_module(place);
  if (!api) return api.error();
  loaded = *api;
  return loaded;
}

Result<void> CudaDevice::check(cuda::Status status, const cuda::ErrorText& error, const char* what) {
  Code code = Code::kInternal;
  switch (status) {
    case cuda::Status::kOk:
      return {};
    case cuda::Status::kNoDevice:
      code = Code::kUnavailable;
      break;
    case cuda::Status::kNoMemory:
      code = Code::kOverloaded;
      break;
    case cuda::Status::kFailed:
      break;
  }
  return Error{code,
               fmt::format("{}: {}", what, std::string_view(error.text, ::strnlen(error.text, sizeof error.text)))};
}

Result<CudaDevice> CudaDevice::open(const Options& options) {
  const cuda::ExecutorApi* api = options.api;
  if (api == nullptr) {
    auto module = load_cuda_module();
    if (!module) return module.error();
    api = *module;
  }
  cuda::ErrorText error{};
  cuda::DeviceFacts facts{};
  facts.struct_size = sizeof facts;
  if (auto done = check(api->probe(options.index, &facts, &error), error, "GPU"); !done) return done.error();
  cuda::Device* handle = nullptr;
  if (auto done = check(api->open(&kHostCalls, options.index, &handle, &error), error, "GPU"); !done)
    return done.error();
  return CudaDevice(api, handle, facts);
}

CudaDevice::CudaDevice(CudaDevice&& other) noexcept
    : api_(other.api_), handle_(std::exchange(other.handle_, nullptr)), facts_(other.facts_) {}

CudaDevice& CudaDevice::operator=(CudaDevice&& other) noexcept {
  std::swap(api_, other.api_);
  std::swap(handle_, other.handle_);
  std::swap(facts_, other.facts_);
  return *this;
}

CudaDevice::~CudaDevice() {
  if (handle_ != nullptr) api_->close(handle_);
}

Result<uint64_t> CudaDevice::free_bytes() const {
  cuda::ErrorText error{};
  uint64_t free = 0;
  uint64_t total = 0;
  if (auto done = check(api_->memory(handle_, &free, &total, &error), error, "GPU memory"); !done) return done.error();
  return free;
}

Result<cuda::DeviceFacts> probe_cuda(int32_t index) {
  auto module = load_cuda_module();
  if (!module) return module.error();
  cuda::ErrorText error{};
  cuda::DeviceFacts facts{};
  facts.struct_size = sizeof facts;
  if (auto done = CudaDevice::check((*module)->probe(index, &facts, &error), error, "GPU"); !done) return done.error();
  return facts;
}

}  // namespace dyn::native
