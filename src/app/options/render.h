// What the option table looks like to a person or a shell: help, reference page, completion scripts, configuration
// dump.
//
//   std::cout << help_text("kv-cache");
//   std::cout << reference_page();                       // docs/reference/options.md, checked by a test
//   auto script = completion_script("fish");
//
// Pure functions of the table (and of the settings, for the dump); safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include "app/options/settings.h"
#include "base/result.h"

namespace dyn::app {

std::string version_text();  // "dynamo-trtllm 0.1.0 ..."

// Honoured flags, by group.
std::string help_text();
// All flags, engine keys and variables, with those without effect or refused.
std::string help_all_text();
// One group in full: "kv-cache", or "mock".
Result<std::string> help_group_text(std::string_view group);

std::string reference_page();  // Markdown

// "bash", "zsh", "fish".
Result<std::string> completion_script(std::string_view shell);

// JSON: every option that has a value, with the value and its source; secrets masked.
std::string config_dump(const Settings& settings);

}  // namespace dyn::app
