// `dynamo-trtllm build` and `dynamo-trtllm engine-info`: making and reading engine folders
// (native/model/engine_folder.h).
//
//   return run_build({"--model", "/models/Qwen3-0.6B", "--output", "/engines/qwen3"});
//   return run_engine_info({"/engines/qwen3", "--json"});
//
// Results go to standard output, errors to standard error in one line. Exit status: 0, 1 when it failed, 2 for wrong
// arguments. Thread rules: any one thread.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "native/model/engine_folder.h"

namespace dyn::app {

int run_build(std::span<const std::string_view> args);
int run_engine_info(std::span<const std::string_view> args);

// What engine-info prints.
std::string engine_table(const native::EngineHeader& header, bool tensors);
std::string engine_json(const native::EngineHeader& header);

}  // namespace dyn::app
