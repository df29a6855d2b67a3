// An engine folder: a model's weights as they lie in memory, made once by `dynamo-trtllm build`, mapped at each start.
//
//   auto header = read_engine_folder("/engines/qwen3");           // cheap: reads and checks the header
//   auto same = check_engine_source(*header, "/models/Qwen3-0.6B");   // an error when it was made from something else
//   auto weights = map_engine_folder(config, "/engines/qwen3", {.threads = 8});
//
// Beside the weights it holds config.json, generation_config.json and the tokenizer's files, so that it is a model
// directory of its own. The weights are one file, weights.packed:
//
//   0   "DYNPACK\n"
//   8   length of the header, 8 bytes little-endian
//   16  BLAKE3 digest of the header, 32 bytes
//   48  the header: JSON (see EngineHeader)
//   data_offset: the data, data_bytes long up to the end of the file; tensors start at multiples of 64
//
// A folder is refused, with the reason, when its format is another one, its header is damaged, the file is cut off, its
// tensors are not those that this program would place for config.json, or when config.json or the checkpoint is not the
// one it was made from. A checkpoint is recognised by names, types and shapes of its tensors and by samples of their
// values: times and places of files change when they are copied. Values are read by processors of one byte order
// (little-endian) and packed the same way for all of them.
//
// Ownership: weights own the mapping. The file must not change while it is mapped: build replaces it by a rename.
// Thread rules: functions of any thread; parse and format are pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/result.h"
#include "native/model/model_config.h"
#include "native/model/weights.h"

namespace dyn::native {

inline constexpr uint32_t kEngineFormat = 1;
inline constexpr std::string_view kEngineFile = "weights.packed";

struct PackedTensor {
  std::string name;
  MatrixLayout layout = MatrixLayout::kRowMajor;
  DataType type = DataType::kBf16;
  std::vector<uint64_t> shape;  // [rows, columns] of a matrix, [length] of a vector
  uint64_t offset = 0;          // of the data
  uint64_t bytes = 0;
  std::string digest;  // BLAKE3 of the bytes, hexadecimal
};

struct EngineHeader {
  uint32_t format = kEngineFormat;
  std::string builder;  // program and version
  std::string model;    // what it was made from, as it was named
  std::string architecture;
  std::string config_digest;        // BLAKE3 of config.json
  std::string checkpoint_digest;    // of checkpoint_digest(); empty: random weights
  DataType type = DataType::kBf16;  // of all matrices in the checkpoint
  MatrixLayout layout = MatrixLayout::kRowMajor;
  uint64_t data_offset = 0;
  uint64_t data_bytes = 0;
  std::vector<PackedTensor> tensors;  // ascending offsets
};

// "row-major", "packed-bf16", "packed-int8": names that files keep.
std::string_view layout_name(MatrixLayout layout);

// Checks everything that can be told from the beginning of the file and its size.
Result<EngineHeader> parse_engine_header(Bytes beginning, uint64_t file_bytes);
// The header's own text, JSON.
void write_engine_json(const EngineHeader& header, Buffer& out);
// The bytes before the data, header.data_offset of them; sets data_offset.
std::string format_engine_header(EngineHeader& header);

struct WeightTarget;
// The entry of a target at this place, without its digest.
PackedTensor packed_tensor(const WeightTarget& target, uint64_t offset);

// Whether there is a weights.packed, whatever it holds.
bool is_engine_folder(const std::string& directory);
Result<EngineHeader> read_engine_folder(const std::string& directory);

// Against config.json and, where the directory has weights, the checkpoint.
Result<void> check_engine_source(const EngineHeader& header, const std::string& model_directory);
Result<std::string> config_digest(const std::string& directory);
Result<std::string> checkpoint_digest(const std::string& directory);

struct MapEngineOptions {
  unsigned threads = 1;  // that read the values, where they are copied
  // On a machine with several memory nodes pages of files lie anywhere, so values are copied to the nodes of the
  // threads that will read them. Elsewhere the mapped file is used as it is.
  enum class Copy : uint8_t { kBySeveralNodes, kAlways } copy = Copy::kBySeveralNodes;
};
Result<Weights> map_engine_folder(const ModelConfig& config, const std::string& directory,
                                  const MapEngineOptions& options = {});

// Reads all values and compares them with the digests of the header.
Result<void> verify_engine_folder(const std::string& directory, unsigned threads);

}  // namespace dyn::native
