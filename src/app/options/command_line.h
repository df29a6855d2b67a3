// CommandLine: arguments taken apart by the option table; nothing is converted or judged yet.
//
//   auto line = parse_arguments({"--model", "m", "--max-batch-size=4", "--no-publish-metrics"});
//   line->flags[1] == {find_option("max-batch-size"), "4", "--max-batch-size"}
//
// The habits are argparse's, because command lines were written for it: --flag value, --flag=value, unambiguous
// prefixes, --x and --no-x. Dotted flags (--trtllm.kv_cache_config.dtype auto) are collected into one tree. Errors name
// the argument and, where one is near, the flag that was probably meant. Views must outlive the result's creation only.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "app/options/option.h"
#include "app/options/tree.h"
#include "base/result.h"

namespace dyn::app {

struct GivenFlag {
  const Option* option;
  std::string text;      // "true" or "false" for booleans
  std::string spelling;  // "--max-batch-size": as the table spells it, also for a prefix
};

struct CommandLine {
  std::vector<GivenFlag> flags;  // in order
  Tree dotted;                   // a map, empty without dotted flags
  bool help = false;
  bool help_all = false;
  std::string help_group;  // of --help=GROUP
  bool version = false;
  bool dump_config = false;
};

// Without the program's name and sub-command.
Result<CommandLine> parse_arguments(std::span<const std::string_view> arguments);

// Flags that are actions rather than options, without dashes: help, help-all, version, dump-config.
std::span<const std::string_view> action_flags();

}  // namespace dyn::app
