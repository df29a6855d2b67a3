#include "base/env.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
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

Result<double> env_number(const char* name, double fallback) {
  const auto text = env(name);
  if (!text) return fallback;
  char* end = nullptr;
  const double number = std::strtod(text->c_str(), &end);
  if (end == text->c_str() + text->size() && std::isfinite(number)) return number;
  return invalid_argument(std::string(name) + "='" + *text + "' is no number: unset it or give one such as 10 or 2.5");
}

Result<bool> env_truth(const char* name, bool fallback) {
  const auto text = env(name);
  if (!text) return fallback;
  if (is_truthy(*text)) return true;
  if (is_falsy(*text)) return false;
  return invalid_argument(std::string(name) + "='" + *text +
                          "' is neither true nor false: unset it or use true or false");
}

}  // namespace dyn
