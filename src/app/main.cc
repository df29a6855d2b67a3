// dynamo-trtllm: an LLM worker for NVIDIA Dynamo. Parses the command line and hands over to the sub-command.
#include <iostream>
#include <span>
#include <string_view>
#include <vector>

#include "app/bench_stream.h"
#include "app/cli.h"
#include "app/engine_commands.h"
#include "app/serve.h"
#include "base/log.h"

int main(int argc, char** argv) {
  using dyn::app::ParsedCommand;

  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  auto command = dyn::app::parse_command_line(arguments, dyn::app::process_environment());
  if (!command) {
    std::cerr << command.error().message << '\n';
    return dyn::app::kExitConfiguration;
  }
  switch (command->kind) {
    case ParsedCommand::Kind::kPrint:
      std::cout << command->text;
      return 0;
    case ParsedCommand::Kind::kBench:
      return dyn::app::bench::run_bench(command->arguments);
    case ParsedCommand::Kind::kBuild:
      return dyn::app::run_build(command->arguments);
    case ParsedCommand::Kind::kEngineInfo:
      return dyn::app::run_engine_info(command->arguments);
    case ParsedCommand::Kind::kServe:
      break;
  }
  dyn::log::init(command->config.log);
  dyn::app::log_notices(*command);
  if (auto written = dyn::app::write_config_dump(*command); !written) {
    std::cerr << written.error().message << '\n';
    return dyn::app::kExitConfiguration;
  }
  return dyn::app::serve(command->config);
}
