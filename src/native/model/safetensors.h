// parse_safetensors: the strictly checked header of a .safetensors file; Checkpoint: the one or several mapped files of
// a model directory.
//
//   auto checkpoint = Checkpoint::open("/models/Qwen3-0.6B");
//   const StoredTensor* t = checkpoint->find("model.norm.weight");
//   t->bytes;    // valid as long as the checkpoint lives
//
// Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}, "__metadata__": {...}},
// then the data; tensors neither overlap nor leave holes (huggingface/safetensors, README "Format"). Thread rules:
// immutable after open.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "native/model/mapped_file.h"

namespace dyn::native {

enum class DataType : uint8_t { kBf16, kF16, kF32 };
std::string_view to_string(DataType type);  // "BF16", ...
inline constexpr uint64_t size_of(DataType type) {
  return type == DataType::kF32 ? 4 : 2;
}

struct StoredTensor {
  std::string name;
  std::string dtype;  // as written: any of the format's types may occur, the loader wants BF16, F16, F32
  std::vector<uint64_t> shape;
  Bytes bytes;
};

// Limits of a header; beyond them the file is refused before memory is taken for it.
struct SafetensorsLimits {
  uint64_t max_header_bytes = 100'000'000;  // as the reference implementation
  size_t max_tensors = 1'000'000;
  size_t max_dimensions = 8;
};

// Checks a header and gives the tensors in ascending order of their offset. `file` is the whole file; views point into
// it.
Result<std::vector<StoredTensor>> parse_safetensors(Bytes file, const SafetensorsLimits& limits = {});

// Names of the files that the text of a model.safetensors.index.json lists: of the same directory, each once.
Result<std::set<std::string>> parse_safetensors_index(std::string_view text);

// Whether the directory has files for Checkpoint::open.
bool has_checkpoint(const std::string& directory);

class Checkpoint {
 public:
  // model.safetensors, or the files that model.safetensors.index.json names.
  static Result<Checkpoint> open(const std::string& directory);

  [[nodiscard]] const StoredTensor* find(std::string_view name) const;
  [[nodiscard]] const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }

  // A part of a tensor's bytes has been read: see MappedFile::drop.
  void drop(Bytes part) const;

 private:
  std::vector<MappedFile> files_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

}  // namespace dyn::native
