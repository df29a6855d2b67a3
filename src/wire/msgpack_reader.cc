#include "wire/msgpack_reader.h"

#include <bit>

#include "wire/utf8.h"

namespace dyn::wire {
namespace {

// Markers of the msgpack specification.
enum Marker : uint8_t {
  kFixMap = 0x80,
  kFixArray = 0x90,
  kFixStr = 0xA0,
  kNil = 0xC0,
  kNeverUsed = 0xC1,
  kFalse = 0xC2,
  kTrue = 0xC3,
  kBin8 = 0xC4,
  kExt8 = 0xC7,
  kExt32 = 0xC9,
  kFloat32 = 0xCA,
  kFloat64 = 0xCB,
  kUint8 = 0xCC,
  kUint16 = 0xCD,
  kUint32 = 0xCE,
  kUint64 = 0xCF,
  kInt8 = 0xD0,
  kInt16 = 0xD1,
  kInt32 = 0xD2,
  kInt64 = 0xD3,
  kFixExt1 = 0xD4,
  kFixExt16 = 0xD8,
  kStr8 = 0xD9,
  kArray16 = 0xDC,
  kMap16 = 0xDE,
  kNegativeFix = 0xE0,
};

Kind kind_of(uint8_t marker) {
  if (marker < kFixMap || marker >= kNegativeFix) return Kind::kNumber;
  if (marker < kFixArray) return Kind::kObject;
  if (marker < kFixStr) return Kind::kArray;
  if (marker < kNil) return Kind::kString;
  if (marker == kNil) return Kind::kNull;
  if (marker == kNeverUsed) return Kind::kNothing;
  if (marker <= kTrue) return Kind::kBool;
  if (marker < kExt8) return Kind::kBinary;
  if (marker <= kExt32) return Kind::kExtension;
  if (marker <= kInt64) return Kind::kNumber;
  if (marker <= kFixExt16) return Kind::kExtension;
  if (marker < kArray16) return Kind::kString;
  return marker < kMap16 ? Kind::kArray : Kind::kObject;
}

}  // namespace

Kind MsgpackReader::peek() {
  if (!ok()) return Kind::kNothing;
  if (left() == 0) {
    fail("the document is cut off");
    return Kind::kNothing;
  }
  const Kind kind = kind_of(byte(0));
  if (kind == Kind::kNothing) fail("0xc1 is no msgpack marker");
  return kind;
}

Kind MsgpackReader::peek_first_element() {
  Head array;
  if (peek() != Kind::kArray || !head(array) || array.count == 0) return Kind::kNothing;
  return kind_of(byte(array.size));
}

// Reads the marker and the length behind it, and checks the length against what is left. Nothing is consumed.
bool MsgpackReader::head(Head& out) {
  out.kind = peek();
  if (out.kind == Kind::kNothing) return false;
  const uint8_t marker = byte(0);

  size_t length_bytes = 0;  // width of the length behind the marker
  uint64_t extra = 0;       // bytes between the length and the content: an extension's type
  switch (out.kind) {
    case Kind::kNumber:
      if (marker < kFixMap || marker >= kNegativeFix) {
        out.size = 1;
      } else if (marker <= kFloat64) {
        out.size = marker == kFloat32 ? 5 : 9;
      } else {
        out.size = 1 + (size_t{1} << (marker & 3));  // uint8..uint64, int8..int64
      }
      if (left() < out.size) return fail("the document is cut off");
      return true;
    case Kind::kNull:
    case Kind::kBool:
      out.size = 1;
      return true;
    case Kind::kObject:
      if (marker < kFixArray) {
        out.count = marker & 15;
      } else {
        length_bytes = size_t{2} << (marker - kMap16);
      }
      break;
    case Kind::kArray:
      if (marker < kFixStr) {
        out.count = marker & 15;
      } else {
        length_bytes = size_t{2} << (marker - kArray16);
      }
      break;
    case Kind::kString:
      if (marker < kNil) {
        out.count = marker & 31;
      } else {
        length_bytes = size_t{1} << (marker - kStr8);
      }
      break;
    case Kind::kBinary:
      length_bytes = size_t{1} << (marker - kBin8);
      break;
    case Kind::kExtension:
      extra = 1;
      if (marker >= kFixExt1) {
        out.count = uint64_t{1} << (marker - kFixExt1);
      } else {
        length_bytes = size_t{1} << (marker - kExt8);
      }
      break;
    case Kind::kNothing:
      return false;
  }

  out.size = 1 + length_bytes + extra;
  if (left() < out.size) return fail("the document is cut off");
  if (length_bytes == 1) out.count = byte(1);
  if (length_bytes == 2) out.count = load<uint16_t>(1);
  if (length_bytes == 4) out.count = load<uint32_t>(1);
  // An element takes at least one byte, a member two.
  const uint64_t least = out.kind == Kind::kObject ? out.count * 2 : out.count;
  if (least > left() - out.size) return fail("a length reaches beyond the end of the document");
  return true;
}

bool MsgpackReader::take_null() {
  ++position_;
  return true;
}

bool MsgpackReader::take_bool(bool& out) {
  out = byte(0) == kTrue;
  ++position_;
  return true;
}

bool MsgpackReader::take_number(Number& out) {
  Head number;
  if (!head(number)) return false;
  const uint8_t marker = byte(0);
  const auto set_unsigned = [&](uint64_t value) {
    out.form = Number::Form::kUnsigned;
    out.unsigned_value = value;
  };
  const auto set_signed = [&](int64_t value) {
    if (value >= 0) return set_unsigned(static_cast<uint64_t>(value));
    out.form = Number::Form::kNegative;
    out.negative_value = value;
  };
  const auto set_float = [&](double value) {
    out.form = Number::Form::kFloat;
    out.float_value = value;
  };
  switch (marker) {
    case kFloat32:
      set_float(static_cast<double>(std::bit_cast<float>(load<uint32_t>(1))));
      break;
    case kFloat64:
      set_float(std::bit_cast<double>(load<uint64_t>(1)));
      break;
    case kUint8:
      set_unsigned(byte(1));
      break;
    case kUint16:
      set_unsigned(load<uint16_t>(1));
      break;
    case kUint32:
      set_unsigned(load<uint32_t>(1));
      break;
    case kUint64:
      set_unsigned(load<uint64_t>(1));
      break;
    case kInt8:
      set_signed(static_cast<int8_t>(byte(1)));
      break;
    case kInt16:
      set_signed(static_cast<int16_t>(load<uint16_t>(1)));
      break;
    case kInt32:
      set_signed(static_cast<int32_t>(load<uint32_t>(1)));
      break;
    case kInt64:
      set_signed(static_cast<int64_t>(load<uint64_t>(1)));
      break;
    default:
      set_signed(static_cast<int8_t>(marker));
      break;  // positive and negative fixint
  }
  position_ += number.size;
  return true;
}

bool MsgpackReader::take_bytes(Bytes& out) {
  Head content;
  if (!head(content)) return false;
  out = in_.subspan(position_ + content.size, content.count);
  position_ += content.size + content.count;
  return true;
}

bool MsgpackReader::take_string(std::string_view& out) {
  Bytes bytes;
  if (!take_bytes(bytes)) return false;
  out = as_text(bytes);
  if (find_invalid_utf8(out) != std::string_view::npos) return fail("the string is not valid UTF-8");
  return true;
}

bool MsgpackReader::take_binary(Bytes& out) {
  return take_bytes(out);
}

bool MsgpackReader::enter(size_t& count) {
  Head container;
  if (!head(container)) return false;
  count = container.count;
  position_ += container.size;
  remaining_[depth()] = count;
  return true;
}

bool MsgpackReader::next_member(std::string_view& key) {
  size_t& remaining = remaining_[depth() - 1];
  if (!ok() || remaining == 0) return false;
  --remaining;
  if (peek() != Kind::kString) return fail_type("a string as the key");
  return take_string(key);
}

bool MsgpackReader::next_element() {
  size_t& remaining = remaining_[depth() - 1];
  if (!ok() || remaining == 0) return false;
  --remaining;
  return true;
}

bool MsgpackReader::take_u32s(std::vector<uint32_t>& out, size_t count) {
  // Token ids come in one, two, three or five bytes; whatever else there is takes the slow way, from the start.
  const std::byte* at = in_.data() + position_;
  const std::byte* const end = in_.data() + in_.size();
  out.resize(count);
  for (uint32_t& value : out) {
    if (at == end) return false;
    const auto marker = static_cast<uint8_t>(*at);
    if (marker < kFixMap) {
      value = marker;
      at += 1;
    } else if (marker == kUint16 && end - at >= 3) {
      value = load_be<uint16_t>(at + 1);
      at += 3;
    } else if (marker == kUint32 && end - at >= 5) {
      value = load_be<uint32_t>(at + 1);
      at += 5;
    } else if (marker == kUint8 && end - at >= 2) {
      value = static_cast<uint8_t>(at[1]);
      at += 2;
    } else {
      return false;
    }
  }
  position_ = static_cast<size_t>(at - in_.data());
  remaining_[depth() - 1] = 0;
  return true;
}

bool MsgpackReader::skip() {
  std::array<uint64_t, kMaxDepth + 1> pending{};  // values left to pass over, per open container
  unsigned level = 0;
  pending[0] = 1;
  while (true) {
    while (pending[level] == 0) {
      if (level == 0) return true;
      --level;
    }
    --pending[level];
    Head value;
    if (!head(value)) return false;
    position_ += value.size;
    if (value.kind == Kind::kArray || value.kind == Kind::kObject) {
      if (depth() + level == max_depth())
        return fail("more than " + std::to_string(max_depth()) + " levels of nesting");
      pending[++level] = value.kind == Kind::kObject ? value.count * 2 : value.count;
    } else {
      position_ += value.count;
    }
  }
}

}  // namespace dyn::wire
