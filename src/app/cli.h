// The command line of dynamo-trtllm: from argv and environment to what the process shall do.
//
//   auto command = parse_command_line(arguments, process_environment());     // without argv[0]
//   if (!command) { std::cerr << command.error().message << '\n'; return kExitConfiguration; }
//   switch (command->kind) {
//     case ParsedCommand::Kind::kPrint: std::cout << command->text; return 0;
//     case ParsedCommand::Kind::kBench: return bench::run_bench(command->arguments);
//     case ParsedCommand::Kind::kServe: log::init(command->config.log); log_notices(*command); return serve(...);
//   }
//
// Sub-commands: serve (also without the word), bench, build, engine-info, completion. Nothing is opened for writing,
// registered or logged here. Views in `arguments` point into the caller's. Plain values; no thread rules.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "app/options/settings.h"
#include "app/options/worker_config.h"
#include "base/result.h"

namespace dyn::app {

inline constexpr int kExitConfiguration = 2;

struct ParsedCommand {
  enum class Kind : uint8_t { kServe, kBench, kBuild, kEngineInfo, kPrint };

  Kind kind = Kind::kServe;
  WorkerConfig config;                      // kServe
  std::vector<Notice> notices;              // kServe: to be logged once logging is up
  std::string config_dump;                  // kServe: JSON for config.dump_config_to
  std::vector<std::string_view> arguments;  // kBench, kBuild, kEngineInfo: what stands behind the word
  std::string text;                         // kPrint: for standard output
};

// Error messages are for standard error: for each problem one line what, one why, one what to do.
Result<ParsedCommand> parse_command_line(std::span<const std::string_view> arguments, const Environment& environment);

// Writes the notices as log lines of the target "config".
void log_notices(const ParsedCommand& command);

// Writes config_dump to config.dump_config_to, if that is set.
Result<void> write_config_dump(const ParsedCommand& command);

}  // namespace dyn::app
