// Which engine a configuration asks for, made but not started.
//
//   auto made = make_engine(config, files);
//   if (!made) return made.error();
//   made->engine->start(observer);
//
// Loading weights may take long; progress is logged. Thread rules: any one thread.
#pragma once

#include <memory>
#include <string>

#include "app/options/worker_config.h"
#include "base/result.h"
#include "engine/engine.h"
#include "llm/model_card.h"

namespace dyn::app {

struct MadeEngine {
  std::unique_ptr<engine::Engine> engine;
  const char* device_type = "cpu";  // "cuda": for the instance record
  llm::TokenId bos = 1;             // for probes: a token that the model knows
};

// The files of the model that frontends load, found and digested.
Result<llm::ModelFiles> find_card_files(const WorkerConfig& config);

Result<MadeEngine> make_engine(const WorkerConfig& config, const llm::ModelFiles& files);

}  // namespace dyn::app
