#include "wire/reader.h"

#include <cmath>
#include <limits>

#include "wire/json_writer.h"
#include "wire/msgpack_writer.h"

namespace dyn::wire {
namespace {

std::string_view describe(Kind kind) {
  switch (kind) {
    case Kind::kNothing:
      return "nothing";
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return "a boolean";
    case Kind::kNumber:
      return "a number";
    case Kind::kString:
      return "a string";
    case Kind::kBinary:
      return "binary data";
    case Kind::kExtension:
      return "an extension value";
    case Kind::kArray:
      return "a list";
    case Kind::kObject:
      return "an object";
  }
  return "nothing";
}

// The integer that a number stands for, when it fits.
template <class Integer>
bool to_integer(const Number& number, Integer& out) {
  using Limits = std::numeric_limits<Integer>;
  switch (number.form) {
    case Number::Form::kUnsigned:
      if (number.unsigned_value > static_cast<uint64_t>(Limits::max())) return false;
      out = static_cast<Integer>(number.unsigned_value);
      return true;
    case Number::Form::kNegative:
      if (!Limits::is_signed || number.negative_value < static_cast<int64_t>(Limits::min())) return false;
      out = static_cast<Integer>(number.negative_value);
      return true;
    case Number::Form::kFloat: {
      // 2^digits is the first integral value that does not fit, and exact as a double.
      const double bound = std::ldexp(1.0, Limits::digits);
      const double value = number.float_value;
      if (!(value < bound) || !(value >= (Limits::is_signed ? -bound : 0.0)) || value != std::trunc(value))
        return false;
      out = static_cast<Integer>(value);
      return true;
    }
  }
  return false;
}

}  // namespace

bool Reader::fail(std::string_view what) {
  if (!error_) {
    const std::string where = path();
    error_ = invalid_argument(where.empty() ? std::string(what) : where + ": " + std::string(what));
  }
  return false;
}

bool Reader::fail_type(std::string_view expected) {
  const Kind kind = peek();
  if (!ok()) return false;
  return fail("expected " + std::string(expected) + ", got " + std::string(describe(kind)));
}

bool Reader::fail_long_list() {
  return fail("the list has more than " + std::to_string(kMaxListItems) + " elements");
}

std::string Reader::path() const {
  std::string text;
  for (unsigned i = 0; i < depth_; ++i) {
    const Step& step = path_[i];
    if (step.key.data() == nullptr) {
      text += '[' + std::to_string(step.index) + ']';
      continue;
    }
    if (!text.empty()) text += '.';
    text += step.key.substr(0, 64);  // a peer's key: enough to find it
  }
  return text;
}

bool Reader::open(Kind kind) {
  if (peek() != kind) return fail_type(describe(kind));
  if (depth_ == max_depth_) return fail("more than " + std::to_string(max_depth_) + " levels of nesting");
  if (!enter(count_)) return false;
  path_[depth_++] = {};
  return true;
}

bool Reader::close() {
  if (!ok()) return false;
  --depth_;
  leave();
  return true;
}

bool Reader::read(bool& out) {
  return peek() == Kind::kBool ? take_bool(out) : fail_type("a boolean");
}

bool Reader::read(Number& out) {
  return peek() == Kind::kNumber ? take_number(out) : fail_type("a number");
}

bool Reader::read(std::string_view& out) {
  return peek() == Kind::kString ? take_string(out) : fail_type("a string");
}

bool Reader::read(std::string& out) {
  std::string_view view;
  if (!read(view)) return false;
  out.assign(view);
  return true;
}

bool Reader::read(Bytes& out) {
  return peek() == Kind::kBinary ? take_binary(out) : fail_type("binary data");
}

template <class Integer>
bool Reader::read_integer(Integer& out, std::string_view name) {
  if (peek() != Kind::kNumber) return fail_type(name);
  Number number;
  if (!take_number(number)) return false;
  if (!to_integer(number, out)) return fail("the number is not " + std::string(name));
  return true;
}

bool Reader::read(uint16_t& out) {
  return read_integer(out, "an unsigned 16-bit integer");
}
bool Reader::read(uint32_t& out) {
  return read_integer(out, "an unsigned 32-bit integer");
}
bool Reader::read(uint64_t& out) {
  return read_integer(out, "an unsigned 64-bit integer");
}
bool Reader::read(int64_t& out) {
  return read_integer(out, "a 64-bit integer");
}

bool Reader::read(double& out) {
  Number number;
  if (!read(number)) return false;
  switch (number.form) {
    case Number::Form::kUnsigned:
      out = static_cast<double>(number.unsigned_value);
      return true;
    case Number::Form::kNegative:
      out = static_cast<double>(number.negative_value);
      return true;
    case Number::Form::kFloat:
      if (!std::isfinite(number.float_value)) return fail("the number is not finite");
      out = number.float_value;
      return true;
  }
  return false;
}

bool Reader::read_u32s(std::vector<uint32_t>& out, size_t max) {
  out.clear();
  if (!open(Kind::kArray)) return false;
  if (count_ > max) {
    --depth_;  // said of the list, not of an element
    return fail("the list has more than " + std::to_string(max) + " elements");
  }
  out.reserve(count_);
  if (take_u32s(out, count_)) return close();
  if (!ok()) return false;
  out.clear();
  for (size_t i = 0; next_element(); ++i) {
    set_index(i);
    if (!read(out.emplace_back())) return false;
  }
  return close();
}

bool Reader::append_json(Buffer& out) {
  JsonWriter writer(out);
  switch (peek()) {
    case Kind::kNull:
      if (!take_null()) return false;
      writer.null();
      return true;
    case Kind::kBool: {
      bool value = false;
      if (!take_bool(value)) return false;
      writer.value(value);
      return true;
    }
    case Kind::kNumber: {
      Number number;
      if (!take_number(number)) return false;
      if (number.form == Number::Form::kUnsigned) {
        writer.value(number.unsigned_value);
      } else if (number.form == Number::Form::kNegative) {
        writer.value(number.negative_value);
      } else if (std::isfinite(number.float_value)) {
        writer.value(number.float_value);
      } else {
        return fail("the number is not finite");
      }
      return true;
    }
    case Kind::kString: {
      std::string_view text;
      if (!take_string(text)) return false;
      writer.value(text);
      return true;
    }
    case Kind::kArray: {
      out.append("[");
      const bool done = read_array([&](size_t i) {
        if (i > 0) out.append(",");
        return append_json(out);
      });
      out.append("]");
      return done;
    }
    case Kind::kObject: {
      out.append("{");
      bool first = true;
      const bool done = read_object([&](std::string_view key) {
        if (!first) out.append(",");
        first = false;
        append_json_string(out, key);
        out.append(":");
        return append_json(out);
      });
      out.append("}");
      return done;
    }
    case Kind::kBinary:
    case Kind::kExtension:
    case Kind::kNothing:
      break;
  }
  return fail_type("a value that JSON can hold");
}

bool Reader::append_msgpack(Buffer& out) {
  switch (peek()) {
    case Kind::kNull:
      pack_nil(out);
      return take_null();
    case Kind::kBool: {
      bool value = false;
      if (!take_bool(value)) return false;
      pack_bool(out, value);
      return true;
    }
    case Kind::kNumber: {
      Number number;
      if (!take_number(number)) return false;
      if (number.form == Number::Form::kUnsigned) {
        pack_uint(out, number.unsigned_value);
      } else if (number.form == Number::Form::kNegative) {
        pack_int(out, number.negative_value);
      } else {
        pack_double(out, number.float_value);
      }
      return true;
    }
    case Kind::kString: {
      std::string_view text;
      if (!take_string(text)) return false;
      pack_str(out, text);
      return true;
    }
    case Kind::kBinary: {
      Bytes bytes;
      if (!take_binary(bytes)) return false;
      pack_bin(out, bytes);
      return true;
    }
    case Kind::kArray: {
      if (!open(Kind::kArray)) return false;
      pack_array(out, count_);
      for (size_t i = 0; next_element(); ++i) {
        set_index(i);
        if (!append_msgpack(out)) return false;
      }
      return close();
    }
    case Kind::kObject: {
      if (!open(Kind::kObject)) return false;
      pack_map(out, count_);
      std::string_view key;
      while (next_member(key)) {
        path_[depth_ - 1] = {key, 0};
        pack_str(out, key);
        if (!append_msgpack(out)) return false;
      }
      return close();
    }
    case Kind::kExtension:
    case Kind::kNothing:
      break;
  }
  return fail_type("a value that msgpack can hold");
}

Result<void> Reader::finish() {
  if (!error_ && !at_end()) fail("there are bytes behind the value");
  if (error_) return *error_;
  return {};
}

}  // namespace dyn::wire
