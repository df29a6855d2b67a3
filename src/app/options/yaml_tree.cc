#include <yaml-cpp/anchor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <sstream>
#include <unordered_map>

#include "app/options/text.h"
#include "app/options/tree.h"

namespace dyn::app {

namespace {

// Thrown inside this file only: yaml-cpp's event interface has no other way to stop.
struct YamlStop {
  std::string what;
  YAML::Mark mark;
};

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

std::optional<int64_t> yaml_int(std::string_view text) {
  int base = 10;
  const bool negative = text.starts_with('-');
  std::string_view digits = text;
  if (negative || text.starts_with('+')) digits.remove_prefix(1);
  if (digits.starts_with("0x")) {
    base = 16;
  } else if (digits.starts_with("0o")) {
    base = 8;
  }
  if (base == 10) return parse_int(text);
  digits.remove_prefix(2);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
}

// YAML 1.1 as PyYAML resolves plain scalars.
void resolve_plain(Tree& node) {
  const std::string_view text = node.text;
  if (is_one_of(text, {"", "~", "null", "Null", "NULL"})) {
    node.kind = Tree::Kind::kNull;
  } else if (is_one_of(text, {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})) {
    node.kind = Tree::Kind::kBool;
    node.boolean = true;
  } else if (is_one_of(text, {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})) {
    node.kind = Tree::Kind::kBool;
  } else if (const auto integer = yaml_int(text)) {
    node.kind = Tree::Kind::kInt;
    node.integer = *integer;
  } else if (const auto number = parse_double(text)) {
    node.kind = Tree::Kind::kFloat;
    node.number = *number;
  } else {
    node.kind = Tree::Kind::kText;
  }
}

class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const TreeLimits& limits) : limits_(limits) {}

  [[nodiscard]] bool done() const { return done_; }
  [[nodiscard]] Tree take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (done_) throw YamlStop{"more than one document", mark};
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { add(scalar(mark), anchor, mark); }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto at = anchors_.find(anchor);
    if (at == anchors_.end()) throw YamlStop{"an alias inside the value that it names", mark};
    count_nodes(at->second, mark);
    add(at->second, YAML::NullAnchor, mark);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    Tree node = scalar(mark);
    node.text = value;
    node.kind = Tree::Kind::kText;
    if (tag == "?" || tag.empty()) {
      resolve_plain(node);
    } else if (tag != "!" && tag != "tag:yaml.org,2002:str") {
      resolve_plain(node);
      const bool fits =
          (tag == "tag:yaml.org,2002:int" && node.kind == Tree::Kind::kInt) ||
          (tag == "tag:yaml.org,2002:bool" && node.kind == Tree::Kind::kBool) ||
          (tag == "tag:yaml.org,2002:null" && node.kind == Tree::Kind::kNull) ||
          (tag == "tag:yaml.org,2002:float" && (node.kind == Tree::Kind::kFloat || node.kind == Tree::Kind::kInt));
      if (!fits) throw YamlStop{"tag '" + tag + "' is not supported for this value", mark};
    }
    add(std::move(node), anchor, mark);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value /*style*/) override {
    open(Tree::Kind::kList, "tag:yaml.org,2002:seq", mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    open(Tree::Kind::kMap, "tag:yaml.org,2002:map", mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Frame {
    Tree node;
    YAML::anchor_t anchor;
    YAML::Mark mark;
    bool has_key = false;  // of a map: the key stands in keys.back(), its value follows
    std::vector<Tree> merges;
  };

  static Tree scalar(const YAML::Mark& mark) {
    Tree node;
    node.line = static_cast<uint32_t>(mark.line + 1);
    node.column = static_cast<uint32_t>(mark.column + 1);
    return node;
  }

  void count_nodes(const Tree& node, const YAML::Mark& mark) {
    for (const Tree& item : node.items) {
      count(mark);
      count_nodes(item, mark);
    }
  }
  void count(const YAML::Mark& mark) {
    if (++nodes_ > limits_.max_nodes) {
      throw YamlStop{"more than " + std::to_string(limits_.max_nodes) + " values (aliases expanded)", mark};
    }
  }

  void open(Tree::Kind kind, std::string_view known_tag, const YAML::Mark& mark, const std::string& tag,
            YAML::anchor_t anchor) {
    if (!tag.empty() && tag != "?" && tag != "!" && tag != known_tag) {
      throw YamlStop{"tag '" + tag + "' is not supported", mark};
    }
    if (frames_.size() >= limits_.max_depth) {
      throw YamlStop{"nested deeper than " + std::to_string(limits_.max_depth) + " levels", mark};
    }
    if (!frames_.empty() && frames_.back().node.kind == Tree::Kind::kMap && !frames_.back().has_key) {
      throw YamlStop{"a map or list cannot be a key", mark};
    }
    Frame frame{scalar(mark), anchor, mark, false, {}};
    frame.node.kind = kind;
    frames_.push_back(std::move(frame));
  }

  void close() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    // "<<": what the map says itself wins over what is merged, an earlier merged map over a later one.
    for (Tree& merged : frame.merges) {
      for (size_t i = 0; i < merged.keys.size(); ++i) {
        if (frame.node.find(merged.keys[i]) != nullptr) continue;
        frame.node.keys.push_back(merged.keys[i]);
        frame.node.items.push_back(std::move(merged.items[i]));
      }
    }
    add(std::move(frame.node), frame.anchor, frame.mark);
  }

  void add(Tree node, YAML::anchor_t anchor, const YAML::Mark& mark) {
    count(mark);
    if (anchor != YAML::NullAnchor) {
      count_nodes(node, mark);  // the copy
      anchors_[anchor] = node;
    }
    if (depth_of(node) + frames_.size() > limits_.max_depth) {
      throw YamlStop{"nested deeper than " + std::to_string(limits_.max_depth) + " levels", mark};
    }
    if (frames_.empty()) {
      root_ = std::move(node);
      done_ = true;
      return;
    }
    Frame& frame = frames_.back();
    if (frame.node.kind == Tree::Kind::kList) {
      frame.node.items.push_back(std::move(node));
    } else if (!frame.has_key) {
      add_key(frame, node, mark);
    } else {
      frame.has_key = false;
      if (frame.node.keys.back() == "<<") {
        frame.node.keys.pop_back();
        add_merge(frame, std::move(node), mark);
      } else {
        frame.node.items.push_back(std::move(node));
      }
    }
  }

  static void add_key(Frame& frame, const Tree& node, const YAML::Mark& mark) {
    if (!node.is_scalar() || node.kind == Tree::Kind::kNull) throw YamlStop{"a key must be text", mark};
    if (const Tree* first = frame.node.find(node.text)) {
      throw YamlStop{
          "duplicate key '" + node.text + "' (its first value is on line " + std::to_string(first->line) + ")", mark};
    }
    frame.node.keys.push_back(node.text);
    frame.has_key = true;
  }

  static void add_merge(Frame& frame, Tree node, const YAML::Mark& mark) {
    if (node.kind == Tree::Kind::kMap) {
      frame.merges.push_back(std::move(node));
      return;
    }
    const bool maps = node.kind == Tree::Kind::kList && std::all_of(node.items.begin(), node.items.end(),
                                                                    [](auto& i) { return i.kind == Tree::Kind::kMap; });
    if (!maps) throw YamlStop{"'<<' wants a map or a list of maps", mark};
    for (Tree& item : node.items) frame.merges.push_back(std::move(item));
  }

  static size_t depth_of(const Tree& node) {
    size_t depth = 0;
    for (const Tree& item : node.items) depth = std::max(depth, depth_of(item));
    return node.is_scalar() ? 0 : depth + 1;
  }

  TreeLimits limits_;
  std::vector<Frame> frames_;
  std::unordered_map<YAML::anchor_t, Tree> anchors_;
  size_t nodes_ = 0;
  Tree root_;
  bool done_ = false;
};

Error at(std::string_view name, const YAML::Mark& mark, std::string_view what) {
  std::string message(name);
  if (!mark.is_null()) message += ":" + std::to_string(mark.line + 1) + ":" + std::to_string(mark.column + 1);
  return invalid_argument(message + ": " + std::string(what));
}

}  // namespace

Result<Tree> parse_yaml(std::string_view text, std::string_view name, const TreeLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return invalid_argument(std::string(name) + ": larger than " + std::to_string(limits.max_bytes) + " bytes");
  }
  Tree tree;
  tree.kind = Tree::Kind::kMap;
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder(limits);
    while (parser.HandleNextDocument(builder)) {
    }
    if (builder.done()) tree = builder.take();
  } catch (const YamlStop& stop) {
    return at(name, stop.mark, stop.what);
  } catch (const YAML::Exception& error) {
    return at(name, error.mark, error.msg);
  } catch (const std::exception& error) {
    return invalid_argument(std::string(name) + ": " + error.what());
  }
  if (tree.kind == Tree::Kind::kNull) tree.kind = Tree::Kind::kMap;  // a file of comments only
  return tree;
}

}  // namespace dyn::app
