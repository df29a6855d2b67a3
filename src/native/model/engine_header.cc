// The header of weights.packed: text to values and back.
#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/buffer.h"
#include "native/model/engine_folder.h"
#include "native/model/weight_targets.h"
#include "wire/blake3.h"
#include "wire/json_writer.h"

namespace dyn::native {
namespace {

namespace dom = simdjson::dom;

constexpr std::string_view kMagic = "DYNPACK\n";
constexpr size_t kFixedBytes = 48;  // before the header's text
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxHeaderDepth = 8;  // deeper than any valid header
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kDigestDigits = 2 * wire::Blake3::kDigestBytes;
// The data begins where a huge page may: a file system that has them can map it with them.
constexpr uint64_t kDataAlignment = 2u << 20;
constexpr uint64_t kMaxDimension = UINT32_MAX;

constexpr std::array kLayouts = {MatrixLayout::kRowMajor, MatrixLayout::kPackedBf16, MatrixLayout::kPackedInt8};
constexpr std::array kTypes = {DataType::kBf16, DataType::kF16, DataType::kF32};

Error damaged(std::string_view what) {
  return invalid_argument(fmt::format("the header is damaged: {}", what));
}

// A member of an object; every one must be there and of its type.
template <class T>
Result<T> take(const dom::object& object, std::string_view name) {
  T value{};
  if (object[name].get(value) != simdjson::SUCCESS)
    return damaged(fmt::format("'{}' is missing or of a wrong type", name));
  return value;
}

Result<void> take(const dom::object& object, std::string_view name, std::string& to) {
  auto text = take<std::string_view>(object, name);
  if (!text) return text.error();
  to = *text;
  return {};
}
Result<void> take(const dom::object& object, std::string_view name, uint64_t& to) {
  auto number = take<uint64_t>(object, name);
  if (!number) return number.error();
  to = *number;
  return {};
}
// One of a few words.
template <class T, size_t N, class Name>
Result<void> take(const dom::object& object, std::string_view name, T& to, const std::array<T, N>& values,
                  const Name& name_of) {
  auto text = take<std::string_view>(object, name);
  if (!text) return text.error();
  for (const T value : values) {
    if (name_of(value) == *text) {
      to = value;
      return {};
    }
  }
  return unsupported(fmt::format("'{}' is '{}', which this version does not know", name, text->substr(0, 100)));
}
std::string_view type_name(DataType type) {
  return to_string(type);
}

Result<void> first_error(std::initializer_list<Result<void>> results) {
  for (const Result<void>& result : results) {
    if (!result) return result;
  }
  return {};
}

// Bytes that a tensor of this shape, layout and type has; 0 for a shape that it cannot have.
uint64_t bytes_of(const PackedTensor& tensor) {
  if (tensor.shape.empty() || tensor.shape.size() > 2) return 0;
  for (const uint64_t dimension : tensor.shape) {
    if (dimension == 0 || dimension > kMaxDimension - kPanelRows) return 0;
  }
  if (tensor.shape.size() == 1) {
    return tensor.layout == MatrixLayout::kRowMajor && tensor.type == DataType::kF32 ? tensor.shape[0] * sizeof(float)
                                                                                     : 0;
  }
  if (!can_have(tensor.layout, tensor.type, tensor.shape[1])) return 0;
  // Below 2^64 with room: rows times columns times four may not be.
  if (tensor.shape[0] * tensor.shape[1] > (uint64_t{1} << 60)) return 0;
  return Matrix{.layout = tensor.layout,
                .type = tensor.type,
                .rows = static_cast<uint32_t>(tensor.shape[0]),
                .cols = static_cast<uint32_t>(tensor.shape[1])}
      .bytes();
}

Result<PackedTensor> parse_tensor(dom::element element) {
  dom::object object;
  if (element.get(object) != simdjson::SUCCESS) return damaged("a tensor is no object");
  PackedTensor tensor;
  auto taken = first_error({take(object, "name", tensor.name), take(object, "offset", tensor.offset),
                            take(object, "bytes", tensor.bytes), take(object, "digest", tensor.digest),
                            take(object, "layout", tensor.layout, kLayouts, layout_name),
                            take(object, "type", tensor.type, kTypes, type_name)});
  if (!taken) return taken.error();
  auto shape = take<dom::array>(object, "shape");
  if (!shape) return shape.error();
  for (const dom::element item : *shape) {
    uint64_t dimension = 0;
    if (tensor.shape.size() == 2 || item.get(dimension) != simdjson::SUCCESS) return damaged("a shape");
    tensor.shape.push_back(dimension);
  }
  if (const uint64_t bytes = bytes_of(tensor); bytes == 0 || bytes != tensor.bytes) {
    return damaged(fmt::format("tensor '{}': {} bytes do not fit its shape", tensor.name.substr(0, 200), tensor.bytes));
  }
  if (tensor.digest.size() != kDigestDigits) return damaged("a digest");
  return tensor;
}

// All tensors lie in the data, aligned, one after the other.
Result<void> check_places(const EngineHeader& header) {
  uint64_t end = 0;
  for (const PackedTensor& tensor : header.tensors) {
    const bool inside = tensor.offset <= header.data_bytes && tensor.bytes <= header.data_bytes - tensor.offset;
    if (!inside || tensor.offset % kWeightAlignment != 0 || tensor.offset < end) {
      return damaged(fmt::format("the place of tensor '{}'", tensor.name.substr(0, 200)));
    }
    end = tensor.offset + tensor.bytes;
  }
  return {};
}

Result<EngineHeader> parse_text(std::string_view text) {
  dom::parser parser;
  if (auto error = parser.allocate(text.size(), kMaxHeaderDepth)) return damaged(error_message(error));
  dom::object object;
  if (auto error = parser.parse(text.data(), text.size()).get(object)) return damaged(error_message(error));
  EngineHeader header;
  auto format = take<uint64_t>(object, "format");
  if (!format) return format.error();
  if (*format != kEngineFormat) {
    return unsupported(fmt::format("it has format {}, this version reads {}: build it again", *format, kEngineFormat));
  }
  auto taken = first_error(
      {take(object, "builder", header.builder), take(object, "model", header.model),
       take(object, "architecture", header.architecture), take(object, "config_digest", header.config_digest),
       take(object, "checkpoint_digest", header.checkpoint_digest), take(object, "data_offset", header.data_offset),
       take(object, "data_bytes", header.data_bytes), take(object, "layout", header.layout, kLayouts, layout_name),
       take(object, "type", header.type, kTypes, type_name)});
  if (!taken) return taken.error();
  auto tensors = take<dom::array>(object, "tensors");
  if (!tensors) return tensors.error();
  for (const dom::element element : *tensors) {
    if (header.tensors.size() == kMaxTensors) return damaged(fmt::format("more than {} tensors", kMaxTensors));
    auto tensor = parse_tensor(element);
    if (!tensor) return tensor.error();
    header.tensors.push_back(std::move(*tensor));
  }
  if (auto checked = check_places(header); !checked) return checked.error();
  return header;
}

}  // namespace

std::string_view layout_name(MatrixLayout layout) {
  switch (layout) {
    case MatrixLayout::kRowMajor:
      return "row-major";
    case MatrixLayout::kPackedBf16:
      return "packed-bf16";
    case MatrixLayout::kPackedInt8:
      return "packed-int8";
  }
  return "?";
}

void write_engine_json(const EngineHeader& header, Buffer& out) {
  wire::JsonWriter json(out);
  json.begin_object();
  json.member("format", header.format);
  json.member("builder", header.builder);
  json.member("model", header.model);
  json.member("architecture", header.architecture);
  json.member("config_digest", header.config_digest);
  json.member("checkpoint_digest", header.checkpoint_digest);
  json.member("type", to_string(header.type));
  json.member("layout", layout_name(header.layout));
  json.member("data_offset", header.data_offset);
  json.member("data_bytes", header.data_bytes);
  json.key("tensors");
  json.begin_array();
  for (const PackedTensor& tensor : header.tensors) {
    json.begin_object();
    json.member("name", tensor.name);
    json.member("type", to_string(tensor.type));
    json.member("layout", layout_name(tensor.layout));
    json.key("shape");
    json.begin_array();
    for (const uint64_t dimension : tensor.shape) json.value(dimension);
    json.end_array();
    json.member("offset", tensor.offset);
    json.member("bytes", tensor.bytes);
    json.member("digest", tensor.digest);
    json.end_object();
  }
  json.end_array();
  json.end_object();
}

Result<EngineHeader> parse_engine_header(Bytes beginning, uint64_t file_bytes) {
  if (beginning.size() < kFixedBytes) return invalid_argument("the file is cut off");
  if (as_text(beginning.first(kMagic.size())) != kMagic) return invalid_argument("it is no file of packed weights");
  uint64_t length = 0;
  for (size_t i = 16; i-- > 8;) length = (length << 8) | static_cast<uint8_t>(beginning[i]);
  if (length > kMaxHeaderBytes) {
    return damaged(fmt::format("{} bytes, more than the limit of {}", length, kMaxHeaderBytes));
  }
  if (length > beginning.size() - kFixedBytes) return invalid_argument("the file is cut off");
  const Bytes text = beginning.subspan(kFixedBytes, length);
  wire::Blake3 hash;
  hash.update(text);
  if (const auto digest = hash.digest(); std::memcmp(digest.data(), beginning.data() + 16, digest.size()) != 0) {
    return damaged("its digest differs");
  }
  auto header = parse_text(as_text(text));
  if (!header) return header;
  if (header->data_offset < kFixedBytes + length || header->data_offset % kWeightAlignment != 0) {
    return damaged("the place of the data");
  }
  if (header->data_offset > file_bytes || header->data_bytes != file_bytes - header->data_offset) {
    return invalid_argument(fmt::format("the file is cut off or too long: {} bytes, its header asks for {} + {}",
                                        file_bytes, header->data_offset, header->data_bytes));
  }
  return header;
}

std::string format_engine_header(EngineHeader& header) {
  Buffer out;
  // The offset is part of the text, and the text's length decides about the offset.
  for (uint64_t offset = kDataAlignment;; offset += kDataAlignment) {
    header.data_offset = offset;
    out.clear();
    write_engine_json(header, out);
    if (kFixedBytes + out.size() <= offset) break;
    offset = (kFixedBytes + out.size()) / kDataAlignment * kDataAlignment;
  }
  const std::string_view text = as_text(out.view());
  wire::Blake3 hash;
  hash.update(as_bytes(text));
  const auto digest = hash.digest();
  std::string bytes(kMagic);
  for (unsigned shift = 0; shift < 64; shift += 8) bytes.push_back(static_cast<char>(uint64_t{text.size()} >> shift));
  bytes += as_text(Bytes(digest.data(), digest.size()));
  bytes += text;
  bytes.resize(header.data_offset, '\0');
  return bytes;
}

}  // namespace dyn::native
