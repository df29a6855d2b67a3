#include "wire/msgpack_writer.h"

#include <string>

#include "wire/utf8.h"

namespace dyn::wire {
namespace {

void pack_valid_str(Buffer& out, std::string_view text) {
  if (text.size() < 32) {
    detail::pack_byte(out, static_cast<uint8_t>(0xA0 | text.size()));
  } else if (text.size() <= 0xFF) {
    detail::pack_marked(out, 0xD9, static_cast<uint8_t>(text.size()));
  } else if (text.size() <= 0xFFFF) {
    detail::pack_marked(out, 0xDA, static_cast<uint16_t>(text.size()));
  } else {
    detail::pack_marked(out, 0xDB, static_cast<uint32_t>(text.size()));
  }
  out.append(text);
}

std::string repair(std::string_view text) {
  std::string repaired;
  while (!text.empty()) {
    const size_t bad = find_invalid_utf8(text);
    repaired += text.substr(0, bad);
    if (bad == std::string_view::npos) break;
    repaired += kReplacementCharacter;
    text.remove_prefix(bad + 1);
  }
  return repaired;
}

}  // namespace

void pack_str(Buffer& out, std::string_view text) {
  if (find_invalid_utf8(text) == std::string_view::npos) {
    pack_valid_str(out, text);
  } else {
    pack_valid_str(out, repair(text));
  }
}

void pack_bin(Buffer& out, Bytes bytes) {
  if (bytes.size() <= 0xFF) {
    detail::pack_marked(out, 0xC4, static_cast<uint8_t>(bytes.size()));
  } else if (bytes.size() <= 0xFFFF) {
    detail::pack_marked(out, 0xC5, static_cast<uint16_t>(bytes.size()));
  } else {
    detail::pack_marked(out, 0xC6, static_cast<uint32_t>(bytes.size()));
  }
  out.append(bytes);
}

}  // namespace dyn::wire
