#include "base/env.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>

namespace dyn {

namespace {

template <size_t N>
bool is_one_of(std::string_view text, const std::array<std::string_view, N>& words) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return std::find(words.begin(), words.end(), lower) != words.end();
}

}  // namespace

std::optional<std::string> env(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

bool is_truthy(std::string_view text) {
  return is_one_of(text, std::array<std::string_view, 4>{"1", "true", "on", "yes"});
}

bool is_falsy(std::string_view text) {
  return is_one_of(text, std::array<std::string_view, 5>{"", "0", "false", "off", "no"});
}

}  // namespace dyn
