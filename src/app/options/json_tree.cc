#include <nlohmann/json.hpp>

#include "app/options/text.h"
#include "app/options/tree.h"

namespace dyn::app {

namespace {

// Events of nlohmann's parser, turned into a Tree; a callback that returns false stops the parser.
class JsonBuilder {
 public:
  using Json = nlohmann::json;

  explicit JsonBuilder(const TreeLimits& limits) : limits_(limits) {}

  [[nodiscard]] const std::string& error() const { return error_; }
  [[nodiscard]] Tree take() { return std::move(root_); }

  bool null() { return add(Tree{}); }
  bool boolean(bool value) {
    Tree node;
    node.kind = Tree::Kind::kBool;
    node.boolean = value;
    node.text = value ? "true" : "false";
    return add(std::move(node));
  }
  bool number_integer(Json::number_integer_t value) {
    Tree node;
    node.kind = Tree::Kind::kInt;
    node.integer = value;
    node.text = std::to_string(value);
    return add(std::move(node));
  }
  bool number_unsigned(Json::number_unsigned_t value) {
    if (value > static_cast<uint64_t>(INT64_MAX)) return number_float(static_cast<double>(value), "");
    return number_integer(static_cast<int64_t>(value));
  }
  bool number_float(Json::number_float_t value, const std::string& /*text*/) {
    Tree node;
    node.kind = Tree::Kind::kFloat;
    node.number = value;
    node.text = format_double(value);
    return add(std::move(node));
  }
  bool string(std::string& value) {
    Tree node;
    node.kind = Tree::Kind::kText;
    node.text = std::move(value);
    return add(std::move(node));
  }
  bool binary(Json::binary_t& /*value*/) { return fail("binary value"); }
  bool start_object(size_t /*count*/) { return open(Tree::Kind::kMap); }
  bool start_array(size_t /*count*/) { return open(Tree::Kind::kList); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    Tree& map = frames_.back();
    if (map.find(name) != nullptr) return fail("duplicate key '" + name + "'");
    map.keys.push_back(std::move(name));
    return true;
  }
  bool parse_error(size_t position, const std::string& /*token*/, const nlohmann::detail::exception& error) {
    if (!error_.empty()) return false;
    // "[json.exception.parse_error.101] parse error at line 1, column 3: syntax error while ..."
    const std::string_view text = error.what();
    const size_t start = text.find("syntax error");
    return fail("at byte " + std::to_string(position) + ": " +
                std::string(start == std::string_view::npos ? text : text.substr(start)));
  }

 private:
  bool fail(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    return false;
  }
  bool count() {
    if (++nodes_ <= limits_.max_nodes) return true;
    return fail("more than " + std::to_string(limits_.max_nodes) + " values");
  }
  bool open(Tree::Kind kind) {
    if (frames_.size() >= limits_.max_depth) {
      return fail("nested deeper than " + std::to_string(limits_.max_depth) + " levels");
    }
    Tree node;
    node.kind = kind;
    frames_.push_back(std::move(node));
    return count();
  }
  bool close() {
    Tree node = std::move(frames_.back());
    frames_.pop_back();
    return place(std::move(node));
  }
  bool add(Tree node) { return count() && place(std::move(node)); }
  bool place(Tree node) {
    if (frames_.empty()) {
      root_ = std::move(node);
    } else {
      frames_.back().items.push_back(std::move(node));
    }
    return true;
  }

  TreeLimits limits_;
  std::vector<Tree> frames_;
  Tree root_;
  size_t nodes_ = 0;
  std::string error_;
};

}  // namespace

Result<Tree> parse_json(std::string_view text, std::string_view name, const TreeLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return invalid_argument(std::string(name) + ": larger than " + std::to_string(limits.max_bytes) + " bytes");
  }
  try {
    JsonBuilder builder(limits);
    if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
      return invalid_argument(std::string(name) + ": " + builder.error());
    }
    return builder.take();
  } catch (const std::exception& error) {
    return invalid_argument(std::string(name) + ": " + error.what());
  }
}

}  // namespace dyn::app
