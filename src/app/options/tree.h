// Tree: an untyped configuration tree, as read from a YAML file, from JSON text or from dotted flags.
//
//   auto tree = parse_yaml(text, "engine.yaml");
//   if (!tree) return tree.error();              // "engine.yaml:12:3: duplicate key 'backend' (first on line 4)"
//   for (size_t i = 0; i < tree->keys.size(); ++i) use(tree->keys[i], tree->items[i]);
//
// Both parsers are strict: duplicate keys, trailing content, more than one document, unknown tags and everything beyond
// TreeLimits is an error that names the place. YAML scalars are typed as PyYAML's safe_load types them (yes/no/on/off
// are booleans), because that is what reads the same files for the Python worker; a number in exponent form without a
// dot (1e-3) is a number here. Plain values, owned by the caller; no thread rules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dyn::app {

struct Tree {
  enum class Kind : uint8_t { kNull, kBool, kInt, kFloat, kText, kList, kMap };

  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;
  double number = 0;
  std::string text;               // a scalar as it was written, without quotes
  std::vector<std::string> keys;  // of a map, in order, one an item
  std::vector<Tree> items;        // of a list or a map
  uint32_t line = 0;              // from 1; 0: not from a file
  uint32_t column = 0;

  [[nodiscard]] bool is_scalar() const { return kind != Kind::kList && kind != Kind::kMap; }
  [[nodiscard]] const Tree* find(std::string_view key) const;

  // Compact JSON of this tree, keys in order.
  [[nodiscard]] std::string to_json() const;
};

// "null", "a boolean", "a map", ...: for messages.
std::string_view to_string(Tree::Kind kind);

struct TreeLimits {
  size_t max_bytes = 1 << 20;  // of the text
  size_t max_nodes = 20'000;   // after the expansion of YAML aliases
  unsigned max_depth = 32;     // of nested maps and lists
};

// `name` stands in front of error messages. Empty text is an empty map.
Result<Tree> parse_yaml(std::string_view text, std::string_view name, const TreeLimits& limits = {});
Result<Tree> parse_json(std::string_view text, std::string_view name, const TreeLimits& limits = {});

// The type that the value of a dotted flag (--trtllm.a.b VALUE) has: null words, integer, float, true/false, else text.
// Source: dynamo.trtllm 1.5, dynamic_flags.py.
Tree dotted_scalar(std::string_view text);

}  // namespace dyn::app
