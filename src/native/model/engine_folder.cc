#include "native/model/engine_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "native/exec/cpu/cpu_topology.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/model/model_dir.h"
#include "native/model/weight_targets.h"
#include "wire/blake3.h"

namespace dyn::native {
namespace {

constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr uint64_t kPieceBytes = 8u << 20;
// Of a tensor's values: enough that another checkpoint of the same shapes differs in one of them.
constexpr uint64_t kSamples = 4;
constexpr uint64_t kSampleBytes = 64;

std::string path_of(const std::string& directory) {
  return fmt::format("{}/{}", directory, kEngineFile);
}

struct OpenEngine {
  MappedFile file;
  EngineHeader header;
  [[nodiscard]] Bytes data() const { return file.bytes().subspan(header.data_offset); }
};

Result<OpenEngine> open_engine(const std::string& directory) {
  auto file = MappedFile::open(path_of(directory));
  if (!file) return file.error();
  auto header = parse_engine_header(file->bytes(), file->bytes().size());
  if (!header) return header.error().with_context(path_of(directory));
  return OpenEngine{.file = std::move(*file), .header = std::move(*header)};
}

// The tensors of the header against those that this program places for the configuration.
Result<void> check_tensors(const EngineHeader& header, const std::vector<WeightTarget>& targets,
                           const WeightPlaces& places) {
  if (header.tensors.size() != targets.size() || header.data_bytes < places.bytes) {
    return invalid_argument(fmt::format("it holds {} tensors, config.json asks for {}: build it again",
                                        header.tensors.size(), targets.size()));
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    const PackedTensor& stored = header.tensors[i];
    const PackedTensor wanted = packed_tensor(targets[i], places.offsets[i]);
    if (stored.name != wanted.name || stored.layout != wanted.layout || stored.type != wanted.type ||
        stored.shape != wanted.shape || stored.offset != wanted.offset) {
      return invalid_argument(fmt::format(
          "tensor '{}' ({}, {}, [{}]) is not what this version would make of config.json "
          "('{}', {}, {}, [{}]): build it again",
          stored.name.substr(0, 200), to_string(stored.type), layout_name(stored.layout), fmt::join(stored.shape, ", "),
          wanted.name, to_string(wanted.type), layout_name(wanted.layout), fmt::join(wanted.shape, ", ")));
    }
  }
  return {};
}

// Every tensor's bytes, by the threads whose node reads its rows.
void copy_data(const EngineHeader& header, const OpenEngine& engine, std::byte* to, ThreadPool& pool) {
  struct Piece {
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  std::vector<std::vector<Piece>> pieces(pool.nodes());
  for (const PackedTensor& tensor : header.tensors) {
    for (uint64_t at = 0; at < tensor.bytes;) {
      const auto share = pool.share_of(at, tensor.bytes);
      const uint64_t bytes = std::min(kPieceBytes, share.end - at);
      pieces[share.node].push_back({.offset = tensor.offset + at, .bytes = bytes});
      at += bytes;
    }
  }
  std::vector<uint32_t> counts;
  for (const auto& of_node : pieces) counts.push_back(static_cast<uint32_t>(of_node.size()));
  pool.run_on_nodes(counts, [&](unsigned node, uint32_t index, unsigned) {
    const Piece& piece = pieces[node][index];
    const Bytes from = engine.data().subspan(piece.offset, piece.bytes);
    MappedFile::want(from);
    std::memcpy(to + piece.offset, from.data(), from.size());
    engine.file.drop(from);
  });
}

}  // namespace

PackedTensor packed_tensor(const WeightTarget& target, uint64_t offset) {
  PackedTensor tensor{
      .name = target.name, .type = DataType::kF32, .shape = {target.rows()}, .offset = offset, .bytes = target.bytes()};
  if (target.matrix != nullptr) {
    tensor.layout = target.matrix->layout;
    tensor.type = target.matrix->type;
    tensor.shape.push_back(target.cols);
  }
  return tensor;
}

bool is_engine_folder(const std::string& directory) {
  return ::access(path_of(directory).c_str(), F_OK) == 0;
}

Result<EngineHeader> read_engine_folder(const std::string& directory) {
  auto engine = open_engine(directory);
  if (!engine) return engine.error();
  return std::move(engine->header);
}

Result<std::string> config_digest(const std::string& directory) {
  auto text = read_model_file(directory + "/config.json", kMaxConfigBytes);
  if (!text) return text.error();
  return wire::blake3_hex(as_bytes(*text));
}

Result<std::string> checkpoint_digest(const std::string& directory) {
  auto checkpoint = Checkpoint::open(directory);
  if (!checkpoint) return checkpoint.error();
  wire::Blake3 hash;
  for (const auto& [name, tensor] : checkpoint->tensors()) {
    hash.update(as_bytes(fmt::format("{}\n{}\n{}\n", name, tensor.dtype, fmt::join(tensor.shape, ","))));
    const uint64_t size = std::min<uint64_t>(kSampleBytes, tensor.bytes.size());
    for (uint64_t i = 0; i < kSamples; ++i) {
      hash.update(tensor.bytes.subspan((tensor.bytes.size() - size) / (kSamples - 1) * i, size));
    }
  }
  return hash.hex();
}

Result<void> check_engine_source(const EngineHeader& header, const std::string& model_directory) {
  auto config = config_digest(model_directory);
  if (!config) return config.error();
  if (*config != header.config_digest) {
    return invalid_argument(
        fmt::format("it was built from another config.json than that of {}: build it again", model_directory));
  }
  if (header.checkpoint_digest.empty() || !has_checkpoint(model_directory)) return {};
  auto checkpoint = checkpoint_digest(model_directory);
  if (!checkpoint) return checkpoint.error();
  if (*checkpoint != header.checkpoint_digest) {
    return invalid_argument(
        fmt::format("it was built from other weights than those of {}: build it again", model_directory));
  }
  return {};
}

Result<Weights> map_engine_folder(const ModelConfig& config, const std::string& directory,
                                  const MapEngineOptions& options) {
  auto engine = open_engine(directory);
  if (!engine) return engine.error();
  const EngineHeader& header = engine->header;
  Weights weights;
  const std::vector<WeightTarget> targets = weight_targets(config, weights);
  const WeightPlaces places = lay_out_weights(targets, header.type, header.layout, weights);
  if (auto checked = check_tensors(header, targets, places); !checked) return checked.error().with_context(directory);

  const auto threads = place_threads(options.threads);
  if (options.copy == MapEngineOptions::Copy::kAlways || threads.back().node > 0) {
    auto memory = HostArena::allocate(places.bytes);
    if (!memory) return memory.error().with_context("weights");
    ThreadPool pool(threads);
    copy_data(header, *engine, memory->data(), pool);
    weights.memory = std::move(*memory);
    point_weights(targets, places, weights.memory.data());
  } else {
    MappedFile::want(engine->data());
    point_weights(targets, places, engine->data().data());
    weights.mapping = std::move(engine->file);
  }
  if (config.tie_embeddings) weights.lm_head = weights.embedding;
  return weights;
}

Result<void> verify_engine_folder(const std::string& directory, unsigned threads) {
  auto engine = open_engine(directory);
  if (!engine) return engine.error();
  const auto& tensors = engine->header.tensors;
  std::vector<uint8_t> wrong(tensors.size());
  ThreadPool pool(place_threads(threads));
  pool.run(static_cast<uint32_t>(tensors.size()), [&](uint32_t i, unsigned) {
    const Bytes bytes = engine->data().subspan(tensors[i].offset, tensors[i].bytes);
    wrong[i] = wire::blake3_hex(bytes) == tensors[i].digest ? 0 : 1;
    engine->file.drop(bytes);
  });
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (wrong[i] != 0) {
      return invalid_argument(
          fmt::format("{}: the values of tensor '{}' are damaged", path_of(directory), tensors[i].name));
    }
  }
  return {};
}

}  // namespace dyn::native
