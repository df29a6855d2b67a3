// The arguments of `dynamo-trtllm bench`: "--name value" and "--name=value", every mistake an error.
//
//   ArgumentReader reader(args);
//   while (reader.more()) {
//     const std::string_view name = reader.next();
//     Result<void> done;
//     if (name == "--seconds") done = reader.take(seconds, 0.1, 60.0);
//     else if (name == "--json") json = true;
//     else return invalid_argument("unknown option " + std::string(name));
//     if (auto checked = reader.finish(done); !checked) return checked.error();
//   }
//
// Ownership: the texts are the caller's and outlive the reader. Thread rules: plain value.
#pragma once

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace dyn::app::bench {

template <class T>
Result<T> parse_number(std::string_view name, std::string_view text, T least, T most) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= least && value <= most))
    return invalid_argument(fmt::format("{}: '{}' is not a number from {} to {}", name, text, least, most));
  return value;
}

class ArgumentReader {
 public:
  explicit ArgumentReader(std::span<const std::string_view> args) : args_(args) {}

  [[nodiscard]] bool more() const { return !args_.empty(); }
  // The next option's name; "--name=value" gives its value to the next take.
  std::string_view next();
  // After each option: the error of its take, or that a switch was given an "=value".
  Result<void> finish(const Result<void>& taken) const;

  Result<void> take(std::string& to);
  // Numbers from 1 to `most`, separated by commas.
  Result<void> take_list(std::vector<unsigned>& to, unsigned most);

  template <class T>
  Result<void> take(T& to, T least, T most) {
    auto text = value();
    if (!text) return text.error();
    auto number = parse_number<T>(name_, *text, least, most);
    if (!number) return number.error();
    to = *number;
    return {};
  }

  template <class T>
  using Choice = std::pair<std::string_view, T>;
  // One of a few words.
  template <class T>
  Result<void> take_choice(T& to, std::initializer_list<Choice<T>> choices) {
    auto text = value();
    if (!text) return text.error();
    std::string words;
    for (const auto& [word, meaning] : choices) {
      if (word == *text) {
        to = meaning;
        return {};
      }
      words += words.empty() ? "" : ", ";
      words += word;
    }
    return invalid_argument(fmt::format("{}: '{}' is none of {}", name_, *text, words));
  }

 private:
  Result<std::string_view> value();

  std::span<const std::string_view> args_;
  std::string_view name_;
  std::optional<std::string_view> inline_value_;
};

}  // namespace dyn::app::bench
