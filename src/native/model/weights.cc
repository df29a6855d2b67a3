#include "native/model/weights.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

#include "native/exec/cpu/cpu_topology.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/model/weight_checks.h"
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
  auto matrices = check_checkpoint(config, *checkpoint, targets);
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

void fill_dummy(const Piece& piece) {
  const DummyValues dummy(*piece.part, piece.target->cols);
  // A panel's rows at a time.
  std::vector<uint16_t> values(kPanelRows * piece.target->cols);
  for (uint64_t row = 0; row < piece.rows; row += kPanelRows) {
    const uint64_t rows = std::min<uint64_t>(kPanelRows, piece.rows - row);
    dummy.read(piece.part_row + row, rows, values.data());
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
