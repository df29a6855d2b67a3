// Where tests find the models that golden files were recorded with, and those files.
//
//   load_engine({.model = test_model("random/llama3")});
//   std::ifstream file(golden_file("random/llama3.json"));
//
// Models are made by scripts/models; they are looked for in $DYN_TEST_MODELS, $DYN_MODELS_DIR,
// ~/.cache/dynamo-trtllm/models. Golden files are those of the source tree, or of the one that $DYN_TEST_SOURCE names,
// for programs that were carried to another machine. Their absence is a failure: a suite that skips what it is for is
// no suite. For test sources only. Thread rules: reads the environment.
#pragma once

#include <string>

#include "base/env.h"

namespace dyn::native {

inline std::string models_directory() {
  for (const char* name : {"DYN_TEST_MODELS", "DYN_MODELS_DIR"}) {
    if (auto directory = env(name)) return *directory;
  }
  return env("XDG_CACHE_HOME").value_or(env("HOME").value_or("") + "/.cache") + "/dynamo-trtllm/models";
}

inline std::string test_model(const std::string& name) {
  return models_directory() + "/" + name;
}

inline std::string golden_file(const std::string& name) {
  return env("DYN_TEST_SOURCE").value_or(DYN_SOURCE_DIR) + "/tests/golden/" + name;
}

}  // namespace dyn::native
