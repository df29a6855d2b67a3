// Completion scripts. Only honoured options are offered: the others exist to be understood, not to be chosen.
#include <algorithm>

#include "app/options/render.h"
#include "app/options/text.h"

namespace dyn::app {

namespace {

bool is_offered(const Option& option) {
  return option.flag && option.effect == Effect::kHonoured;
}

bool takes_choice(const Option& option) {
  return (option.type == Type::kEnum || option.type == Type::kList) && !option.choices.empty();
}

// The choices that this build does not refuse.
std::vector<std::string> offered_choices(const Option& option) {
  const auto refused = split(option.refuses);
  std::vector<std::string> choices;
  for (const std::string_view choice : split(option.choices)) {
    if (std::find(refused.begin(), refused.end(), choice) == refused.end()) choices.emplace_back(choice);
  }
  return choices;
}

std::string spaced(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

// The flags in `option`, booleans with their negation, with dashes.
std::vector<std::string> offered_flags(const Option& option) {
  std::vector<std::string> flags;
  for (const std::string& name : flag_names(option)) {
    flags.push_back("--" + name);
    if (option.type == Type::kBool) flags.push_back("--no-" + name);
  }
  return flags;
}

std::string bash_script() {
  std::string all = "--help --help-all --version --dump-config";
  std::string cases;
  for (const Option& option : option_table()) {
    if (!is_offered(option)) continue;
    all += " " + spaced(offered_flags(option));
    std::string names;
    for (const std::string& name : flag_names(option)) names += (names.empty() ? "--" : "|--") + name;
    if (takes_choice(option)) {
      cases += "    " + names + ") COMPREPLY=($(compgen -W '" + spaced(offered_choices(option)) +
               "' -- \"$cur\")); return ;;\n";
    } else if (option.type == Type::kPath || option.name == "model" || option.name == "tokenizer") {
      cases += "    " + names + ") COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n";
    } else if (option.type != Type::kBool) {
      cases += "    " + names + ") COMPREPLY=(); return ;;\n";
    }
  }
  return "# bash completion of dynamo-trtllm: source <(dynamo-trtllm completion bash)\n"
         "_dynamo_trtllm() {\n"
         "  local cur=\"${COMP_WORDS[COMP_CWORD]}\" prev=\"${COMP_WORDS[COMP_CWORD-1]}\"\n"
         "  case \"$prev\" in\n"
         "    completion) COMPREPLY=($(compgen -W 'bash zsh fish' -- \"$cur\")); return ;;\n" +
         cases +
         "  esac\n"
         "  if [[ $COMP_CWORD -eq 1 && $cur != -* ]]; then\n"
         "    COMPREPLY=($(compgen -W 'serve bench build engine-info completion' -- \"$cur\"))\n"
         "  else\n"
         "    COMPREPLY=($(compgen -W '" +
         all +
         "' -- \"$cur\"))\n"
         "  fi\n"
         "}\n"
         "complete -F _dynamo_trtllm dynamo-trtllm\n";
}

// Inside single quotes of zsh's _arguments: brackets and colons have a meaning there.
std::string zsh_quoted(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out;
}

std::string zsh_script() {
  std::string out =
      "#compdef dynamo-trtllm\n"
      "# zsh completion of dynamo-trtllm: dynamo-trtllm completion zsh > ${fpath[1]}/_dynamo-trtllm\n"
      "_arguments \\\n"
      "  '1:command:(serve bench build engine-info completion)' \\\n"
      "  '--help[help]' '--help-all[all options]' '--version[version]' '--dump-config[print the configuration]'";
  for (const Option& option : option_table()) {
    if (!is_offered(option)) continue;
    std::string argument;
    if (takes_choice(option)) {
      argument = ":value:(" + spaced(offered_choices(option)) + ")";
    } else if (option.type == Type::kPath || option.name == "model" || option.name == "tokenizer") {
      argument = ":path:_files";
    } else if (option.type != Type::kBool) {
      argument = ":value:";
    }
    for (const std::string& flag : offered_flags(option)) {
      out += " \\\n  '" + flag + "[" + zsh_quoted(option.help) + "]" + argument + "'";
    }
  }
  return out + "\n";
}

std::string fish_quoted(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string fish_script() {
  std::string out =
      "# fish completion of dynamo-trtllm: dynamo-trtllm completion fish | source\n"
      "complete -c dynamo-trtllm -f\n"
      "complete -c dynamo-trtllm -n __fish_use_subcommand -a 'serve bench build engine-info completion'\n"
      "complete -c dynamo-trtllm -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'\n"
      "complete -c dynamo-trtllm -l help -d help\n"
      "complete -c dynamo-trtllm -l help-all -d 'all options'\n"
      "complete -c dynamo-trtllm -l version -d version\n"
      "complete -c dynamo-trtllm -l dump-config -d 'print the configuration'\n";
  for (const Option& option : option_table()) {
    if (!is_offered(option)) continue;
    std::string argument;
    if (takes_choice(option)) {
      argument = " -x -a '" + spaced(offered_choices(option)) + "'";
    } else if (option.type == Type::kPath || option.name == "model" || option.name == "tokenizer") {
      argument = " -r -F";
    } else if (option.type != Type::kBool) {
      argument = " -x";
    }
    for (const std::string& flag : offered_flags(option)) {
      out += "complete -c dynamo-trtllm -l " + flag.substr(2) + argument + " -d '" + fish_quoted(option.help) + "'\n";
    }
  }
  return out;
}

}  // namespace

Result<std::string> completion_script(std::string_view shell) {
  if (shell == "bash") return bash_script();
  if (shell == "zsh") return zsh_script();
  if (shell == "fish") return fish_script();
  return to_error({{"there is no completion for '" + std::string(shell) + "'", "the shells are bash, zsh and fish",
                    "write dynamo-trtllm completion bash"}});
}

}  // namespace dyn::app
