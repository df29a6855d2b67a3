#include "app/options/render.h"

#include <algorithm>

#include "app/options/text.h"

#ifndef DYN_VERSION
#error "DYN_VERSION comes from the build"
#endif

namespace dyn::app {

namespace {

constexpr size_t kHelpColumn = 34;
constexpr size_t kHelpWidth = 110;

// "--max-batch-size N", "--publish-metrics, --no-publish-metrics", or the key or variable of a row without a flag.
std::string usage(const Option& option) {
  if (!option.flag) return std::string(option.name);
  std::string text = "--" + std::string(option.name);
  if (option.type == Type::kBool) {
    text += ", --no-" + std::string(option.name);
  } else if (!option.metavar.empty()) {
    text += " " + std::string(option.metavar);
  } else if (option.type == Type::kEnum || (option.type == Type::kList && !option.choices.empty())) {
    std::string choices(option.choices);
    std::replace(choices.begin(), choices.end(), ' ', '|');
    text += " " + choices;
  } else {
    text += " VALUE";
  }
  return text;
}

std::string joined(const std::vector<std::string>& words, std::string_view separator, std::string_view quote = "") {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += separator;
    text += std::string(quote) + word + std::string(quote);
  }
  return text;
}

// "Refused unless 1: the engine runs on one device."; empty for what is simply honoured.
std::string effect_text(const Option& option) {
  if (option.why.empty()) return {};
  const auto list = [](std::string_view values) {
    std::string text(values);
    for (size_t at = 0; (at = text.find(' ', at)) != std::string::npos; at += 2) text.replace(at, 1, ", ");
    return text;
  };
  switch (option.effect) {
    case Effect::kNoEffect:
      return "Without effect: " + std::string(option.why) + ".";
    case Effect::kRefused: {
      const std::string harmless = !option.accepts.empty()    ? list(option.accepts)
                                   : !option.fallback.empty() ? std::string(option.fallback)
                                                              : std::string();
      return "Refused" + (harmless.empty() ? "" : " unless " + harmless) + ": " + std::string(option.why) + ".";
    }
    case Effect::kHonoured:
      return list(option.refuses) + " refused: " + std::string(option.why) + ".";
  }
  return {};
}

std::string details(const Option& option) {
  std::string text(option.help);
  if (const std::string effect = effect_text(option); !effect.empty()) text += " " + effect;
  if (!option.fallback.empty()) text += " [default: " + std::string(option.fallback) + "]";
  std::vector<std::string> marks;
  const auto flags = flag_names(option);
  for (size_t i = 1; i < flags.size(); ++i) marks.push_back("--" + flags[i]);
  for (const std::string& name : env_names(option)) {
    if (name != option.name) marks.push_back(name);
  }
  if (!option.engine_key.empty() && option.engine_key != option.name) {
    marks.push_back("engine key " + std::string(option.engine_key));
  }
  if (!marks.empty()) text += " (" + joined(marks, ", ") + ")";
  return text;
}

void append_wrapped(std::string& out, std::string_view text, size_t column, size_t at) {
  for (const std::string_view word : split(text)) {
    if (at + word.size() + 1 > kHelpWidth) {
      out += "\n" + std::string(column, ' ');
      at = column;
    }
    if (at > column) {
      out += ' ';
      ++at;
    }
    out += word;
    at += word.size();
  }
  out += '\n';
}

void append_option(std::string& out, const Option& option) {
  const std::string left = "  " + usage(option);
  out += left;
  size_t at = left.size();
  if (at + 2 > kHelpColumn) {
    out += "\n" + std::string(kHelpColumn, ' ');
  } else {
    out += std::string(kHelpColumn - at, ' ');
  }
  at = kHelpColumn;
  append_wrapped(out, details(option), kHelpColumn, at);
}

template <class Wanted>
void append_group(std::string& out, Group group, Wanted wanted) {
  bool first = true;
  for (const Option& option : option_table()) {
    if (option.group != group || !wanted(option)) continue;
    if (first) out += "\n" + std::string(group_title(group)) + " (--help=" + std::string(group_name(group)) + ")\n";
    first = false;
    append_option(out, option);
  }
}

std::string preamble() {
  return "usage: dynamo-trtllm [serve] [OPTION...]\n"
         "       dynamo-trtllm bench ...\n"
         "       dynamo-trtllm build --model MODEL --output DIR [--weight-dtype ...]\n"
         "       dynamo-trtllm engine-info DIR\n"
         "       dynamo-trtllm completion bash|zsh|fish\n"
         "\n"
         "An LLM worker for NVIDIA Dynamo. Takes the command lines of `python -m dynamo.trtllm` of Dynamo 0.8 to 1.6.\n"
         "Order of precedence: default, --extra-engine-args, environment, flag, --override-engine-args, --trtllm.KEY.\n"
         "\n"
         "  -h, --help                      This text. --help=GROUP: one group in full.\n"
         "      --help-all                  All options, also those without effect or refused, and all variables.\n"
         "      --version                   The version.\n"
         "      --dump-config               Print every option with its value and source as JSON, and exit.\n"
         "      --trtllm.KEY VALUE          Set an engine key: --trtllm.kv_cache_config.max_tokens 4096\n";
}

std::string markdown_cell(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

std::string markdown_row(const Option& option) {
  std::vector<std::string> names;
  for (const std::string& flag : flag_names(option)) names.push_back("--" + flag);
  if (option.type == Type::kBool && option.flag) names.push_back("--no-" + std::string(option.name));
  std::string cell = joined(names, ", ", "`");
  std::string takes = option.expands.empty() ? expectation(option) : "true or false";
  std::string help(option.help);
  if (const std::string effect = effect_text(option); !effect.empty())
    help += " **" + effect.substr(0, effect.find(':')) + "**" + effect.substr(effect.find(':'));
  if (!option.note.empty()) help += " (" + std::string(option.note) + ")";
  const std::string fallback = option.fallback.empty() ? "" : "`" + std::string(option.fallback) + "`";
  const std::string key = option.engine_key.empty() ? "" : "`" + std::string(option.engine_key) + "`";
  return "| " + cell + " | " + joined(env_names(option), ", ", "`") + " | " + key + " | " + markdown_cell(takes) +
         " | " + markdown_cell(fallback) + " | " + std::string(to_string(option.effect)) + " | " + markdown_cell(help) +
         " |\n";
}

std::string json_text(std::string_view text) {
  Tree node;
  node.kind = Tree::Kind::kText;
  node.text = text;
  return node.to_json();
}

}  // namespace

std::string version_text() {
  return "dynamo-trtllm " DYN_VERSION " (in place of Dynamo Backend TRTLLM 0.8 ... 1.6)\n";
}

std::string help_text() {
  std::string out = preamble();
  for (const Group group : all_groups()) {
    append_group(out, group, [](const Option& o) { return o.flag && o.effect == Effect::kHonoured; });
  }
  return out;
}

std::string help_all_text() {
  std::string out = preamble();
  for (const Group group : all_groups()) append_group(out, group, [](const Option&) { return true; });
  return out;
}

Result<std::string> help_group_text(std::string_view name) {
  std::vector<std::string> names;
  for (const Group group : all_groups()) {
    names.emplace_back(group_name(group));
    if (group_name(group) != name) continue;
    std::string out;
    append_group(out, group, [](const Option&) { return true; });
    return out.substr(1);
  }
  const auto near = closest(name, names);
  return to_error({{"--help=" + std::string(name) + " names no group", "the groups are " + joined(names, ", "),
                    near ? "did you mean --help=" + *near + "?" : "see --help"}});
}

std::string reference_page() {
  std::string out =
      "# Options of dynamo-trtllm\n"
      "\n"
      "<!-- Made by `dynamo-trtllm print-options-markdown` from src/app/options/table_*.cc. Do not edit. -->\n"
      "\n"
      "Precedence, lowest first: built-in default, engine file (`--extra-engine-args`), environment, flag, override "
      "JSON\n"
      "(`--override-engine-args`), dotted flag (`--trtllm.KEY VALUE`). Engine files are merged field by field. A value "
      "that\n"
      "is replaced by another one is logged once with both sources. An empty environment variable counts as unset.\n"
      "\n"
      "Every option is *honoured*, *without effect* (accepted; one log line when it is not the default) or *refused* "
      "(an\n"
      "error by name when its value asks for something that is not built). What is not on this page is an error.\n"
      "\n"
      "Booleans are written `--x` and `--no-x`; flags may be shortened as long as they stay unambiguous. A flag that "
      "is\n"
      "given twice counts the last time. Exit code 2 means that the configuration is wrong; nothing was registered "
      "then.\n";
  for (const Group group : all_groups()) {
    out += "\n## " + std::string(group_title(group)) + "\n\n";
    out += "| Flag | Environment | Engine key | Takes | Default | Effect | Meaning |\n|---|---|---|---|---|---|---|\n";
    for (const Option& option : option_table()) {
      if (option.group == group) out += markdown_row(option);
    }
  }
  return out;
}

std::string config_dump(const Settings& settings) {
  std::string out = "{\n  \"version\": \"" DYN_VERSION "\",\n  \"options\": {\n";
  bool first = true;
  for (const Option& option : option_table()) {
    const Setting& setting = settings.get(option);
    if (std::holds_alternative<std::monostate>(setting.value)) continue;
    const bool plain = std::holds_alternative<bool>(setting.value) || std::holds_alternative<int64_t>(setting.value) ||
                       std::holds_alternative<double>(setting.value);
    std::string value = shown_value(option, setting.value);
    if (const auto* words = std::get_if<std::vector<std::string>>(&setting.value)) {
      value = "[";
      for (const std::string& word : *words) value += (value.size() > 1 ? ", " : "") + json_text(word);
      value += "]";
    } else if (!plain) {
      value = json_text(value);
    }
    out += first ? "" : ",\n";
    first = false;
    out += "    " + json_text(option.name) + ": {\"value\": " + value +
           ", \"source\": " + json_text(to_string(setting.source)) +
           ", \"effect\": " + json_text(to_string(option.effect)) + "}";
  }
  return out + "\n  }\n}\n";
}

}  // namespace dyn::app
