// Weights: all parameters of a model in host memory, fused as executors want them: q, k and v rows under each other,
// gate and up rows under each other.
//
//   auto weights = load_weights(config, directory, {.format = LoadFormat::kSafetensors, .threads = 8});
//   weights->layers[0].qkv.rows == config.qkv_size();
//
// Types: matrices keep the type of the checkpoint (BF16, F16 or F32, all matrices the same one), bit for bit; executors
// widen while they multiply. Vectors (norms, biases) become F32, which is exact for all three; where a model multiplies
// with 1 + weight the 1 is added.
//
// Layout: row-major [out, in] as stored, or packed (matrix.h), straight from the mapped file into the memory of the
// weights: nothing is held twice. A packed layout is given to BF16 checkpoints; of other types it becomes row-major.
// With INT8 an expert router stays BF16. An embedding is packed where it is the LM head too, else row-major: rows are
// all that is read of it. Every matrix starts at a multiple of 64 bytes.
//
// Ownership: Weights owns all memory; unless it is that of an engine folder, no file is kept. Thread rules: immutable
// after loading; any thread may read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "native/model/host_arena.h"
#include "native/model/matrix.h"
#include "native/model/model_config.h"
#include "native/model/safetensors.h"

namespace dyn::native {

// F32; null where the model has none.
using Vector = const float*;

struct ExpertWeights {
  Matrix gate_up;  // [2 moe intermediate, hidden]
  Matrix down;     // [hidden, moe intermediate]
};

struct LayerWeights {
  Vector attention_norm = nullptr;       // [hidden]
  Matrix qkv;                            // [q_size + 2 kv_size, hidden]
  Vector qkv_bias = nullptr;             // [q_size + 2 kv_size]
  Vector q_norm = nullptr;               // [head_dim]
  Vector k_norm = nullptr;               // [head_dim]
  Matrix o;                              // [hidden, q_size]
  Vector o_bias = nullptr;               // [hidden]
  Vector post_attention_norm = nullptr;  // [hidden] of attention's output
  Vector mlp_norm = nullptr;             // [hidden]
  Matrix gate_up;                        // [2 intermediate, hidden]
  Vector gate_up_bias = nullptr;         // [2 intermediate]
  Matrix down;                           // [hidden, intermediate]
  Vector down_bias = nullptr;            // [hidden]
  Vector post_mlp_norm = nullptr;        // [hidden] of the feed-forward network's output

  // Instead of gate_up and down in a layer with experts.
  Matrix router;  // [experts, hidden]
  std::vector<ExpertWeights> experts;
};

struct Weights {
  Matrix embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  Vector final_norm = nullptr;  // [hidden]
  Matrix lm_head;               // [vocab, hidden]; the embedding itself when tied

  HostArena memory;    // what everything above points into,
  MappedFile mapping;  // or the file of an engine folder

  MatrixLayout layout = MatrixLayout::kRowMajor;  // of the matrices that are multiplied with

  [[nodiscard]] uint64_t bytes() const { return memory.size() + mapping.bytes().size(); }
};

enum class LoadFormat : uint8_t {
  kAuto,  // what the directory holds; to load_weights the same as kSafetensors
  kSafetensors,
  kDummy,  // no files: repeatable random BF16 values, the same on every machine; for benchmarks and tests
};

// Called now and then on the loading thread, at last with done == total.
using LoadProgress = std::function<void(uint64_t bytes_done, uint64_t bytes_total)>;

// Where the time went.
struct LoadTimes {
  double map_s = 0;   // files opened, headers read and checked against the configuration
  double pack_s = 0;  // memory filled
};

struct LoadWeightsOptions {
  LoadFormat format = LoadFormat::kSafetensors;
  MatrixLayout layout = MatrixLayout::kRowMajor;
  unsigned threads = 1;  // that fill the memory, the caller included; placed as those of the executor
  LoadProgress progress = {};
  LoadTimes* times = nullptr;  // written if not null
};

// `directory` is not read with kDummy. Missing, superfluous and mis-shaped tensors are errors that name the tensor. The
// values do not depend on the number of threads. Files are mapped, and their pages leave the process once they are
// read: it never holds much more than the weights.
Result<Weights> load_weights(const ModelConfig& config, const std::string& directory,
                             const LoadWeightsOptions& options = {});

}  // namespace dyn::native
