#include "app/cli.h"

#include <fcntl.h>

#include "app/options/command_line.h"
#include "app/options/render.h"
#include "app/options/text.h"
#include "base/posix.h"

namespace dyn::app {

namespace {

ParsedCommand print(std::string text) {
  ParsedCommand command;
  command.kind = ParsedCommand::Kind::kPrint;
  command.text = std::move(text);
  return command;
}

Result<ParsedCommand> print(Result<std::string> text) {
  if (!text) return text.error();
  return print(*std::move(text));
}

Result<ParsedCommand> parse_serve(std::span<const std::string_view> arguments, const Environment& environment) {
  auto line = parse_arguments(arguments);
  if (!line) return line.error();
  if (!line->help_group.empty()) return print(help_group_text(line->help_group));
  if (line->help_all) return print(help_all_text());
  if (line->help) return print(help_text());
  if (line->version) return print(version_text());

  auto resolved = resolve_settings(*line, environment);
  if (!resolved) return resolved.error();
  ParsedCommand command;
  command.notices = std::move(resolved->notices);
  auto config = make_worker_config(resolved->settings, environment, command.notices);
  if (!config) return config.error();
  if (line->dump_config) return print(config_dump(resolved->settings));
  command.config = *std::move(config);
  command.config_dump = config_dump(resolved->settings);
  return command;
}

}  // namespace

Result<ParsedCommand> parse_command_line(std::span<const std::string_view> arguments, const Environment& environment) {
  if (arguments.empty() || arguments[0].starts_with('-')) return parse_serve(arguments, environment);
  const std::string_view word = arguments[0];
  const auto rest = arguments.subspan(1);
  if (word == "serve") return parse_serve(rest, environment);
  for (const auto& [name, kind] :
       {std::pair{"bench", ParsedCommand::Kind::kBench}, std::pair{"build", ParsedCommand::Kind::kBuild},
        std::pair{"engine-info", ParsedCommand::Kind::kEngineInfo}}) {
    if (word != name) continue;
    ParsedCommand command;
    command.kind = kind;
    command.arguments.assign(rest.begin(), rest.end());
    return command;
  }
  if (word == "completion") {
    return print(completion_script(rest.size() == 1 ? rest[0] : std::string_view()));
  }
  if (word == "help") return print(rest.empty() ? Result<std::string>(help_text()) : help_group_text(rest[0]));
  if (word == "print-options-markdown") return print(reference_page());  // for docs/reference/options.md

  const std::vector<std::string> words = {"serve", "bench", "build", "engine-info", "completion", "help"};
  const auto near = closest(word, words);
  return to_error({{"unknown command '" + std::string(word) + "'",
                    "the commands are serve, bench, build, engine-info, completion and help",
                    near ? "did you mean " + *near + "?" : "write dynamo-trtllm --model MODEL to serve"}});
}

void log_notices(const ParsedCommand& command) {
  for (const Notice& notice : command.notices) {
    DYN_LOG_AT(notice.level, "config", "{}", notice.text);
  }
}

Result<void> write_config_dump(const ParsedCommand& command) {
  const std::string& path = command.config.dump_config_to;
  if (path.empty()) return {};
  auto file = open_fd(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  auto written = file ? write_all(file->get(), command.config_dump) : Result<void>(file.error());
  if (!written) {
    return to_error({{"--dump-config-to " + path + " cannot be written", written.error().message,
                      "give the path of a file in a folder that exists"}});
  }
  return {};
}

}  // namespace dyn::app
