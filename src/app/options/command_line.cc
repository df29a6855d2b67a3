#include "app/options/command_line.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "app/options/settings.h"
#include "app/options/text.h"

namespace dyn::app {

namespace {

constexpr std::array<std::string_view, 4> kActions = {"help", "help-all", "version", "dump-config"};
constexpr std::string_view kDotted = "trtllm.";
constexpr size_t kMaxDottedParts = 16;

Error problem(std::string what, std::string why, std::string fix) {
  return to_error({Problem{std::move(what), std::move(why), std::move(fix)}});
}

// A name on the command line: an option, perhaps negated, or an action.
struct Match {
  const Option* option = nullptr;
  bool negated = false;
  std::string spelling;  // without dashes

  auto operator<=>(const Match& other) const = default;
};

Error unknown_flag(std::string_view name) {
  std::vector<std::string> all;
  for (const FlagSpelling& spelling : flag_spellings()) {
    // A negation is only offered for a negation, else "--no-x" shadows "--x" in short names.
    if (!spelling.negated || name.starts_with("no-")) all.push_back(spelling.text);
  }
  all.insert(all.end(), kActions.begin(), kActions.end());
  const auto near = closest(name, all);
  return problem("unknown flag --" + std::string(name), "no option has this name",
                 near ? "did you mean --" + *near + "?" : "see --help-all for all flags");
}

Result<Match> match_flag(std::string_view name) {
  std::set<std::pair<const Option*, bool>> meanings;
  std::vector<Match> found;
  const auto consider = [&](Match match) {
    const bool is_new = match.option == nullptr || meanings.emplace(match.option, match.negated).second;
    if (is_new) found.push_back(std::move(match));
  };
  for (const FlagSpelling& spelling : flag_spellings()) {
    if (spelling.text == name) return Match{spelling.option, spelling.negated, spelling.text};
    if (!name.empty() && spelling.text.starts_with(name)) {
      consider({spelling.option, spelling.negated, spelling.text});
    }
  }
  for (const std::string_view action : kActions) {
    if (action == name) return Match{nullptr, false, std::string(action)};
    if (!name.empty() && action.starts_with(name)) consider({nullptr, false, std::string(action)});
  }
  if (found.size() == 1) return found[0];
  if (found.empty()) return unknown_flag(name);
  std::string names;
  for (size_t i = 0; i < found.size() && i < 6; ++i) names += (i > 0 ? ", --" : "--") + found[i].spelling;
  if (found.size() > 6) names += ", ...";
  return problem("ambiguous flag --" + std::string(name), "it could be " + names, "write the flag out");
}

// argparse's rule: what starts with a dash is a flag unless it is a negative number.
bool looks_like_flag(std::string_view argument) {
  return argument.size() > 1 && argument[0] == '-' && !parse_double(argument);
}

class Parser {
 public:
  explicit Parser(std::span<const std::string_view> arguments) : arguments_(arguments) {
    line_.dotted.kind = Tree::Kind::kMap;
  }

  Result<CommandLine> run() {
    while (next_ < arguments_.size()) {
      if (auto taken = take(arguments_[next_++]); !taken) return taken.error();
    }
    return std::move(line_);
  }

 private:
  Result<void> take(std::string_view argument) {
    if (argument == "-h") {
      line_.help = true;
      return {};
    }
    if (!argument.starts_with("--") || argument == "--") {
      return problem("unexpected argument '" + std::string(argument) + "'", "options are written --flag value",
                     "see --help");
    }
    argument.remove_prefix(2);
    const size_t equals = argument.find('=');
    std::optional<std::string_view> inlined;
    if (equals != std::string_view::npos) inlined = argument.substr(equals + 1);
    const std::string_view name = argument.substr(0, equals);
    if (name.starts_with(kDotted)) return take_dotted(name.substr(kDotted.size()), inlined);
    auto match = match_flag(name);
    if (!match) return match.error();
    if (match->option == nullptr) return take_action(match->spelling, inlined);
    return take_option(*match, inlined);
  }

  Result<void> take_action(const std::string& action, std::optional<std::string_view> inlined) {
    if (inlined && action != "help") {
      return problem("--" + action + " takes no value", "'" + std::string(*inlined) + "' was given", "leave it out");
    }
    if (action == "help") {
      line_.help = true;
      line_.help_group = std::string(inlined.value_or(""));
    } else if (action == "help-all") {
      line_.help_all = true;
    } else if (action == "version") {
      line_.version = true;
    } else {
      line_.dump_config = true;
    }
    return {};
  }

  Result<void> take_option(const Match& match, std::optional<std::string_view> inlined) {
    const Option& option = *match.option;
    const std::string spelling = "--" + match.spelling;
    const auto add = [&](std::string_view text) { line_.flags.push_back({&option, std::string(text), spelling}); };
    if (match.negated) {
      if (inlined) {
        return problem(spelling + " takes no value", "'" + std::string(*inlined) + "' was given",
                       "write --" + match.spelling.substr(3) + "=" + std::string(*inlined));
      }
      add("false");
    } else if (inlined) {
      add(*inlined);
    } else if (option.type == Type::kBool || option.arity == Arity::kOptional) {
      const bool has_value =
          option.arity == Arity::kOptional && next_ < arguments_.size() && !looks_like_flag(arguments_[next_]);
      add(has_value ? arguments_[next_++] : "true");
    } else if (option.type == Type::kList) {
      std::string words;
      while (next_ < arguments_.size() && !looks_like_flag(arguments_[next_])) {
        words += (words.empty() ? "" : " ") + std::string(arguments_[next_++]);
      }
      add(words);
    } else {
      if (next_ >= arguments_.size() || looks_like_flag(arguments_[next_])) {
        return problem(spelling + " needs a value", "it takes " + expectation(option),
                       "write " + spelling + " VALUE, or " + spelling + "=VALUE if the value starts with a dash");
      }
      add(arguments_[next_++]);
    }
    return {};
  }

  Result<void> take_dotted(std::string_view path, std::optional<std::string_view> inlined) {
    const std::string flag = "--trtllm." + std::string(path);
    std::vector<std::string> parts;
    for (size_t at = 0; at <= path.size();) {
      const size_t dot = std::min(path.find('.', at), path.size());
      parts.emplace_back(path.substr(at, dot - at));
      at = dot + 1;
    }
    const bool empty_part = std::any_of(parts.begin(), parts.end(), [](const std::string& p) { return p.empty(); });
    if (empty_part || parts.size() > kMaxDottedParts) {
      return problem(flag + " names no engine key", "a part of the path is empty, or there are too many",
                     "write --trtllm.kv_cache_config.dtype VALUE, for example");
    }
    if (!inlined) {
      if (next_ >= arguments_.size() || looks_like_flag(arguments_[next_])) {
        return problem(flag + " needs a value", "nothing, or a flag, follows it", "write " + flag + " VALUE");
      }
      inlined = arguments_[next_++];
    }
    Tree* node = &line_.dotted;
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool last = i + 1 == parts.size();
      const auto at = std::find(node->keys.begin(), node->keys.end(), parts[i]);
      if (at == node->keys.end()) {
        node->keys.push_back(parts[i]);
        node->items.push_back(last ? dotted_scalar(*inlined) : map_node());
        node = &node->items.back();
        continue;
      }
      Tree& found = node->items[static_cast<size_t>(at - node->keys.begin())];
      if ((found.kind == Tree::Kind::kMap) == last) {
        return problem(flag + " collides with another --trtllm flag", "one gives a value where the other goes deeper",
                       "leave one of them out");
      }
      if (last) found = dotted_scalar(*inlined);
      node = &found;
    }
    return {};
  }

  static Tree map_node() {
    Tree node;
    node.kind = Tree::Kind::kMap;
    return node;
  }

  std::span<const std::string_view> arguments_;
  size_t next_ = 0;
  CommandLine line_;
};

}  // namespace

std::span<const std::string_view> action_flags() {
  return kActions;
}

Result<CommandLine> parse_arguments(std::span<const std::string_view> arguments) {
  return Parser(arguments).run();
}

}  // namespace dyn::app
