#include "app/options/text.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/env.h"

namespace dyn::app {

std::string to_lower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find_first_of(separators, at), text.size());
    if (end > at) parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

std::optional<int64_t> parse_int(std::string_view text) {
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return std::nullopt;
  }
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_double(std::string_view text) {
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return std::nullopt;
  }
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::string format_double(double value) {
  std::array<char, 32> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return error == std::errc() ? std::string(buffer.data(), end) : std::string("0");
}

std::optional<uint64_t> parse_bytes(std::string_view text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  std::string suffix = to_lower(trim(text.substr(digits)));
  uint64_t unit = 1;
  if (!suffix.empty() && suffix != "b") {
    const size_t power = std::string_view("kmgt").find(suffix[0]);
    if (power == std::string_view::npos) return std::nullopt;
    const std::string_view rest = std::string_view(suffix).substr(1);
    if (rest != "" && rest != "b" && rest != "ib") return std::nullopt;
    for (size_t i = 0; i <= power; ++i) unit *= rest == "b" ? 1000 : 1024;
  }
  const std::string_view amount = text.substr(0, digits);
  if (const auto whole = parse_int(amount)) {
    const auto count = static_cast<uint64_t>(*whole);
    if (count > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / unit) return std::nullopt;
    return count * unit;
  }
  const auto number = parse_double(amount);
  if (!number) return std::nullopt;
  const double bytes = *number * static_cast<double>(unit);
  if (bytes >= 9.2e18) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

std::optional<bool> parse_bool(std::string_view text) {
  text = trim(text);
  if (is_truthy(text)) return true;
  if (!text.empty() && is_falsy(text)) return false;
  return std::nullopt;
}

namespace {

// Levenshtein distance, with a swap of neighbours as one edit.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1);
  std::vector<size_t> previous(b.size() + 1);
  std::vector<size_t> current(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        current[j] = std::min(current[j], before[j - 2] + 1);
      }
    }
    before.swap(previous);
    previous.swap(current);
  }
  return previous[b.size()];
}

}  // namespace

std::optional<std::string> closest(std::string_view word, std::span<const std::string> candidates) {
  constexpr size_t kMaxWord = 128;  // a longer one is no typing error
  constexpr size_t kMinPrefix = 6;
  if (word.empty() || word.size() > kMaxWord) return std::nullopt;
  std::string wanted = to_lower(word);
  std::replace(wanted.begin(), wanted.end(), '_', '-');
  const std::string* best = nullptr;
  size_t best_distance = std::max<size_t>(2, word.size() / 4) + 1;
  for (const std::string& candidate : candidates) {
    std::string name = to_lower(candidate);
    std::replace(name.begin(), name.end(), '_', '-');
    const size_t distance = edit_distance(wanted, name);
    if (distance < best_distance) {
      best_distance = distance;
      best = &candidate;
    }
  }
  if (best == nullptr && word.size() >= kMinPrefix) {
    // A wrong letter in a shortened name: "max-bach" for "max-batch-size".
    for (const std::string& candidate : candidates) {
      for (const size_t length : {word.size(), word.size() + 1}) {
        if (best == nullptr && edit_distance(word, std::string_view(candidate).substr(0, length)) <= 1)
          best = &candidate;
      }
    }
  }
  if (best == nullptr) return std::nullopt;
  return *best;
}

}  // namespace dyn::app
