// Small text help for the option machinery: whole-text numbers, sizes with a suffix, words, near-miss suggestions.
//
//   parse_int("42") == 42;  !parse_int("42x");  parse_bytes("4GiB") == 4294967296;
//   closest("max-bach-size", names) == "max-batch-size"
//
// No locale, no exceptions, no thread rules.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dyn::app {

std::string to_lower(std::string_view text);
std::string_view trim(std::string_view text);

// The non-empty parts between any of `separators`.
std::vector<std::string_view> split(std::string_view text, std::string_view separators = " ");

// The whole text as a number; nothing on anything else, overflow included.
std::optional<int64_t> parse_int(std::string_view text);
std::optional<double> parse_double(std::string_view text);  // finite

// The shortest text that reads back as the same number.
std::string format_double(double value);

// Bytes: an integer or decimal with an optional suffix. K, M, G, T and KiB ... TiB are powers of 1024; KB ... TB are
// powers of 1000; B or nothing: bytes. Upper or lower case.
std::optional<uint64_t> parse_bytes(std::string_view text);

// True, false in Dynamo's words (1/true/on/yes, 0/false/off/no); nothing otherwise.
std::optional<bool> parse_bool(std::string_view text);

// The candidate that is probably meant by `word`, by edit distance; nothing when none is near.
std::optional<std::string> closest(std::string_view word, std::span<const std::string> candidates);

}  // namespace dyn::app
