#include "native/model/safetensors.h"

#include <fmt/format.h>
#include <simdjson.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "native/model/model_dir.h"

namespace dyn::native {
namespace {

namespace dom = simdjson::dom;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderDepth = 8;  // deeper than any valid header
constexpr size_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxFiles = 4096;
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kIndexName = "model.safetensors.index.json";

struct StoredType {
  std::string_view name;
  uint64_t bits;
};
constexpr std::array kStoredTypes = {
    StoredType{"BF16", 16}, StoredType{"F16", 16},    StoredType{"F32", 32},    StoredType{"F64", 64},
    StoredType{"I8", 8},    StoredType{"I16", 16},    StoredType{"I32", 32},    StoredType{"I64", 64},
    StoredType{"U8", 8},    StoredType{"U16", 16},    StoredType{"U32", 32},    StoredType{"U64", 64},
    StoredType{"BOOL", 8},  StoredType{"F8_E4M3", 8}, StoredType{"F8_E5M2", 8}, StoredType{"F8_E8M0", 8},
    StoredType{"F4", 4},
};

Result<uint64_t> bits_of(std::string_view dtype) {
  for (const StoredType& type : kStoredTypes) {
    if (type.name == dtype) return type.bits;
  }
  return invalid_argument(fmt::format("unknown dtype '{}'", dtype));
}

// Elements times width; refuses what does not fit or does not end on a byte.
Result<uint64_t> bytes_of_shape(const std::vector<uint64_t>& shape, uint64_t bits) {
  uint64_t total = bits;
  for (uint64_t dimension : shape) {
    if (__builtin_mul_overflow(total, dimension, &total)) return invalid_argument("shape does not fit 64 bits");
  }
  if (total % 8 != 0) return invalid_argument("shape does not end on a byte");
  return total / 8;
}

Error in_tensor(std::string_view name, std::string_view what) {
  return invalid_argument(fmt::format("tensor '{}': {}", name.substr(0, 200), what));
}

Result<StoredTensor> parse_tensor(std::string_view name, dom::element value, Bytes data,
                                  const SafetensorsLimits& limits) {
  dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return in_tensor(name, "not an object");
  StoredTensor tensor{.name = std::string(name), .dtype = {}, .shape = {}, .bytes = {}};
  std::array<bool, 3> seen{};
  uint64_t begin = 0;
  uint64_t end = 0;
  for (auto [key, member] : object) {
    const size_t which = key == "dtype" ? 0 : key == "shape" ? 1 : key == "data_offsets" ? 2 : 3;
    if (which == 3) return in_tensor(name, fmt::format("unknown member '{}'", key.substr(0, 100)));
    if (std::exchange(seen[which], true)) return in_tensor(name, fmt::format("'{}' occurs twice", key));
    if (which == 0) {
      std::string_view dtype;
      if (member.get(dtype) != simdjson::SUCCESS) return in_tensor(name, "'dtype' must be a string");
      tensor.dtype = dtype;
      continue;
    }
    dom::array numbers;
    if (member.get(numbers) != simdjson::SUCCESS) return in_tensor(name, fmt::format("'{}' must be a list", key));
    if (which == 1) {
      for (dom::element item : numbers) {
        uint64_t dimension = 0;
        if (item.get(dimension) != simdjson::SUCCESS) return in_tensor(name, "'shape' must hold whole numbers");
        if (tensor.shape.size() == limits.max_dimensions) {
          return in_tensor(name, fmt::format("more than {} dimensions", limits.max_dimensions));
        }
        tensor.shape.push_back(dimension);
      }
    } else if (numbers.size() != 2 || numbers.at(0).get(begin) != simdjson::SUCCESS ||
               numbers.at(1).get(end) != simdjson::SUCCESS) {
      return in_tensor(name, "'data_offsets' must hold two whole numbers");
    }
  }
  if (!seen[0] || !seen[1] || !seen[2]) return in_tensor(name, "needs 'dtype', 'shape' and 'data_offsets'");
  if (begin > end || end > data.size()) {
    return in_tensor(name,
                     fmt::format("bytes {} to {} are outside the file's {} bytes of data", begin, end, data.size()));
  }
  auto bits = bits_of(tensor.dtype);
  if (!bits) return in_tensor(name, bits.error().message);
  auto bytes = bytes_of_shape(tensor.shape, *bits);
  if (!bytes) return in_tensor(name, bytes.error().message);
  if (*bytes != end - begin) {
    return in_tensor(name, fmt::format("dtype and shape need {} bytes, 'data_offsets' give {}", *bytes, end - begin));
  }
  tensor.bytes = data.subspan(begin, end - begin);
  return tensor;
}

Result<void> check_metadata(dom::element value) {
  dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return invalid_argument("'__metadata__' must be an object");
  for (auto [key, member] : object) {
    if (!member.is_string()) return invalid_argument("'__metadata__' must hold strings");
  }
  return {};
}

Result<std::vector<StoredTensor>> parse_header(std::string_view header, Bytes data, const SafetensorsLimits& limits) {
  if (header.empty() || header.front() != '{') return invalid_argument("header does not begin with '{'");
  dom::parser parser;
  if (auto error = parser.allocate(header.size(), kMaxHeaderDepth)) return invalid_argument(error_message(error));
  dom::object root;
  if (auto error = parser.parse(header.data(), header.size()).get(root)) {
    return invalid_argument(fmt::format("header is not valid JSON: {}", error_message(error)));
  }
  if (root.size() > limits.max_tensors)
    return invalid_argument(fmt::format("more than {} tensors", limits.max_tensors));

  std::vector<StoredTensor> tensors;
  std::set<std::string_view> names;  // views into the parser's strings
  for (auto [name, value] : root) {
    if (!names.insert(name).second) return in_tensor(name, "occurs twice");
    if (name == "__metadata__") {
      if (auto checked = check_metadata(value); !checked) return checked.error();
      continue;
    }
    auto tensor = parse_tensor(name, value, data, limits);
    if (!tensor) return tensor.error();
    tensors.push_back(std::move(*tensor));
  }
  auto offset = [&](const StoredTensor& t) { return t.bytes.data() - data.data(); };
  std::sort(tensors.begin(), tensors.end(), [&](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(offset(a), a.bytes.size()) < std::pair(offset(b), b.bytes.size());
  });
  uint64_t end = 0;
  for (const StoredTensor& tensor : tensors) {
    const auto begin = static_cast<uint64_t>(offset(tensor));
    if (begin < end) return in_tensor(tensor.name, "overlaps another tensor");
    if (begin > end) return in_tensor(tensor.name, fmt::format("{} unused bytes before it", begin - end));
    end = begin + tensor.bytes.size();
  }
  if (end != data.size()) return invalid_argument(fmt::format("{} unused bytes at the end", data.size() - end));
  return tensors;
}

}  // namespace

std::string_view to_string(DataType type) {
  switch (type) {
    case DataType::kBf16:
      return "BF16";
    case DataType::kF16:
      return "F16";
    case DataType::kF32:
      return "F32";
  }
  return "";
}

Result<std::vector<StoredTensor>> parse_safetensors(Bytes file, const SafetensorsLimits& limits) {
  if (file.size() < kLengthBytes) return invalid_argument("shorter than its 8 bytes of header length");
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = (length << 8) | static_cast<uint8_t>(file[i]);
  if (length > limits.max_header_bytes) {
    return invalid_argument(
        fmt::format("header of {} bytes, more than the limit of {}", length, limits.max_header_bytes));
  }
  if (length > file.size() - kLengthBytes) {
    return invalid_argument(
        fmt::format("header of {} bytes in a file of {}: the file is cut off", length, file.size()));
  }
  return parse_header(as_text(file.subspan(kLengthBytes, length)), file.subspan(kLengthBytes + length), limits);
}

Result<std::set<std::string>> parse_safetensors_index(std::string_view text) {
  // The parser wants an address.
  if (text.empty()) return invalid_argument("empty: not a JSON object with 'weight_map'");
  dom::parser parser;
  if (auto error = parser.allocate(text.size(), kMaxHeaderDepth)) return invalid_argument(error_message(error));
  dom::object map;
  if (parser.parse(text.data(), text.size())["weight_map"].get(map) != simdjson::SUCCESS) {
    return invalid_argument("not a JSON object with 'weight_map'");
  }
  std::set<std::string> names;
  for (auto [tensor, value] : map) {
    std::string_view file;
    if (value.get(file) != simdjson::SUCCESS || file.empty() || file.front() == '.' ||
        file.find('/') != std::string_view::npos || file.find('\0') != std::string_view::npos) {
      return invalid_argument(fmt::format("'{}' must name a file of the same directory", tensor.substr(0, 200)));
    }
    names.emplace(file);
    if (names.size() > kMaxFiles) return invalid_argument(fmt::format("more than {} files", kMaxFiles));
  }
  if (names.empty()) return invalid_argument("'weight_map' is empty");
  return names;
}

bool has_checkpoint(const std::string& directory) {
  return ::access((directory + "/" + std::string(kSingleName)).c_str(), F_OK) == 0 ||
         ::access((directory + "/" + std::string(kIndexName)).c_str(), F_OK) == 0;
}

Result<Checkpoint> Checkpoint::open(const std::string& directory) {
  const std::string index = directory + "/" + std::string(kIndexName);
  const std::string single = directory + "/" + std::string(kSingleName);
  std::set<std::string> names;
  if (::access(single.c_str(), F_OK) == 0) {
    names.emplace(kSingleName);
  } else if (::access(index.c_str(), F_OK) == 0) {
    auto text = read_model_file(index, kMaxIndexBytes);
    if (!text) return text.error();
    auto shards = parse_safetensors_index(*text);
    if (!shards) return shards.error().with_context(index);
    names = std::move(*shards);
  } else {
    return Error{Code::kNotFound,
                 fmt::format("{}: neither model.safetensors nor {}; only safetensors weights are supported", directory,
                             kIndexName)};
  }

  Checkpoint checkpoint;
  for (const std::string& name : names) {
    const std::string path = directory + "/" + name;
    auto file = MappedFile::open(path);
    if (!file) return file.error();
    auto tensors = parse_safetensors(file->bytes());
    if (!tensors) return tensors.error().with_context(path);
    for (StoredTensor& tensor : *tensors) {
      std::string key = tensor.name;
      if (!checkpoint.tensors_.emplace(std::move(key), std::move(tensor)).second) {
        return in_tensor(tensor.name, "occurs in two files").with_context(path);
      }
    }
    checkpoint.files_.push_back(std::move(*file));
  }
  return checkpoint;
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

void Checkpoint::drop(Bytes part) const {
  for (const MappedFile& file : files_) {
    const Bytes all = file.bytes();
    if (part.data() >= all.data() && part.data() < all.data() + all.size()) return file.drop(part);
  }
}

}  // namespace dyn::native
