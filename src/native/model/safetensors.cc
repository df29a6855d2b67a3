#include "native/model/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <simdjson.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <utility>

#include "base/posix.h"
#include "native/model/model_dir.h"

namespace dyn::native {
namespace {

namespace dom = simdjson::dom;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderDepth = 8;  // deeper than any valid header
constexpr size_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxFiles = 4096;
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

// Names of the files of a sharded model, each once.
Result<std::set<std::string>> shard_names(const std::string& path) {
  auto text = read_model_file(path, kMaxIndexBytes);
  if (!text) return text.error();
  dom::parser parser;
  if (auto error = parser.allocate(text->size(), kMaxHeaderDepth))
    return invalid_argument(path + ": " + error_message(error));
  dom::object map;
  if (parser.parse(*text)["weight_map"].get(map) != simdjson::SUCCESS) {
    return invalid_argument(path + ": not a JSON object with 'weight_map'");
  }
  std::set<std::string> names;
  for (auto [tensor, value] : map) {
    std::string_view file;
    if (value.get(file) != simdjson::SUCCESS || file.empty() || file.front() == '.' ||
        file.find('/') != std::string_view::npos || file.find('\0') != std::string_view::npos) {
      return invalid_argument(
          fmt::format("{}: '{}' must name a file of the same directory", path, tensor.substr(0, 200)));
    }
    names.emplace(file);
    if (names.size() > kMaxFiles) return invalid_argument(fmt::format("{}: more than {} files", path, kMaxFiles));
  }
  if (names.empty()) return invalid_argument(path + ": 'weight_map' is empty");
  return names;
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

Result<MappedFile> MappedFile::open(const std::string& path) {
  auto fd = open_fd(path, O_RDONLY | O_CLOEXEC);
  if (!fd) return fd.error();
  struct stat info{};
  if (::fstat(fd->get(), &info) != 0) return errno_error(path, errno);
  if (!S_ISREG(info.st_mode)) return invalid_argument(path + ": not a regular file");
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return MappedFile(Bytes{});
  void* at = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd->get(), 0);
  if (at == MAP_FAILED) return errno_error("cannot map " + path, errno);
  ::madvise(at, size, MADV_SEQUENTIAL);
  return MappedFile(Bytes(static_cast<const std::byte*>(at), size));
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

Result<Checkpoint> Checkpoint::open(const std::string& directory) {
  const std::string index = directory + "/" + std::string(kIndexName);
  const std::string single = directory + "/model.safetensors";
  std::set<std::string> names;
  if (::access(single.c_str(), F_OK) == 0) {
    names.insert("model.safetensors");
  } else if (::access(index.c_str(), F_OK) == 0) {
    auto shards = shard_names(index);
    if (!shards) return shards.error();
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

}  // namespace dyn::native
