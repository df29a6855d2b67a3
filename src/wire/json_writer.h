// Writing JSON: compact text appended to a Buffer, as serde_json writes it.
//
//   JsonWriter json(out);
//   json.begin_object();
//   json.member("name", "tiny");
//   json.key("sizes");
//   json.begin_array();
//   json.value(1);
//   json.end_array();
//   json.end_object();               // {"name":"tiny","sizes":[1]}
//
// The writer places commas; balanced begin/end calls are the caller's duty. Whatever the input, the text is valid JSON:
// bytes that are no UTF-8 become U+FFFD, NaN and infinities become the nearest finite numbers (NaN: 0).
// Ownership: the buffer must outlive the writer. Thread rules: one thread at a time.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/buffer.h"

namespace dyn::wire {

// A quoted, escaped string.
void append_json_string(Buffer& out, std::string_view text);
void append_json_number(Buffer& out, uint64_t value);
void append_json_number(Buffer& out, int64_t value);
// The shortest text that reads back as the same double; always with a '.' or an exponent, so that it stays a float.
void append_json_number(Buffer& out, double value);
// The same for a float: 0.1F is "0.1".
void append_json_number(Buffer& out, float value);

class JsonWriter {
 public:
  explicit JsonWriter(Buffer& out) : out_(out) {}

  void begin_object() { open('{'); }
  void end_object() { shut('}'); }
  void begin_array() { open('['); }
  void end_array() { shut(']'); }

  void key(std::string_view name) {
    separate();
    append_json_string(out_, name);
    out_.append(":");
    comma_ = false;
  }

  void null() { raw("null"); }
  void value(std::string_view text) {
    separate();
    append_json_string(out_, text);
  }
  void value(const char* text) { value(std::string_view(text)); }
  void value(std::same_as<bool> auto flag) { raw(flag ? "true" : "false"); }
  template <std::integral T>
    requires(!std::same_as<T, bool>)
  void value(T number) {
    separate();
    if constexpr (std::signed_integral<T>) {
      append_json_number(out_, static_cast<int64_t>(number));
    } else {
      append_json_number(out_, static_cast<uint64_t>(number));
    }
  }
  void value(std::floating_point auto number) {
    separate();
    append_json_number(out_, number);
  }
  template <class T>
  void value(const std::optional<T>& maybe) {
    if (maybe) {
      value(*maybe);
    } else {
      null();
    }
  }
  // Text that is JSON already.
  void raw(std::string_view json) {
    separate();
    out_.append(json);
  }

  template <class T>
  void member(std::string_view name, const T& what) {
    key(name);
    value(what);
  }

 private:
  void separate() {
    if (comma_) out_.append(",");
    comma_ = true;
  }
  void open(char bracket) {
    separate();
    out_.append(std::string_view(&bracket, 1));
    comma_ = false;
  }
  void shut(char bracket) {
    out_.append(std::string_view(&bracket, 1));
    comma_ = true;
  }

  Buffer& out_;
  bool comma_ = false;  // a value stands before the next one
};

}  // namespace dyn::wire
