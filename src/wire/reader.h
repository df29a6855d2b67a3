// Reader: one pull reader for values of any codec, so that a decoder is written once for JSON and msgpack.
//
//   Result<Options> decode(Reader& in) {
//     Options options;
//     in.read_object([&](std::string_view key) {
//       if (key == "seed") return in.read(options.seed);      // std::optional<int64_t>: null is "not set"
//       if (key == "stop") return in.read(options.stop);      // std::vector<std::string>
//       return in.skip();                                     // unknown members are ignored
//     });
//     if (auto done = in.finish(); !done) return done.error();  // the first error, with the member's path
//     return options;
//   }
//
// Every read consumes one value and returns false on an error; after an error all reads return false, so that checking
// once at the end is enough. Rules, the same for all codecs:
//   - integers: any width; a float is accepted when it is integral ("1.0"); out of range is an error, never wrapped
//   - floats: any number; NaN and infinities are errors
//   - strings: valid UTF-8
//   - members: keys are strings; of a member that occurs twice the later one wins
//   - nesting: at most max_depth containers
// Ownership: string views stay valid as long as the reader and its input. Thread rules: one thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/result.h"

namespace dyn::wire {

inline constexpr unsigned kMaxDepth = 64;  // the deepest nesting that any reader can be asked to accept

// Elements of a list that is no list of integers: an empty string takes one byte on the wire and 32 in memory.
inline constexpr size_t kMaxListItems = 65536;

enum class Kind : uint8_t {
  kNothing,  // an error, or no value left
  kNull,
  kBool,
  kNumber,
  kString,
  kBinary,     // msgpack only
  kExtension,  // msgpack only: can be skipped, not read
  kArray,
  kObject,
};

// A number as it was written, before anybody asks for a type.
struct Number {
  enum class Form : uint8_t { kUnsigned, kNegative, kFloat };
  Form form = Form::kUnsigned;
  uint64_t unsigned_value = 0;
  int64_t negative_value = 0;
  double float_value = 0;
};

class Reader {
 public:
  virtual ~Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Kind of the value that comes next.
  [[nodiscard]] virtual Kind peek() = 0;

  // Kind of the first element of the array that comes next; kNothing, without an error, if it is empty or no array.
  [[nodiscard]] virtual Kind peek_first_element() = 0;

  bool read(bool& out);
  bool read(uint16_t& out);
  bool read(uint32_t& out);
  bool read(uint64_t& out);
  bool read(int64_t& out);
  bool read(double& out);
  bool read(std::string& out);
  bool read(std::string_view& out);
  bool read(Bytes& out);  // binary only
  bool read(Number& out);

  template <class T>
  bool read(std::optional<T>& out) {
    out.reset();
    if (peek() == Kind::kNull) return take_null();
    return read(out.emplace());
  }
  template <class T>
  bool read(std::vector<T>& out) {
    out.clear();
    return read_array([&](size_t i) { return i < kMaxListItems ? read(out.emplace_back()) : fail_long_list(); });
  }
  bool read(std::vector<uint32_t>& out) { return read_u32s(out, SIZE_MAX); }

  // Null leaves `out` as it is: for members whose absence has a default.
  template <class T>
  bool read_unless_null(T& out) {
    if (peek() == Kind::kNull) return take_null();
    return read(out);
  }

  // A list of at most `max` integers, by a tight loop. Memory is taken only after the count is checked.
  bool read_u32s(std::vector<uint32_t>& out, size_t max);

  // member(std::string_view key) must consume the member's value and return whether that worked.
  template <class F>
  bool read_object(F&& member) {
    if (!open(Kind::kObject)) return false;
    std::string_view key;
    while (next_member(key)) {
      path_[depth_ - 1] = {key, 0};
      if (!member(key)) return false;
    }
    return close();
  }

  // element(size_t index) must consume one element.
  template <class F>
  bool read_array(F&& element) {
    if (!open(Kind::kArray)) return false;
    for (size_t i = 0; next_element(); ++i) {
      path_[depth_ - 1] = {{}, i};
      if (!element(i)) return false;
    }
    return close();
  }

  // Any value, as compact JSON text behind `out`. Binary data and extensions have none: an error.
  bool append_json(Buffer& out);
  // Any value, as msgpack behind `out`.
  bool append_msgpack(Buffer& out);

  // Passes over one value of any kind.
  virtual bool skip() = 0;

  // Records the error "<path>: <what>" unless there is one already. Always false.
  bool fail(std::string_view what);

  [[nodiscard]] bool ok() const { return !error_.has_value(); }

  // The first error, or one about bytes behind the value.
  [[nodiscard]] Result<void> finish();

 protected:
  explicit Reader(unsigned max_depth) : max_depth_(max_depth < kMaxDepth ? max_depth : kMaxDepth) {}

  // The codec's part. take_*() is called only when peek() says that such a value comes next.
  virtual bool take_null() = 0;
  virtual bool take_bool(bool& out) = 0;
  virtual bool take_number(Number& out) = 0;
  virtual bool take_string(std::string_view& out) = 0;
  virtual bool take_binary(Bytes& out) = 0;
  virtual bool enter(size_t& count) = 0;                // a container: number of its elements or members
  virtual bool next_member(std::string_view& key) = 0;  // false: no more, or an error
  virtual bool next_element() = 0;
  virtual void leave() = 0;
  virtual bool at_end() = 0;
  // Appends all of an entered array of `count` elements; false without an error: use the slow way for this array.
  virtual bool take_u32s(std::vector<uint32_t>& out, size_t count) = 0;

  [[nodiscard]] unsigned depth() const { return depth_; }
  [[nodiscard]] unsigned max_depth() const { return max_depth_; }
  void set_index(size_t index) { path_[depth_ - 1] = {{}, index}; }
  bool fail_type(std::string_view expected);

 private:
  struct Step {
    std::string_view key;  // of an object
    size_t index = 0;      // of an array, where key has no data
  };

  bool open(Kind kind);
  bool fail_long_list();
  bool close();
  [[nodiscard]] std::string path() const;
  template <class Integer>
  bool read_integer(Integer& out, std::string_view name);

  unsigned max_depth_;
  unsigned depth_ = 0;
  size_t count_ = 0;  // of the container opened last
  std::array<Step, kMaxDepth> path_;
  std::optional<Error> error_;
};

}  // namespace dyn::wire
