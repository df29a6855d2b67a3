#include "native/model/weights.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "base/posix.h"

namespace dyn::native {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kHugePage = 2u << 20;
constexpr uint64_t kProgressBytes = 64u << 20;

// One tensor of a checkpoint, and how many rows (or elements) it adds to what it is a part of.
struct Part {
  std::string name;
  uint64_t rows = 0;
};

// A matrix or vector of the model with the tensors it is fused from, top to bottom.
struct Target {
  Matrix* matrix = nullptr;
  Vector* vector = nullptr;
  uint64_t cols = 1;
  float offset = 0.0F;       // added to a vector's values
  bool read_by_row = false;  // never multiplied with
  bool exact = false;        // not to be made INT8
  std::vector<Part> parts;

  [[nodiscard]] uint64_t rows() const {
    uint64_t sum = 0;
    for (const Part& part : parts) sum += part.rows;
    return sum;
  }
  [[nodiscard]] std::vector<uint64_t> shape(const Part& part) const {
    return matrix != nullptr ? std::vector{part.rows, cols} : std::vector{part.rows};
  }
};

// Everything the model has, in the order it lies in memory and is read by a forward pass.
std::vector<Target> targets_of(const ModelConfig& config, Weights& weights) {
  const uint64_t hidden = config.hidden_size;
  const uint64_t q = config.q_size();
  const uint64_t kv = config.kv_size();
  const uint64_t inner = config.intermediate_size;
  std::vector<Target> targets;
  auto matrix = [&](Matrix& to, uint64_t cols, std::vector<Part> parts) {
    targets.push_back({.matrix = &to, .cols = cols, .parts = std::move(parts)});
  };
  auto vector = [&](Vector& to, std::vector<Part> parts) {
    targets.push_back({.vector = &to, .parts = std::move(parts)});
  };

  auto norm = [&](Vector& to, std::string name, uint64_t size) {
    vector(to, {{std::move(name), size}});
    if (config.norm_plus_one) targets.back().offset = 1.0F;
  };

  matrix(weights.embedding, hidden, {{"model.embed_tokens.weight", config.vocab_size}});
  targets.back().read_by_row = !config.tie_embeddings;
  weights.layers.resize(config.num_layers);
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::string at = fmt::format("model.layers.{}.", i);
    const std::string attention = at + "self_attn.";
    const std::string mlp = at + "mlp.";
    auto qkv = [&](const char* kind) {
      if (config.stored_fused) return std::vector<Part>{{attention + "qkv_proj." + kind, q + 2 * kv}};
      return std::vector<Part>{
          {attention + "q_proj." + kind, q}, {attention + "k_proj." + kind, kv}, {attention + "v_proj." + kind, kv}};
    };
    auto gate_up = [&](const char* kind) {
      if (config.stored_fused) return std::vector<Part>{{mlp + "gate_up_proj." + kind, 2 * inner}};
      return std::vector<Part>{{mlp + "gate_proj." + kind, inner}, {mlp + "up_proj." + kind, inner}};
    };
    norm(layer.attention_norm, at + "input_layernorm.weight", hidden);
    matrix(layer.qkv, hidden, qkv("weight"));
    if (config.qkv_bias) vector(layer.qkv_bias, qkv("bias"));
    if (config.qk_norm) norm(layer.q_norm, attention + "q_norm.weight", config.head_dim);
    if (config.qk_norm) norm(layer.k_norm, attention + "k_norm.weight", config.head_dim);
    matrix(layer.o, q, {{attention + "o_proj.weight", hidden}});
    if (config.o_bias) vector(layer.o_bias, {{attention + "o_proj.bias", hidden}});
    if (config.post_norms) {
      norm(layer.post_attention_norm, at + "post_attention_layernorm.weight", hidden);
      norm(layer.mlp_norm, at + "pre_feedforward_layernorm.weight", hidden);
      norm(layer.post_mlp_norm, at + "post_feedforward_layernorm.weight", hidden);
    } else {
      norm(layer.mlp_norm, at + "post_attention_layernorm.weight", hidden);
    }
    if (config.layer(i).experts) {
      const uint64_t size = config.experts.intermediate_size;
      matrix(layer.router, hidden, {{mlp + "gate.weight", config.experts.count}});
      targets.back().exact = true;
      layer.experts.resize(config.experts.count);
      for (size_t e = 0; e < layer.experts.size(); ++e) {
        const std::string expert = fmt::format("{}experts.{}.", mlp, e);
        matrix(layer.experts[e].gate_up, hidden,
               {{expert + "gate_proj.weight", size}, {expert + "up_proj.weight", size}});
        matrix(layer.experts[e].down, size, {{expert + "down_proj.weight", hidden}});
      }
      continue;
    }
    matrix(layer.gate_up, hidden, gate_up("weight"));
    if (config.mlp_bias) vector(layer.gate_up_bias, gate_up("bias"));
    matrix(layer.down, inner, {{mlp + "down_proj.weight", hidden}});
    if (config.mlp_bias) vector(layer.down_bias, {{mlp + "down_proj.bias", hidden}});
  }
  norm(weights.final_norm, "model.norm.weight", hidden);
  if (!config.tie_embeddings) matrix(weights.lm_head, hidden, {{"lm_head.weight", config.vocab_size}});
  return targets;
}

// The layout of a target's matrix in a model whose matrices are to have `layout`.
MatrixLayout layout_of(const Target& target, MatrixLayout layout) {
  if (target.read_by_row) return MatrixLayout::kRowMajor;
  return target.exact && layout == MatrixLayout::kPackedInt8 ? MatrixLayout::kPackedBf16 : layout;
}

// Reserves the memory and points the weights into it.
Result<void> place(const std::vector<Target>& targets, DataType matrices, MatrixLayout layout, Weights& weights) {
  const bool possible = std::ranges::all_of(targets, [&](const Target& target) {
    return target.matrix == nullptr || can_have(layout, matrices, target.cols);
  });
  weights.layout = possible ? layout : MatrixLayout::kRowMajor;
  uint64_t total = 0;
  auto take = [&](uint64_t bytes) {
    const uint64_t at = total;
    total += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  std::vector<uint64_t> offsets;
  for (const Target& target : targets) {
    if (target.matrix == nullptr) {
      offsets.push_back(take(target.rows() * sizeof(float)));
      continue;
    }
    *target.matrix = {.layout = layout_of(target, weights.layout),
                      .type = matrices,
                      .rows = static_cast<uint32_t>(target.rows()),
                      .cols = static_cast<uint32_t>(target.cols)};
    offsets.push_back(take(target.matrix->bytes()));
  }
  auto memory = HostArena::allocate(total);
  if (!memory) return memory.error().with_context("weights");
  weights.memory = std::move(*memory);
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::byte* at = weights.memory.data() + offsets[i];
    if (targets[i].matrix != nullptr) {
      targets[i].matrix->data = at;
    } else {
      *targets[i].vector = reinterpret_cast<const float*>(at);
    }
  }
  return {};
}

// Only the loader writes to weights.
float* values_of(const Target& target) {
  return const_cast<float*>(*target.vector);
}

// Of all matrices in a checkpoint; what is reported as progress.
uint64_t checkpoint_bytes(const std::vector<Target>& targets) {
  uint64_t bytes = 0;
  for (const Target& target : targets) {
    if (target.matrix != nullptr) bytes += target.rows() * target.cols * size_of(target.matrix->type);
  }
  return bytes;
}

class Progress {
 public:
  Progress(const LoadProgress& report, uint64_t total) : report_(report), total_(total) {}
  void add(uint64_t bytes) {
    done_ += bytes;
    if (report_ && done_ < total_ && done_ - reported_ >= kProgressBytes) report_(reported_ = done_, total_);
  }
  void finish() const {
    if (report_) report_(total_, total_);
  }

 private:
  const LoadProgress& report_;
  uint64_t total_;
  uint64_t done_ = 0;
  uint64_t reported_ = 0;
};

std::optional<DataType> data_type(std::string_view dtype) {
  for (DataType type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
    if (to_string(type) == dtype) return type;
  }
  return std::nullopt;
}

Error tensor_error(Code code, std::string_view name, const std::string& what) {
  return {code, fmt::format("tensor '{}': {}", name, what)};
}

// Tensors that say nothing new: a stored LM head of a tied model, rotary frequencies that old converters wrote.
bool may_be_ignored(const ModelConfig& config, std::string_view name) {
  return (config.tie_embeddings && name == "lm_head.weight") || name.ends_with(".rotary_emb.inv_freq");
}

// Names, shapes and types against what the configuration asks for; gives the one type of all matrices.
Result<DataType> check(const ModelConfig& config, const Checkpoint& checkpoint, const std::vector<Target>& targets) {
  std::optional<DataType> matrices;
  std::string_view first_matrix;
  std::set<std::string_view> wanted;
  for (const Target& target : targets) {
    for (const Part& part : target.parts) {
      wanted.insert(part.name);
      const StoredTensor* stored = checkpoint.find(part.name);
      if (stored == nullptr) {
        const bool head = part.name == "lm_head.weight";
        return tensor_error(Code::kInvalidArgument, part.name,
                            head ? "missing, and config.json does not say 'tie_word_embeddings': true" : "missing");
      }
      if (stored->shape != target.shape(part)) {
        return tensor_error(Code::kInvalidArgument, part.name,
                            fmt::format("shape [{}], config.json asks for [{}]", fmt::join(stored->shape, ", "),
                                        fmt::join(target.shape(part), ", ")));
      }
      const auto type = data_type(stored->dtype);
      if (!type) {
        return tensor_error(Code::kUnsupported, part.name,
                            fmt::format("dtype {} is not supported; supported: BF16, F16, F32", stored->dtype));
      }
      if (target.matrix == nullptr) continue;
      if (!matrices) {
        matrices = type;
        first_matrix = part.name;
      } else if (*matrices != *type) {
        return tensor_error(Code::kUnsupported, part.name,
                            fmt::format("dtype {} but '{}' has {}; all matrices must have one dtype", to_string(*type),
                                        first_matrix, to_string(*matrices)));
      }
    }
  }
  for (const auto& [name, stored] : checkpoint.tensors()) {
    if (!wanted.contains(name) && !may_be_ignored(config, name)) {
      return tensor_error(Code::kUnsupported, name, fmt::format("{} has no such tensor", config.architecture));
    }
  }
  if (config.tie_embeddings) {
    const StoredTensor* head = checkpoint.find("lm_head.weight");
    const StoredTensor* embedding = checkpoint.find("model.embed_tokens.weight");
    if (head != nullptr && !std::ranges::equal(head->bytes, embedding->bytes)) {
      return tensor_error(Code::kInvalidArgument, head->name,
                          "differs from the embedding, but config.json says 'tie_word_embeddings': true");
    }
  }
  return *matrices;
}

void widen(const StoredTensor& stored, float* to) {
  const DataType type = *data_type(stored.dtype);
  widen(type, stored.bytes.data(), stored.bytes.size() / size_of(type), to);
}

// Rows that are packed, and reported, at a time.
uint32_t rows_of_a_run(uint64_t row_bytes) {
  const uint64_t rows = kProgressBytes / std::max<uint64_t>(row_bytes, 1);
  return static_cast<uint32_t>(std::max<uint64_t>(rows / kPanelRows, 1) * kPanelRows);
}

// Rows of a checkpoint's matrix, row-major, to their place in the model's, from `row` on.
void pack(const Matrix& to, Bytes from, uint32_t row, uint32_t rows, Progress& progress) {
  const uint64_t row_bytes = to.cols * size_of(to.type);
  const uint32_t run = rows_of_a_run(row_bytes);
  for (uint32_t done = 0; done < rows; done += run) {
    const uint32_t some = std::min(run, rows - done);
    pack_rows(to, from.data() + done * row_bytes, row + done, some);
    progress.add(some * row_bytes);
  }
}

Result<Weights> load_safetensors(const ModelConfig& config, const std::string& directory, MatrixLayout layout,
                                 const LoadProgress& report) {
  auto checkpoint = Checkpoint::open(directory);
  if (!checkpoint) return checkpoint.error();
  Weights weights;
  const std::vector<Target> targets = targets_of(config, weights);
  auto matrices = check(config, *checkpoint, targets);
  if (!matrices) return matrices.error().with_context(directory);
  if (auto placed = place(targets, *matrices, layout, weights); !placed) return placed.error();
  Progress progress(report, checkpoint_bytes(targets));
  for (const Target& target : targets) {
    uint64_t row = 0;
    for (const Part& part : target.parts) {
      const StoredTensor& stored = *checkpoint->find(part.name);
      if (target.matrix != nullptr) {
        pack(*target.matrix, stored.bytes, static_cast<uint32_t>(row), static_cast<uint32_t>(part.rows), progress);
      } else {
        float* values = values_of(target) + row;
        widen(stored, values);
        if (target.offset != 0.0F) {
          for (uint64_t i = 0; i < part.rows; ++i) values[i] += target.offset;
        }
      }
      row += part.rows;
    }
  }
  progress.finish();
  return weights;
}

uint64_t mix(uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xBF58'476D'1CE4'E5B9;
  x = (x ^ (x >> 27)) * 0x94D0'49BB'1331'11EB;
  return x ^ (x >> 31);
}

uint64_t hash_name(std::string_view name) {  // FNV-1a
  uint64_t hash = 0xCBF2'9CE4'8422'2325;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x0000'0100'0000'01B3;
  return hash;
}

// Uniform values of variance 1 / cols. A table of prime length is repeated, so that no two rows of a matrix are alike
// and the cost is that of copying.
void fill_dummy(const Matrix& to, uint32_t row, const Part& part, Progress& progress) {
  constexpr size_t kTable = 65'521;
  static_assert(kTable % 2 == 1);
  std::vector<uint16_t> table(kTable);
  const uint64_t seed = hash_name(part.name);
  const float width = std::sqrt(3.0F / static_cast<float>(to.cols));
  for (size_t i = 0; i < kTable; ++i) {
    const auto unit = static_cast<float>(static_cast<int64_t>(mix(seed + i * 0x9E37'79B9'7F4A'7C15)) >> 40) * 0x1p-23F;
    table[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(unit * width) >> 16);
  }
  // A panel's rows at a time.
  std::vector<uint16_t> rows(size_t{kPanelRows} * to.cols);
  size_t next = 0;  // of the table
  for (uint32_t done = 0; done < part.rows; done += kPanelRows) {
    for (size_t at = 0; at < rows.size();) {
      const size_t some = std::min(kTable - next, rows.size() - at);
      std::memcpy(rows.data() + at, table.data() + next, some * sizeof(uint16_t));
      at += some;
      next = (next + some) % kTable;
    }
    const auto some = static_cast<uint32_t>(std::min<uint64_t>(kPanelRows, part.rows - done));
    pack_rows(to, reinterpret_cast<const std::byte*>(rows.data()), row + done, some);
    progress.add(uint64_t{some} * to.cols * sizeof(uint16_t));
  }
}

Result<Weights> make_dummy(const ModelConfig& config, MatrixLayout layout, const LoadProgress& report) {
  Weights weights;
  const std::vector<Target> targets = targets_of(config, weights);
  if (auto placed = place(targets, DataType::kBf16, layout, weights); !placed) return placed.error();
  Progress progress(report, checkpoint_bytes(targets));
  for (const Target& target : targets) {
    if (target.matrix != nullptr) {
      uint32_t row = 0;
      for (const Part& part : target.parts) {
        fill_dummy(*target.matrix, row, part, progress);
        row += static_cast<uint32_t>(part.rows);
      }
    } else if (target.parts.front().name.ends_with("norm.weight")) {
      std::fill_n(values_of(target), target.rows(), 1.0F);
    }  // biases stay 0
  }
  progress.finish();
  return weights;
}

}  // namespace

Result<HostArena> HostArena::allocate(uint64_t bytes) {
  HostArena arena;
  if (bytes == 0) return arena;
  if (bytes > (uint64_t{1} << 46))
    return Error{Code::kOverloaded, fmt::format("{} bytes are more than any machine has", bytes)};
  const uint64_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    return Error{Code::kOverloaded, fmt::format("cannot allocate {} MiB: {}", size >> 20, errno_text(errno))};
  }
  ::madvise(at, size, MADV_HUGEPAGE);  // a wish; without it everything still works
  arena.data_ = static_cast<std::byte*>(at);
  arena.size_ = size;
  return arena;
}

HostArena::HostArena(HostArena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

HostArena& HostArena::operator=(HostArena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HostArena::~HostArena() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<Weights> load_weights(const ModelConfig& config, const std::string& directory, LoadFormat format,
                             const LoadProgress& progress, MatrixLayout layout) {
  auto weights = format == LoadFormat::kDummy ? make_dummy(config, layout, progress)
                                              : load_safetensors(config, directory, layout, progress);
  if (weights && config.tie_embeddings) weights->lm_head = weights->embedding;
  return weights;
}

}  // namespace dyn::native
