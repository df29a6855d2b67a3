// resolve_settings(): the layers, one after the other, and the judgement over the outcome.
#include <fcntl.h>

#include <algorithm>

#include "app/options/settings.h"
#include "app/options/text.h"
#include "base/posix.h"

namespace dyn::app {

namespace {

constexpr size_t kMaxNamesInMessage = 12;

std::string joined(const std::vector<std::string>& words, std::string_view separator) {
  std::string text;
  for (size_t i = 0; i < words.size() && i < kMaxNamesInMessage; ++i) {
    if (i > 0) text += separator;
    text += words[i];
  }
  if (words.size() > kMaxNamesInMessage) text += std::string(separator) + "...";
  return text;
}

// Whether a value asks for nothing: unset, empty, or false where nothing else is the default.
bool is_off(const Option& option, const Value& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return !*flag && option.fallback != "true";
  if (const auto* text = std::get_if<std::string>(&value)) {
    return text->empty() || *text == "{}" || *text == "[]" || *text == "null" || *text == "false";
  }
  if (const auto* words = std::get_if<std::vector<std::string>>(&value)) return words->empty();
  return std::holds_alternative<std::monostate>(value);
}

std::vector<std::string> words_of(const Value& value) {
  if (const auto* words = std::get_if<std::vector<std::string>>(&value)) return *words;
  return {value_text(value)};
}

bool is_listed(std::string_view list, std::string_view word) {
  const auto parts = split(list);
  return std::any_of(parts.begin(), parts.end(),
                     [&](std::string_view part) { return to_lower(part) == to_lower(word); });
}

class Resolver {
 public:
  Resolver(const CommandLine& line, const Environment& environment) : line_(line), environment_(environment) {}

  Result<Resolved> run() {
    if (const auto path = configured("extra-engine-args"); !path.empty()) apply_file(path);
    apply_environment();
    for (const GivenFlag& flag : line_.flags) apply_flag(flag);
    if (const auto json = configured("override-engine-args"); !json.empty()) apply_override(json);
    apply_tree(line_.dotted, "", {Layer::kOverride, ""}, "--trtllm.");
    for (const Option& option : option_table()) judge(option);
    if (!problems_.empty()) return to_error(problems_);
    return Resolved{std::move(settings_), std::move(notices_)};
  }

 private:
  void fail(std::string what, std::string why, std::string fix) {
    problems_.push_back({std::move(what), std::move(why), std::move(fix)});
  }

  const std::string* variable(std::string_view name) const {
    const auto at = environment_.find(name);
    return at == environment_.end() || at->second.empty() ? nullptr : &at->second;
  }

  // What flags, else environment, say about an option that decides about the other layers.
  std::string configured(std::string_view name) const {
    const Option* option = find_option(name);
    for (auto flag = line_.flags.rbegin(); flag != line_.flags.rend(); ++flag) {
      if (flag->option == option) return flag->text;
    }
    for (const std::string& env_name : env_names(*option)) {
      if (const std::string* text = variable(env_name)) return *text;
    }
    return {};
  }

  // An option that stands for others sets those.
  void set(const Option& option, const Value& value, const Source& source) {
    if (option.expands.empty()) {
      settings_.set(option, value, source, notices_);
      return;
    }
    std::string names;
    for (const std::string_view name : split(option.expands)) {
      settings_.set(*find_option(name), value, source, notices_);
      names += (names.empty() ? "--" : " and --") + std::string(name);
    }
    notices_.push_back({log::Level::kWarn, source.detail + " is deprecated, it stands for " + names});
  }

  void bad_value(const std::string& where, const Option& option, const Error& error) {
    fail(where, error.message,
         "give " + expectation(option) + (option.help.empty() ? "" : ": ") + std::string(option.help));
  }

  void apply_flag(const GivenFlag& flag) {
    auto value = convert(*flag.option, flag.text);
    if (!value) {
      const std::string shown = flag.option->secret ? "***" : flag.text;
      return bad_value(flag.spelling + " " + shown + " cannot be used", *flag.option, value.error());
    }
    set(*flag.option, *value, {Layer::kFlag, flag.spelling});
  }

  void apply_environment() {
    // First what stands for several options, so that the variable of each one wins.
    for (const bool expanding : {true, false}) {
      for (const Option& option : option_table()) {
        if (!option.expands.empty() == expanding) apply_variables(option);
      }
    }
    warn_about_unknown_variables();
  }

  void apply_variables(const Option& option) {
    const std::vector<std::string> names = env_names(option);
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i].ends_with('*')) {
        apply_prefix(option, names[i].substr(0, names[i].size() - 1));
        continue;
      }
      const std::string* text = variable(names[i]);
      if (text == nullptr) continue;
      auto value = convert(option, *text);
      if (!value) {
        // DYN_DISCOVERY_BACKEND had other meanings in 0.8; an older name that says something valid counts then.
        const auto later = [&](const std::string& name) {
          const std::string* other = variable(name);
          return other != nullptr && convert(option, *other).ok();
        };
        if (std::any_of(names.begin() + static_cast<ptrdiff_t>(i) + 1, names.end(), later)) {
          notices_.push_back({log::Level::kWarn, names[i] + "=" + *text + " is ignored: " + value.error().message});
          continue;
        }
        return bad_value(names[i] + "=" + (option.secret ? "***" : *text) + " cannot be used", option, value.error());
      }
      for (size_t j = i + 1; j < names.size(); ++j) {
        const std::string* other = variable(names[j]);
        if (other != nullptr && *other != *text) {
          notices_.push_back({log::Level::kWarn, names[j] + " is not used, " + names[i] + " is set to another value"});
        }
      }
      set(option, *value, {Layer::kEnvironment, names[i]});
      return;
    }
  }

  // A row for a family of variables: its value is the names that are set.
  void apply_prefix(const Option& option, const std::string& prefix) {
    std::vector<std::string> found;
    for (auto at = environment_.lower_bound(prefix); at != environment_.end() && at->first.starts_with(prefix); ++at) {
      if (!at->second.empty()) found.push_back(at->first);
    }
    if (!found.empty()) set(option, Value(joined(found, ",")), {Layer::kEnvironment, prefix + "*"});
  }

  void warn_about_unknown_variables() {
    constexpr std::string_view kOurs = "DYN_TRTLLM_";
    std::vector<std::string> known;
    for (const Option& option : option_table()) {
      for (std::string& name : env_names(option)) known.push_back(std::move(name));
    }
    for (auto at = environment_.lower_bound(kOurs); at != environment_.end() && at->first.starts_with(kOurs); ++at) {
      if (std::find(known.begin(), known.end(), at->first) != known.end()) continue;
      const auto near = closest(at->first, known);
      notices_.push_back({log::Level::kWarn, "environment variable " + at->first + " is unknown" +
                                                 (near ? ", did you mean " + *near + "?" : "")});
    }
  }

  void apply_file(const std::string& path) {
    const TreeLimits limits;
    std::string text;
    auto file = open_fd(path, O_RDONLY | O_CLOEXEC);
    if (file) {
      auto read = read_all(file->get(), limits.max_bytes);
      if (!read)
        file = read.error();
      else
        text = *std::move(read);
    }
    if (!file) {
      return fail("--extra-engine-args " + path + " cannot be read", file.error().message,
                  "give the path of a YAML file with engine keys");
    }
    auto tree = parse_yaml(text, path, limits);
    if (!tree) return fail("--extra-engine-args " + path + " is not valid", tree.error().message, "correct the file");
    apply_tree(*tree, "", {Layer::kFile, path}, path + ": ");
  }

  void apply_override(const std::string& json) {
    auto tree = parse_json(json, "--override-engine-args");
    if (!tree) {
      return fail("--override-engine-args is not valid", tree.error().message,
                  "give a JSON object, as '{\"max_batch_size\": 8}'");
    }
    apply_tree(*tree, "", {Layer::kOverride, "--override-engine-args"}, "--override-engine-args: ");
  }

  static Source place_of(const Tree& node, const std::string& key, Source source) {
    if (source.detail.empty()) source.detail = "--trtllm." + key;
    if (node.line > 0) source.detail += ":" + std::to_string(node.line);
    return source;
  }

  // Engine keys below `section`, field by field.
  void apply_tree(const Tree& tree, const std::string& section, const Source& source, const std::string& where) {
    if (tree.kind == Tree::Kind::kNull) return reset_section(section, place_of(tree, section, source));
    if (tree.kind != Tree::Kind::kMap) {
      return fail(where + (section.empty() ? "the whole" : section) + " is " + std::string(to_string(tree.kind)),
                  "engine keys stand in a map", "write KEY: VALUE below it");
    }
    for (size_t i = 0; i < tree.items.size(); ++i) {
      const std::string key = section.empty() ? tree.keys[i] : section + "." + tree.keys[i];
      const Tree& node = tree.items[i];
      const bool dot = tree.keys[i].find('.') != std::string::npos;
      const Option* option = dot ? nullptr : find_engine_key(key);
      if (option != nullptr) {
        apply_key(*option, node, key, source, where);
      } else if (!dot && is_engine_section(key)) {
        apply_tree(node, key, source, where);
      } else {
        unknown_key(key, section, tree.keys[i], node, where);
      }
    }
  }

  void apply_key(const Option& option, const Tree& node, const std::string& key, const Source& source,
                 const std::string& where) {
    auto value = convert(option, node);
    if (!value) {
      const std::string line = node.line > 0 ? " (line " + std::to_string(node.line) + ")" : "";
      return bad_value(where + key + line + " cannot be used", option, value.error());
    }
    set(option, *value, place_of(node, key, source));
  }

  // `kv_cache_config: null` takes back what lower layers said below it.
  void reset_section(const std::string& section, const Source& source) {
    for (const Option& option : option_table()) {
      if (option.engine_key.starts_with(section + ".") && settings_.get(option).given()) {
        settings_.set(option, default_value(option), source, notices_);
      }
    }
  }

  void unknown_key(const std::string& key, const std::string& section, const std::string& name, const Tree& node,
                   const std::string& where) {
    const std::vector<std::string> siblings = engine_keys_below(section);
    std::string fix;
    if (const auto near = closest(name, siblings)) {
      fix = "did you mean " + (section.empty() ? *near : section + "." + *near) + "?";
    } else if (const Option* flag = find_flag(name); flag != nullptr && !flag->engine_key.empty()) {
      fix = "its engine key is " + std::string(flag->engine_key);
    } else {
      fix = section.empty() ? "see the engine keys in --help-all"
                            : "known below " + section + ": " + joined(siblings, ", ");
    }
    fail(where + "unknown engine key " + key + (node.line > 0 ? " (line " + std::to_string(node.line) + ")" : ""),
         "neither this engine nor TensorRT-LLM's options have it", fix);
  }

  // What becomes of an option's final value.
  void judge(const Option& option) {
    if (!option.expands.empty()) return;
    const Setting& setting = settings_.get(option);
    const std::vector<std::string> words = words_of(setting.value);
    if (option.effect == Effect::kHonoured) {
      for (const std::string& word : words) {
        if (is_listed(option.refuses, word)) return refuse(option, setting);
      }
      return;
    }
    if (!setting.given() || is_off(option, setting.value) || setting.value == default_value(option)) return;
    if (option.effect == Effect::kNoEffect) {
      notices_.push_back(
          {log::Level::kInfo, as_written(option, setting) + " is without effect: " + std::string(option.why)});
      return;
    }
    const bool harmless =
        std::all_of(words.begin(), words.end(), [&](const std::string& w) { return is_listed(option.accepts, w); });
    if (!harmless) refuse(option, setting);
  }

  void refuse(const Option& option, const Setting& setting) {
    fail(as_written(option, setting) + " is not supported", std::string(option.why), std::string(option.instead));
  }

  const CommandLine& line_;
  const Environment& environment_;
  Settings settings_;
  std::vector<Notice> notices_;
  std::vector<Problem> problems_;
};

}  // namespace

Result<Resolved> resolve_settings(const CommandLine& line, const Environment& environment) {
  return Resolver(line, environment).run();
}

}  // namespace dyn::app
