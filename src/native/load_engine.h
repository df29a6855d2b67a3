// From a model directory or name to a native engine on this machine's GPU or CPU.
//
//   auto loaded = load_engine({.model = "Qwen/Qwen3-0.6B", .max_batch_size = 32});
//   if (!loaded) return loaded.error();      // one line: what, and what to do
//   loaded->engine->start(observer);         // runs a warm-up request
//
// Everything that can be refused is refused before weights are read. Nothing is downloaded. Zero means "choose" where
// a member says so. Ownership: the caller owns the result. Thread rules: call from one thread; reads the environment.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "engine/engine.h"
#include "native/exec/cpu/cpu_path.h"
#include "native/model/model_config.h"
#include "native/model/weights.h"
#include "native/native_engine.h"

namespace dyn::native {

// kAuto: the GPU when the CUDA module loads, a usable GPU is there and its kernels can do what is asked; else the CPU.
enum class DeviceChoice : uint8_t { kAuto, kCpu, kCuda };

struct LoadOptions {
  std::string model;  // directory, or the name of a model in the Hugging Face cache
  // Folder that build_engine made. Empty: the model's own files, or with kAuto the model directory itself if it is such
  // a folder and has no others.
  std::string engine_dir;
  LoadFormat load_format = LoadFormat::kAuto;
  DeviceChoice device = DeviceChoice::kAuto;
  CpuPathChoice cpu_path = CpuPathChoice::kAuto;
  WeightDtype weight_dtype = WeightDtype::kAuto;

  uint32_t max_batch_size = 64;
  uint32_t max_num_tokens = 0;  // of a step; longer prompts are computed in chunks; 0: 512 on a CPU, 8192 on a GPU
  uint32_t max_seq_len = 0;     // prompt and answer; 0: what the model was made for

  uint32_t tokens_per_block = 32;
  uint64_t kv_cache_bytes = 0;       // size of the KV pool; 0: kv_cache_fraction of the memory left
                                     // after loading and for activations
  double kv_cache_fraction = 0.5;    // in (0, 1); of a CPU's memory
  double gpu_memory_fraction = 0.9;  // the same of a GPU's; 1 allowed
  uint64_t kv_cache_max_tokens = 0;  // an upper limit of the pool besides; 0: none
  unsigned threads = 0;              // 0: one a core that this process may use
  bool progress_bar = false;         // drawn on standard error while loading; else a log line now and then

  uint32_t tensor_parallel_size = 1;  // more than 1 of these three is refused
  uint32_t pipeline_parallel_size = 1;
  uint32_t expert_parallel_size = 1;

  NativeEngineOptions engine;
};

// From nothing to an engine that has computed its first token, each part by itself.
struct StartTimes {
  double config_s = 0;   // the model found, config.json read
  double map_s = 0;      // weight files opened, mapped, headers read and checked
  double pack_s = 0;     // weights brought into memory in the order that products read them; of an engine folder 0
  double kv_s = 0;       // KV pool and buffers allocated, threads started
  double warm_up_s = 0;  // a first token: every weight is read once

  [[nodiscard]] double total_s() const { return config_s + map_s + pack_s + kv_s + warm_up_s; }
};

struct LoadedEngine {
  std::unique_ptr<engine::Engine> engine;
  ModelConfig config;
  std::string directory;  // of config.json and tokenizer
  CpuPath cpu_path = CpuPath::kOracle;
  uint64_t weight_bytes = 0;  // as they are in memory
  StartTimes times;
  bool on_gpu = false;
};

Result<LoadedEngine> load_engine(const LoadOptions& options);

// Pages of the KV pool for these options when `free_bytes` are left after loading.
Result<uint32_t> kv_pages(const LoadOptions& options, uint32_t max_seq_len, uint64_t bytes_per_page,
                          uint64_t free_bytes);

}  // namespace dyn::native
