// The header of an engine folder's weights.packed. The digest is made right, so that the text behind it is reached.
#include <cstring>

#include "fuzz.h"
#include "native/model/engine_folder.h"
#include "wire/blake3.h"

using namespace dyn;
using fuzz::expect;

namespace {

constexpr size_t kFixedBytes = 48;

std::vector<std::byte> with_digest(Bytes in) {
  std::vector<std::byte> file(in.begin(), in.end());
  if (file.size() < kFixedBytes) return file;
  uint64_t length = 0;
  std::memcpy(&length, file.data() + 8, sizeof length);
  wire::Blake3 hash;
  hash.update(Bytes(file).subspan(kFixedBytes, std::min<uint64_t>(length, file.size() - kFixedBytes)));
  const auto digest = hash.digest();
  std::memcpy(file.data() + 16, digest.data(), digest.size());
  return file;
}

}  // namespace

DYN_FUZZ_TARGET(Bytes in) {
  // The last two bytes say how much data the file has.
  if (in.size() < 2) return;
  const uint64_t data_bytes =
      (static_cast<uint64_t>(in[in.size() - 1]) << 8 | static_cast<uint64_t>(in[in.size() - 2])) * 64;
  const auto file = with_digest(in.first(in.size() - 2));
  auto header = native::parse_engine_header(file, file.size() + data_bytes);
  if (!header) {
    expect(!header.error().message.empty());
    return;
  }
  expect(header->data_offset + header->data_bytes == file.size() + data_bytes);
  uint64_t end = 0;
  for (const native::PackedTensor& tensor : header->tensors) {
    expect(tensor.offset % 64 == 0 && tensor.offset >= end);
    end = tensor.offset + tensor.bytes;
    expect(end <= header->data_bytes && tensor.bytes > 0);
  }
  // What is written again is read again.
  const std::string again = native::format_engine_header(*header);
  const auto same = native::parse_engine_header(as_bytes(again), again.size() + header->data_bytes);
  expect(same.ok() && same->tensors.size() == header->tensors.size() && same->model == header->model);
}
