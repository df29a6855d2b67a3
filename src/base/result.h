// Result<T>: a value or an Error. The only way a failure crosses the border of a room; exceptions stay inside one.
//
//   Result<Config> load(const std::string& path) {
//     auto text = read_file(path);
//     if (!text) return text.error().with_context("reading " + path);
//     ...
//     return config;
//   }
//
// Error messages are for people: what happened, to which thing, and if possible what to do. Thread rules: plain values.
#pragma once

#include <cassert>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace dyn {

enum class Code : uint8_t {
  kCancelled,        // the caller or its client went away
  kInvalidArgument,  // the request or the configuration is wrong; trying again does not help
  kNotFound,
  kAlreadyExists,
  kUnsupported,  // understood, but this build, engine or version cannot do it
  kOverloaded,   // a limit is reached; trying again later or elsewhere helps
  kUnavailable,  // a peer or a resource is not there now
  kDeadline,
  kInternal,    // a defect of ours, or an I/O failure nobody expects
  kEngineDead,  // the engine cannot go on; the process must end
};

// "invalid_argument", "not_found", ...: for logs and metric labels.
std::string_view to_string(Code code);

struct Error {
  Code code = Code::kInternal;
  std::string message;

  // The same error with "context: " in front of the message.
  [[nodiscard]] Error with_context(std::string_view context) const {
    return Error{code, std::string(context) + ": " + message};
  }
};

inline Error invalid_argument(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}
inline Error unsupported(std::string message) {
  return {Code::kUnsupported, std::move(message)};
}
inline Error internal_error(std::string message) {
  return {Code::kInternal, std::move(message)};
}

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit on purpose
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return *check(std::get_if<0>(&state_)); }
  const T& value() const& { return *check(std::get_if<0>(&state_)); }
  T&& value() && { return std::move(*check(std::get_if<0>(&state_))); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  [[nodiscard]] const Error& error() const { return *check(std::get_if<1>(&state_)); }

 private:
  template <class P>
  static P* check(P* p) {
    assert(p != nullptr && "Result holds the other alternative");
    return p;
  }
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}  // NOLINT: implicit on purpose

  [[nodiscard]] bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  [[nodiscard]] const Error& error() const {
    assert(!ok_);
    return error_;
  }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace dyn
