#include "native/model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "native/exec/cpu/cpu_topology.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/model/weight_targets.h"

namespace dyn::native {
namespace {

constexpr uint64_t kPieceBytes = 8u << 20;

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start_ = Clock::now();
};

// Some rows of one part of a target: what one thread fills at a time.
struct Piece {
  const WeightTarget* target = nullptr;
  const WeightPart* part = nullptr;
  uint64_t first = 0;     // of the target's rows
  uint64_t part_row = 0;  // the same row within the part
  uint64_t rows = 0;

  // In a checkpoint; what is reported as progress.
  [[nodiscard]] uint64_t bytes() const {
    return rows * target->cols * size_of(target->matrix != nullptr ? target->matrix->type : DataType::kF32);
  }
};

// The pieces of all targets, for each memory node those that its threads should fill. A product hands each node the
// same share of every matrix's rows, so that the node which reads a row is the one that touches it first.
std::vector<std::vector<Piece>> pieces_of(const std::vector<WeightTarget>& targets, const ThreadPool& pool) {
  std::vector<std::vector<Piece>> pieces(pool.nodes());
  for (const WeightTarget& target : targets) {
    const uint64_t row_bytes = target.cols * sizeof(float);
    const uint64_t most = std::max<uint64_t>(1, kPieceBytes / row_bytes / kPanelRows) * kPanelRows;
    uint64_t first = 0;
    for (const WeightPart& part : target.parts) {
      for (uint64_t row = 0; row < part.rows;) {
        Piece piece{.target = &target, .part = &part, .first = first + row, .part_row = row, .rows = part.rows};
        unsigned node = 0;
        if (target.matrix != nullptr) {  // vectors are small
          const auto share = pool.share_of(piece.first, target.rows());
          node = share.node;
          piece.rows = std::min({most, part.rows - row, share.end - piece.first});
        }
        row += piece.rows;
        pieces[node].push_back(piece);
      }
      first += part.rows;
    }
  }
  return pieces;
}

// fill(piece) for everything, by all threads, and reports from the calling one.
template <class Fill>
void fill_all(const std::vector<WeightTarget>& targets, const LoadWeightsOptions& options, const Fill& fill) {
  ThreadPool pool(place_threads(options.threads));
  const std::vector<std::vector<Piece>> pieces = pieces_of(targets, pool);
  std::vector<uint32_t> counts;
  uint64_t total = 0;
  for (const auto& of_node : pieces) {
    counts.push_back(static_cast<uint32_t>(of_node.size()));
    for (const Piece& piece : of_node) total += piece.bytes();
  }
  std::atomic<uint64_t> done = 0;
  pool.run_on_nodes(counts, [&](unsigned node, uint32_t index, unsigned worker) {
    const Piece& piece = pieces[node][index];
    fill(piece);
    const uint64_t now = done += piece.bytes();
    if (options.progress && worker == 0 && now < total) options.progress(now, total);
  });
  if (options.progress) options.progress(total, total);
}

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

// Names, shapes and types against what the configuration asks for; gives the one type of all matrices.
Result<DataType> check(const ModelConfig& config, const Checkpoint& checkpoint,
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

// The memory that the weights point into.
Result<void> reserve(const std::vector<WeightTarget>& targets, DataType type, MatrixLayout layout, Weights& weights) {
  const WeightPlaces places = lay_out_weights(targets, type, layout, weights);
  auto memory = HostArena::allocate(places.bytes);
  if (!memory) return memory.error().with_context("weights");
  weights.memory = std::move(*memory);
  point_weights(targets, places, weights.memory.data());
  return {};
}

void fill_vector(const Piece& piece, const StoredTensor& stored) {
  float* values = piece.target->values() + piece.first;
  widen(*data_type(stored.dtype), stored.bytes.data(), piece.rows, values);
  for (uint64_t i = 0; i < piece.rows; ++i) values[i] += piece.target->offset;
}

Result<Weights> load_safetensors(const ModelConfig& config, const std::string& directory,
                                 const LoadWeightsOptions& options, LoadTimes& times) {
  const Stopwatch mapping;
  auto checkpoint = Checkpoint::open(directory);
  if (!checkpoint) return checkpoint.error();
  Weights weights;
  const std::vector<WeightTarget> targets = weight_targets(config, weights);
  auto matrices = check(config, *checkpoint, targets);
  if (!matrices) return matrices.error().with_context(directory);
  if (auto placed = reserve(targets, *matrices, options.layout, weights); !placed) return placed.error();
  times.map_s = mapping.seconds();
  const Stopwatch filling;
  fill_all(targets, options, [&](const Piece& piece) {
    const StoredTensor& stored = *checkpoint->find(piece.part->name);
    if (piece.target->matrix == nullptr) return fill_vector(piece, stored);
    const uint64_t row_bytes = piece.target->cols * size_of(*matrices);
    const Bytes from = stored.bytes.subspan(piece.part_row * row_bytes, piece.rows * row_bytes);
    MappedFile::want(from);
    pack_rows(*piece.target->matrix, from.data(), static_cast<uint32_t>(piece.first),
              static_cast<uint32_t>(piece.rows));
    checkpoint->drop(from);
  });
  times.pack_s = filling.seconds();
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
void fill_dummy(const Piece& piece) {
  constexpr size_t kTable = 65'521;
  static_assert(kTable % 2 == 1);
  const uint64_t cols = piece.target->cols;
  std::vector<uint16_t> table(std::min<uint64_t>(kTable, piece.part->rows * cols));
  const uint64_t seed = hash_name(piece.part->name);
  const float width = std::sqrt(3.0F / static_cast<float>(cols));
  for (size_t i = 0; i < table.size(); ++i) {
    const auto unit = static_cast<float>(static_cast<int64_t>(mix(seed + i * 0x9E37'79B9'7F4A'7C15)) >> 40) * 0x1p-23F;
    table[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(unit * width) >> 16);
  }
  // A panel's rows at a time.
  std::vector<uint16_t> values(kPanelRows * cols);
  size_t next = piece.part_row * cols % kTable;
  for (uint64_t row = 0; row < piece.rows; row += kPanelRows) {
    const uint64_t rows = std::min<uint64_t>(kPanelRows, piece.rows - row);
    for (size_t at = 0; at < rows * cols;) {
      const size_t some = std::min(table.size() - next, rows * cols - at);
      std::memcpy(values.data() + at, table.data() + next, some * sizeof(uint16_t));
      at += some;
      next = (next + some) % table.size();
    }
    pack_rows(*piece.target->matrix, reinterpret_cast<const std::byte*>(values.data()),
              static_cast<uint32_t>(piece.first + row), static_cast<uint32_t>(rows));
  }
}

Result<Weights> make_dummy(const ModelConfig& config, const LoadWeightsOptions& options, LoadTimes& times) {
  Weights weights;
  const std::vector<WeightTarget> targets = weight_targets(config, weights);
  if (auto placed = reserve(targets, DataType::kBf16, options.layout, weights); !placed) return placed.error();
  const Stopwatch filling;
  fill_all(targets, options, [&](const Piece& piece) {
    if (piece.target->matrix != nullptr) {
      fill_dummy(piece);
    } else if (piece.target->name.ends_with("norm.weight")) {
      std::fill_n(piece.target->values(), piece.rows, 1.0F);
    }  // biases stay 0
  });
  times.pack_s = filling.seconds();
  return weights;
}

}  // namespace

Result<Weights> load_weights(const ModelConfig& config, const std::string& directory,
                             const LoadWeightsOptions& options) {
  LoadTimes times;
  auto weights = options.format == LoadFormat::kDummy ? make_dummy(config, options, times)
                                                      : load_safetensors(config, directory, options, times);
  if (weights && config.tie_embeddings) weights->lm_head = weights->embedding;
  if (options.times != nullptr) *options.times = times;
  return weights;
}

}  // namespace dyn::native
