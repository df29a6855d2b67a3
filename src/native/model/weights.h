// Weights: all parameters of a model in host memory, fused as executors want them: q, k and v rows under each other,
// gate and up rows under each other.
//
//   auto weights = load_weights(config, directory, LoadFormat::kSafetensors, [](uint64_t done, uint64_t total) { ...
//   }); weights->layers[0].qkv.rows == config.qkv_size();
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
// Ownership: Weights owns all memory and keeps no file open. Thread rules: immutable after loading; any thread may
// read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
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

// Zeroed, page-aligned memory that asks the kernel for huge pages; untouched parts cost nothing.
class HostArena {
 public:
  HostArena() = default;
  static Result<HostArena> allocate(uint64_t bytes);
  HostArena(HostArena&& other) noexcept;
  HostArena& operator=(HostArena&& other) noexcept;
  ~HostArena();
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] uint64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

struct Weights {
  Matrix embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  Vector final_norm = nullptr;  // [hidden]
  Matrix lm_head;               // [vocab, hidden]; the embedding itself when tied

  HostArena memory;  // what everything above points into

  MatrixLayout layout = MatrixLayout::kRowMajor;  // of the matrices that are multiplied with

  [[nodiscard]] uint64_t bytes() const { return memory.size(); }
};

enum class LoadFormat : uint8_t {
  kSafetensors,
  kDummy,  // no files: repeatable random BF16 values, the same on every machine; for benchmarks and tests
};

// Called now and then on the loading thread, at last with done == total.
using LoadProgress = std::function<void(uint64_t bytes_done, uint64_t bytes_total)>;

// `directory` is not read with kDummy. Missing, superfluous and mis-shaped tensors are errors that name the tensor.
Result<Weights> load_weights(const ModelConfig& config, const std::string& directory, LoadFormat format,
                             const LoadProgress& progress = {}, MatrixLayout layout = MatrixLayout::kRowMajor);

}  // namespace dyn::native
