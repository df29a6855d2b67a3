#include "native/model/weight_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

namespace dyn::native {
namespace {

constexpr uint64_t kPieceBytes = 8u << 20;

Error tensor_error(Code code, std::string_view name, const std::string& what) {
  return {code, fmt::format("tensor '{}': {}", name, what)};
}

// Tensors that say nothing new: a stored LM head of a tied model, rotary frequencies that old converters wrote.
bool may_be_ignored(const ModelConfig& config, std::string_view name) {
  return (config.tie_embeddings && name == "lm_head.weight") || name.ends_with(".rotary_emb.inv_freq");
}

// Piece by piece, so that no more than two pieces are in memory.
bool equal(const Checkpoint& checkpoint, Bytes a, Bytes b) {
  while (!a.empty()) {
    const size_t size = std::min<size_t>(a.size(), kPieceBytes);
    if (std::memcmp(a.data(), b.data(), size) != 0) return false;
    checkpoint.drop(a.first(size));
    checkpoint.drop(b.first(size));
    a = a.subspan(size);
    b = b.subspan(size);
  }
  return true;
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

}  // namespace

std::optional<DataType> data_type(std::string_view dtype) {
  for (DataType type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
    if (to_string(type) == dtype) return type;
  }
  return std::nullopt;
}

Result<DataType> check_checkpoint(const ModelConfig& config, const Checkpoint& checkpoint,
                                  const std::vector<WeightTarget>& targets) {
  std::optional<DataType> matrices;
  std::string_view first_matrix;
  std::set<std::string_view> wanted;
  for (const WeightTarget& target : targets) {
    for (const WeightPart& part : target.parts) {
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
    if (head != nullptr && !equal(checkpoint, head->bytes, embedding->bytes)) {
      return tensor_error(Code::kInvalidArgument, head->name,
                          "differs from the embedding, but config.json says 'tie_word_embeddings': true");
    }
  }
  return *matrices;
}

DummyValues::DummyValues(const WeightPart& part, uint64_t cols) : cols_(cols) {
  constexpr size_t kTable = 65'521;
  table_.resize(std::min<uint64_t>(kTable, part.rows * cols));
  const uint64_t seed = hash_name(part.name);
  const float width = std::sqrt(3.0F / static_cast<float>(cols));
  for (size_t i = 0; i < table_.size(); ++i) {
    const auto unit = static_cast<float>(static_cast<int64_t>(mix(seed + i * 0x9E37'79B9'7F4A'7C15)) >> 40) * 0x1p-23F;
    table_[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(unit * width) >> 16);
  }
}

void DummyValues::read(uint64_t first, uint64_t rows, uint16_t* to) const {
  size_t next = first * cols_ % table_.size();
  for (uint64_t left = rows * cols_; left > 0;) {
    const uint64_t some = std::min<uint64_t>(table_.size() - next, left);
    std::memcpy(to, table_.data() + next, some * sizeof(uint16_t));
    to += some;
    left -= some;
    next = (next + some) % table_.size();
  }
}

}  // namespace dyn::native
