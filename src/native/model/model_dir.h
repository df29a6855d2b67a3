// Finding a model on this machine. Nothing is downloaded.
//
//   auto directory = resolve_model("Qwen/Qwen3-0.6B");   // or a path
//
// A name is looked up in the Hugging Face cache: $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub,
// $XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub, the first that is set (huggingface_hub/constants.py);
// inside it models--org--name/refs/main names the folder of snapshots/. Thread rules: any thread; reads the
// environment.
#pragma once

#include <string>

#include "base/result.h"

namespace dyn::native {

// The directory with config.json. Errors say what was looked for and where. Folders of built TensorRT engines
// (rank0.engine, or the config.json of trtllm-build) are recognised and refused.
Result<std::string> resolve_model(const std::string& path_or_name);

// A whole small text file; `max_bytes` bounds what is read.
Result<std::string> read_model_file(const std::string& path, size_t max_bytes);

}  // namespace dyn::native
