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
  float offset = 0.0F;  // added to a vector's values
  std::vector<Part> parts;

  [[nodiscard]] uint64_t rows() const {
    uint64_t sum = 0;
    for (const Part& part : parts) sum += part.rows;
    return sum;
  }
  [[nodiscard]] std::vector<uint64_t> shape(const Part& part) const {
    return matrix != nullptr ? std::vector{part.rows, cols} : std::vector{part.rows};
  }
  [[nodiscard]] DataType type(DataType matrices) const { return matrix != nullptr ? matrices : DataType::kF32; }
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

// Reserves the memory and points the weights into it.
Result<void> place(const std::vector<Target>& targets, DataType matrices, Weights& weights) {
  auto room = [&](const Target& target) {
    const uint64_t bytes = target.rows() * target.cols * size_of(target.type(matrices));
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  uint64_t total = 0;
  for (const Target& target : targets) total += room(target);
  auto memory = HostArena::allocate(total);
  if (!memory) return memory.error().with_context("weights");
  weights.memory = std::move(*memory);
  std::byte* at = weights.memory.data();
  for (const Target& target : targets) {
    if (target.matrix != nullptr) {
      *target.matrix = {.data = at,
                        .type = matrices,
                        .rows = static_cast<uint32_t>(target.rows()),
                        .cols = static_cast<uint32_t>(target.cols)};
    } else {
      *target.vector = reinterpret_cast<const float*>(at);
    }
    at += room(target);
  }
  return {};
}

// Where a target's memory begins. Only the loader writes to weights.
std::byte* memory_of(const Target& target) {
  const void* at = target.matrix != nullptr ? static_cast<const void*>(target.matrix->data) : *target.vector;
  return static_cast<std::byte*>(const_cast<void*>(at));
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

float widen_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const int exponent = (bits >> 10) & 0x1F;
  const uint32_t mantissa = bits & 0x3FF;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const auto biased = static_cast<uint32_t>(exponent == 31 ? 255 : exponent + 112);
  return std::bit_cast<float>(sign | (biased << 23) | (mantissa << 13));
}

void widen(const StoredTensor& stored, float* to) {
  if (stored.dtype == "F32") {
    std::memcpy(to, stored.bytes.data(), stored.bytes.size());
    return;
  }
  const bool bf16 = stored.dtype == "BF16";
  for (size_t i = 0; i < stored.bytes.size() / 2; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, stored.bytes.data() + 2 * i, sizeof bits);
    to[i] = bf16 ? std::bit_cast<float>(static_cast<uint32_t>(bits) << 16) : widen_f16(bits);
  }
}

void copy(Bytes from, std::byte* to, Progress& progress) {
  while (!from.empty()) {
    const size_t size = std::min<size_t>(from.size(), kProgressBytes);
    std::memcpy(to, from.data(), size);
    progress.add(size);
    from = from.subspan(size);
    to += size;
  }
}

Result<Weights> load_safetensors(const ModelConfig& config, const std::string& directory, const LoadProgress& report) {
  auto checkpoint = Checkpoint::open(directory);
  if (!checkpoint) return checkpoint.error();
  Weights weights;
  const std::vector<Target> targets = targets_of(config, weights);
  auto matrices = check(config, *checkpoint, targets);
  if (!matrices) return matrices.error().with_context(directory);
  if (auto placed = place(targets, *matrices, weights); !placed) return placed.error();
  Progress progress(report, weights.memory.size());
  for (const Target& target : targets) {
    std::byte* at = memory_of(target);
    for (const Part& part : target.parts) {
      const StoredTensor& stored = *checkpoint->find(part.name);
      if (target.matrix != nullptr) {
        copy(stored.bytes, at, progress);
      } else {
        auto* values = reinterpret_cast<float*>(at);
        widen(stored, values);
        if (target.offset != 0.0F) {
          for (uint64_t i = 0; i < part.rows; ++i) values[i] += target.offset;
        }
      }
      at += part.rows * target.cols * size_of(target.type(*matrices));
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
void fill_dummy(const Part& part, uint64_t cols, std::byte* to, Progress& progress) {
  constexpr size_t kTable = 65'521;
  static_assert(kTable % 2 == 1);
  std::vector<uint16_t> table(kTable);
  const uint64_t seed = hash_name(part.name);
  const float width = std::sqrt(3.0F / static_cast<float>(cols));
  for (size_t i = 0; i < kTable; ++i) {
    const auto unit = static_cast<float>(static_cast<int64_t>(mix(seed + i * 0x9E37'79B9'7F4A'7C15)) >> 40) * 0x1p-23F;
    table[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(unit * width) >> 16);
  }
  uint64_t left = part.rows * cols * sizeof(uint16_t);
  while (left > 0) {
    const uint64_t size = std::min<uint64_t>(left, kTable * sizeof(uint16_t));
    std::memcpy(to, table.data(), size);
    progress.add(size);
    to += size;
    left -= size;
  }
}

Result<Weights> make_dummy(const ModelConfig& config, const LoadProgress& report) {
  Weights weights;
  const std::vector<Target> targets = targets_of(config, weights);
  if (auto placed = place(targets, DataType::kBf16, weights); !placed) return placed.error();
  Progress progress(report, weights.memory.size());
  for (const Target& target : targets) {
    std::byte* at = memory_of(target);
    if (target.matrix != nullptr) {
      for (const Part& part : target.parts) {
        fill_dummy(part, target.cols, at, progress);
        at += part.rows * target.cols * sizeof(uint16_t);
      }
    } else if (target.parts.front().name.ends_with("norm.weight")) {
      std::fill_n(reinterpret_cast<float*>(at), target.rows(), 1.0F);
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
                             const LoadProgress& progress) {
  auto weights =
      format == LoadFormat::kDummy ? make_dummy(config, progress) : load_safetensors(config, directory, progress);
  if (weights && config.tie_embeddings) weights->lm_head = weights->embedding;
  return weights;
}

}  // namespace dyn::native
