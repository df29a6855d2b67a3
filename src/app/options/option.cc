#include "app/options/option.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>

#include "app/options/table_internal.h"
#include "app/options/text.h"

namespace dyn::app {

namespace {

// The table and the indexes over it, built once.
struct Table {
  std::vector<Option> rows;
  std::vector<FlagSpelling> spellings;
  std::map<std::string, const Option*, std::less<>> by_name;
  std::map<std::string, const Option*, std::less<>> by_flag;
  std::map<std::string, const Option*, std::less<>> by_engine_key;
  std::map<std::string, std::set<std::string>, std::less<>> sections;

  Table() {
    for (const auto part : {serving_options(), engine_options(), unsupported_options(), environment_options()}) {
      rows.insert(rows.end(), part.begin(), part.end());
    }
    for (const Option& row : rows) {
      by_name.emplace(row.name, &row);
      for (const std::string& flag : flag_names(row)) {
        by_flag.emplace(flag, &row);
        spellings.push_back({flag, &row, false});
        if (row.type == Type::kBool) spellings.push_back({"no-" + flag, &row, true});
      }
      if (!row.engine_key.empty()) add_engine_key(row);
    }
  }

  void add_engine_key(const Option& row) {
    by_engine_key.emplace(row.engine_key, &row);
    std::string_view key = row.engine_key;
    while (true) {
      const size_t dot = key.rfind('.');
      const std::string_view parent = dot == std::string_view::npos ? std::string_view() : key.substr(0, dot);
      sections[std::string(parent)].emplace(dot == std::string_view::npos ? key : key.substr(dot + 1));
      if (parent.empty()) return;
      key = parent;
    }
  }
};

const Table& table() {
  static const Table instance;
  return instance;
}

Error expected(const Option& option, std::string_view got) {
  return invalid_argument("expected " + expectation(option) + ", not '" + std::string(got) + "'");
}

std::optional<std::string> find_choice(const Option& option, std::string_view word) {
  const std::string lower = to_lower(word);
  for (const std::string_view pair : split(option.value_aliases)) {
    const size_t equals = pair.find('=');
    if (to_lower(pair.substr(0, equals)) == lower) return std::string(pair.substr(equals + 1));
  }
  for (const std::string_view choice : split(option.choices)) {
    if (to_lower(choice) == lower) return std::string(choice);
  }
  return std::nullopt;
}

Result<Value> convert_list(const Option& option, std::string_view text) {
  std::vector<std::string> words;
  // DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS is written ["a", "b"].
  for (const std::string_view word : split(text, ", \t[]\"'")) {
    if (option.choices.empty()) {
      words.emplace_back(word);
      continue;
    }
    auto choice = find_choice(option, word);
    if (!choice) return expected(option, word);
    words.push_back(std::move(*choice));
  }
  return Value(std::move(words));
}

Result<Value> in_range(const Option& option, double number, std::string_view text) {
  const bool low_ok =
      option.low_open ? number > static_cast<double>(option.low) : number >= static_cast<double>(option.low);
  if (!low_ok || number > static_cast<double>(option.high)) return expected(option, text);
  return Value(number);
}

}  // namespace

std::span<const Option> option_table() {
  return table().rows;
}
std::span<const FlagSpelling> flag_spellings() {
  return table().spellings;
}

const Option* find_option(std::string_view name) {
  const auto at = table().by_name.find(name);
  return at == table().by_name.end() ? nullptr : at->second;
}
const Option* find_flag(std::string_view flag) {
  const auto at = table().by_flag.find(flag);
  return at == table().by_flag.end() ? nullptr : at->second;
}
const Option* find_engine_key(std::string_view key) {
  const auto at = table().by_engine_key.find(key);
  return at == table().by_engine_key.end() ? nullptr : at->second;
}
bool is_engine_section(std::string_view key) {
  return table().sections.contains(key);
}
std::vector<std::string> engine_keys_below(std::string_view section) {
  const auto at = table().sections.find(section);
  if (at == table().sections.end()) return {};
  return {at->second.begin(), at->second.end()};
}

std::vector<std::string> flag_names(const Option& option) {
  std::vector<std::string> names;
  if (!option.flag) return names;
  names.emplace_back(option.name);
  for (const std::string_view alias : split(option.aliases)) names.emplace_back(alias);
  return names;
}

std::vector<std::string> env_names(const Option& option) {
  std::vector<std::string> names;
  for (const std::string_view name : split(option.env)) {
    if (name != "*") {
      names.emplace_back(name);
      continue;
    }
    std::string derived = "DYN_TRTLLM_";
    for (const char c : option.name) {
      derived += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    names.push_back(std::move(derived));
  }
  return names;
}

Result<Value> convert(const Option& option, std::string_view text) {
  switch (option.type) {
    case Type::kBool: {
      const auto value = parse_bool(text);
      if (!value) return expected(option, text);
      return Value(*value);
    }
    case Type::kInt: {
      const auto value = parse_int(trim(text));
      if (!value || *value < option.low || *value > option.high) return expected(option, text);
      return Value(*value);
    }
    case Type::kFloat: {
      const auto value = parse_double(trim(text));
      if (!value) return expected(option, text);
      return in_range(option, *value, text);
    }
    case Type::kBytes: {
      const auto value = parse_bytes(trim(text));
      if (!value || static_cast<int64_t>(*value) < option.low || static_cast<int64_t>(*value) > option.high) {
        return expected(option, text);
      }
      return Value(static_cast<int64_t>(*value));
    }
    case Type::kEnum: {
      auto choice = find_choice(option, trim(text));
      if (!choice) return expected(option, text);
      return Value(std::move(*choice));
    }
    case Type::kList:
      return convert_list(option, text);
    case Type::kText:
    case Type::kPath:
    case Type::kJson:
    case Type::kAny:
      return Value(std::string(text));
  }
  return internal_error("option type");
}

Result<Value> convert(const Option& option, const Tree& node) {
  if (node.kind == Tree::Kind::kNull) return default_value(option);
  if (option.type == Type::kAny) return Value(node.to_json());
  if (option.type == Type::kJson) {
    if (node.kind != Tree::Kind::kMap) return expected(option, to_string(node.kind));
    return Value(node.to_json());
  }
  if (option.type == Type::kList && node.kind == Tree::Kind::kList) {
    std::vector<std::string> words;
    for (const Tree& item : node.items) {
      if (!item.is_scalar()) return expected(option, to_string(item.kind));
      words.push_back(item.text);
    }
    return Value(std::move(words));
  }
  if (!node.is_scalar()) return expected(option, to_string(node.kind));
  if (node.kind == Tree::Kind::kBool && option.type != Type::kBool && option.type != Type::kText) {
    return expected(option, node.text);
  }
  // 8.0 for an integer, as the Python worker's typed tree takes it.
  if (option.type == Type::kInt && node.kind == Tree::Kind::kFloat && node.number == std::floor(node.number) &&
      std::abs(node.number) < 9.0e15) {
    return convert(option, std::to_string(static_cast<int64_t>(node.number)));
  }
  if (option.type == Type::kInt && node.kind == Tree::Kind::kInt) return convert(option, std::to_string(node.integer));
  return convert(option, node.text);
}

Value default_value(const Option& option) {
  if (option.fallback.empty()) return {};
  auto value = convert(option, option.fallback);
  if (!value) {
    // The table is checked by a test; a row that gets here is a defect of this program.
    std::fprintf(stderr, "option table: default of %.*s: %s\n", static_cast<int>(option.name.size()),
                 option.name.data(), value.error().message.c_str());
    std::abort();
  }
  return *std::move(value);
}

std::string value_text(const Value& value) {
  struct Visitor {
    std::string operator()(std::monostate) const { return "(unset)"; }
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(int64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const { return format_double(v); }
    std::string operator()(const std::string& v) const { return v; }
    std::string operator()(const std::vector<std::string>& v) const {
      std::string text;
      for (const std::string& word : v) text += (text.empty() ? "" : ",") + word;
      return text;
    }
  };
  return std::visit(Visitor{}, value);
}

std::string expectation(const Option& option) {
  const auto choices = [&] {
    std::string text;
    for (const std::string_view choice : split(option.choices)) {
      text += (text.empty() ? "" : "|") + std::string(choice);
    }
    return text;
  };
  const bool bounded = option.high != std::numeric_limits<int64_t>::max();
  switch (option.type) {
    case Type::kBool:
      return "true or false";
    case Type::kInt:
      return "an integer " + (bounded ? "from " + std::to_string(option.low) + " to " + std::to_string(option.high)
                                      : "of at least " + std::to_string(option.low));
    case Type::kFloat: {
      std::string text = "a number " + std::string(option.low_open ? "above " : "of at least ");
      text += std::to_string(option.low);
      if (bounded) text += " and at most " + std::to_string(option.high);
      return text;
    }
    case Type::kBytes:
      return "a size of at least " + std::to_string(option.low) + " bytes (512M, 4GiB)";
    case Type::kEnum:
      return choices();
    case Type::kList:
      return option.choices.empty() ? "a list of words" : "a list of " + choices();
    case Type::kText:
    case Type::kPath:
      return "text";
    case Type::kJson:
      return "a JSON object";
    case Type::kAny:
      return "any value";
  }
  return "?";
}

namespace {

struct GroupText {
  Group group;
  std::string_view name;
  std::string_view title;
};

constexpr GroupText kGroups[] = {
    {Group::kModel, "model", "Model"},
    {Group::kEngine, "engine", "Engine"},
    {Group::kBatching, "batching", "Batching and lengths"},
    {Group::kKvCache, "kv-cache", "KV cache"},
    {Group::kParallelism, "parallelism", "Parallelism"},
    {Group::kIdentity, "identity", "Name and discovery"},
    {Group::kRequestPlane, "request-plane", "Request plane"},
    {Group::kModelCard, "model-card", "Model card"},
    {Group::kEvents, "events", "KV events and metrics"},
    {Group::kHealth, "health", "Health and system server"},
    {Group::kLifecycle, "lifecycle", "Shutdown"},
    {Group::kLogging, "logging", "Logging and tracing"},
    {Group::kConfiguration, "configuration", "Configuration"},
    {Group::kMock, "mock", "Mock engine"},
    {Group::kDisaggregation, "disaggregation", "Disaggregated serving"},
    {Group::kMultimodal, "multimodal", "Multimodal"},
    {Group::kDiffusion, "diffusion", "Diffusion"},
    {Group::kTls, "tls", "TLS"},
    {Group::kRouter, "router", "Worker-advertised routing"},
};

const GroupText& group_text(Group group) {
  for (const GroupText& text : kGroups) {
    if (text.group == group) return text;
  }
  return kGroups[0];
}

}  // namespace

std::string_view group_name(Group group) {
  return group_text(group).name;
}
std::string_view group_title(Group group) {
  return group_text(group).title;
}

std::span<const Group> all_groups() {
  static const std::vector<Group> all = [] {
    std::vector<Group> groups;
    for (const GroupText& text : kGroups) groups.push_back(text.group);
    return groups;
  }();
  return all;
}

std::string_view to_string(Effect effect) {
  switch (effect) {
    case Effect::kHonoured:
      return "honoured";
    case Effect::kNoEffect:
      return "without effect";
    case Effect::kRefused:
      return "refused";
  }
  return "?";
}

}  // namespace dyn::app
