#include "app/options/tree.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "app/options/text.h"

namespace dyn::app {

namespace {

void append_json_text(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      out += "\\u00";
      out += kHex[(c >> 4) & 0xF];
      out += kHex[c & 0xF];
    } else {
      out += c;
    }
  }
  out += '"';
}

void append_json(std::string& out, const Tree& tree) {
  switch (tree.kind) {
    case Tree::Kind::kNull:
      out += "null";
      return;
    case Tree::Kind::kBool:
      out += tree.boolean ? "true" : "false";
      return;
    case Tree::Kind::kInt:
      out += std::to_string(tree.integer);
      return;
    case Tree::Kind::kFloat:
      if (std::isfinite(tree.number)) {
        out += format_double(tree.number);
      } else {
        append_json_text(out, tree.text);
      }
      return;
    case Tree::Kind::kText:
      append_json_text(out, tree.text);
      return;
    case Tree::Kind::kList:
    case Tree::Kind::kMap: {
      const bool map = tree.kind == Tree::Kind::kMap;
      out += map ? '{' : '[';
      for (size_t i = 0; i < tree.items.size(); ++i) {
        if (i > 0) out += ',';
        if (map) {
          append_json_text(out, tree.keys[i]);
          out += ':';
        }
        append_json(out, tree.items[i]);
      }
      out += map ? '}' : ']';
      return;
    }
  }
}

}  // namespace

const Tree* Tree::find(std::string_view key) const {
  const auto at = std::find(keys.begin(), keys.end(), key);
  return at == keys.end() ? nullptr : &items[static_cast<size_t>(at - keys.begin())];
}

std::string Tree::to_json() const {
  std::string out;
  append_json(out, *this);
  return out;
}

std::string_view to_string(Tree::Kind kind) {
  switch (kind) {
    case Tree::Kind::kNull:
      return "null";
    case Tree::Kind::kBool:
      return "a boolean";
    case Tree::Kind::kInt:
      return "an integer";
    case Tree::Kind::kFloat:
      return "a number";
    case Tree::Kind::kText:
      return "text";
    case Tree::Kind::kList:
      return "a list";
    case Tree::Kind::kMap:
      return "a map";
  }
  return "?";
}

Tree dotted_scalar(std::string_view text) {
  Tree tree;
  tree.text = text;
  const std::string lower = to_lower(text);
  if (lower == "none" || lower == "null") return tree;
  if (const auto integer = parse_int(text)) {
    tree.kind = Tree::Kind::kInt;
    tree.integer = *integer;
  } else if (const auto number = parse_double(text)) {
    tree.kind = Tree::Kind::kFloat;
    tree.number = *number;
  } else if (lower == "true" || lower == "false") {
    tree.kind = Tree::Kind::kBool;
    tree.boolean = lower == "true";
  } else {
    tree.kind = Tree::Kind::kText;
  }
  return tree;
}

}  // namespace dyn::app
