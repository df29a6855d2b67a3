// Makes an engine folder (engine_folder.h) from a model.
//
//   auto built = build_engine({.model = "/models/Qwen3-0.6B", .output = "/engines/qwen3", .builder =
//   "dynamo-trtllm 1.0"}); if (!built) return built.error();
//
// The weights are held in memory once while they are written. The output is a new or empty folder, or an engine folder,
// which is replaced file by file, each by a rename, weights.packed last: whoever maps the old one keeps it, and whoever
// opens the folder in between is told that it does not fit its config.json. Thread rules: any one thread; nobody else
// writes to the folder meanwhile.
#pragma once

#include <string>

#include "base/result.h"
#include "native/exec/cpu/cpu_path.h"
#include "native/model/engine_folder.h"

namespace dyn::native {

struct BuildEngineOptions {
  std::string model;   // directory, or the name of a model in the Hugging Face cache
  std::string output;  // the folder
  LoadFormat load_format = LoadFormat::kSafetensors;
  CpuPathChoice cpu_path = CpuPathChoice::kAuto;  // that will read them, as when serving
  WeightDtype weight_dtype = WeightDtype::kAuto;
  unsigned threads = 0;  // 0: one a core
  bool progress_bar = false;
  std::string builder;  // program and version, for the header
};

// The header of what was written.
Result<EngineHeader> build_engine(const BuildEngineOptions& options);

}  // namespace dyn::native
