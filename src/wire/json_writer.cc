#include "wire/json_writer.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "wire/utf8.h"

namespace dyn::wire {
namespace {

constexpr char kHex[] = "0123456789abcdef";

void append_escape(Buffer& out, uint8_t byte) {
  switch (byte) {
    case '"':
      out.append("\\\"");
      return;
    case '\\':
      out.append("\\\\");
      return;
    case '\b':
      out.append("\\b");
      return;
    case '\f':
      out.append("\\f");
      return;
    case '\n':
      out.append("\\n");
      return;
    case '\r':
      out.append("\\r");
      return;
    case '\t':
      out.append("\\t");
      return;
    default:
      break;
  }
  const char escape[] = {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]};
  out.append(std::string_view(escape, sizeof(escape)));
}

template <class T>
void append_integer(Buffer& out, T value) {
  char text[24];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  out.append(std::string_view(text, static_cast<size_t>(end - text)));
}

template <class T>
void append_float(Buffer& out, T value) {
  if (std::isnan(value)) value = 0;
  if (std::isinf(value)) value = std::copysign(std::numeric_limits<T>::max(), value);
  char text[40];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  const std::string_view digits(text, static_cast<size_t>(end - text));
  out.append(digits);
  if (digits.find_first_of(".e") == std::string_view::npos) out.append(".0");
}

}  // namespace

void append_json_string(Buffer& out, std::string_view text) {
  out.append("\"");
  size_t plain = 0;  // start of what needs no change
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\') {
      ++i;
      continue;
    }
    const size_t length = byte < 0x80 ? 0 : utf8_sequence_bytes(text.data() + i, text.size() - i);
    if (length > 0) {
      i += length;
      continue;
    }
    out.append(text.substr(plain, i - plain));
    if (byte < 0x80) {
      append_escape(out, byte);
    } else {
      out.append(kReplacementCharacter);
    }
    plain = ++i;
  }
  out.append(text.substr(plain));
  out.append("\"");
}

void append_json_number(Buffer& out, uint64_t value) {
  append_integer(out, value);
}
void append_json_number(Buffer& out, int64_t value) {
  append_integer(out, value);
}
void append_json_number(Buffer& out, double value) {
  append_float(out, value);
}
void append_json_number(Buffer& out, float value) {
  append_float(out, value);
}

}  // namespace dyn::wire
