#include "native/model/model_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <simdjson.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/env.h"
#include "base/posix.h"

namespace dyn::native {
namespace {

constexpr size_t kMaxRefBytes = 256;
constexpr size_t kMaxConfigBytes = 16u << 20;

enum class Kind { kAbsent, kDirectory, kOther };

Kind kind_of(const std::string& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return Kind::kAbsent;
  return S_ISDIR(info.st_mode) ? Kind::kDirectory : Kind::kOther;
}

// "TensorRT-LLM 1.2.1 engine of LlamaForCausalLM for 2 GPUs", as far as config.json tells; empty for other directories.
// Source: TensorRT-LLM 1.2, trtllm-build: rank{N}.engine beside a config.json with pretrained_config and build_config.
std::string tensorrt_engine(const std::string& path, bool has_plan) {
  const auto text = read_model_file(path + "/config.json", kMaxConfigBytes);
  simdjson::dom::parser parser;
  simdjson::dom::object config;
  simdjson::dom::object pretrained;
  const bool json = text && parser.parse(*text).get(config) == simdjson::SUCCESS;
  const bool built =
      json && config["pretrained_config"].get(pretrained) == simdjson::SUCCESS && config["build_config"].is_object();
  if (!built) return has_plan ? "TensorRT engine" : "";
  std::string_view version;
  std::string_view architecture;
  uint64_t ranks = 0;
  std::string what = "TensorRT-LLM";
  const auto is_plain = [](std::string_view word) {  // one line, whatever the file holds
    return !word.empty() && word.size() <= 100 &&
           std::ranges::all_of(word, [](char c) { return c > ' ' && c < '\x7f'; });
  };
  if (config["version"].get(version) == simdjson::SUCCESS && is_plain(version)) what += fmt::format(" {}", version);
  what += " engine";
  if (pretrained["architecture"].get(architecture) == simdjson::SUCCESS && is_plain(architecture)) {
    what += fmt::format(" of {}", architecture);
  }
  if (pretrained["mapping"]["world_size"].get(ranks) == simdjson::SUCCESS && ranks > 1) {
    what += fmt::format(" for {} GPUs", ranks);
  }
  return what;
}

// A directory that can hold a model: readable, with config.json, not a built TensorRT engine.
Result<std::string> check_directory(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), ::closedir);
  if (directory == nullptr) return errno_error("cannot read directory " + path, errno);
  bool config = false;
  bool engine = false;
  while (const dirent* entry = ::readdir(directory.get())) {
    const std::string_view name = entry->d_name;
    config |= name == "config.json";
    engine |= name.ends_with(".engine") || name.ends_with(".plan");
  }
  if (const std::string built = tensorrt_engine(path, engine); !built.empty()) {
    return unsupported(fmt::format(
        "{}: holds a built {}: a binary for one GPU type and one TensorRT version, which only TensorRT-LLM up to 1.2 "
        "runs; "
        "give the Hugging Face folder it was made from with --model (dynamo-trtllm build packs that for quick starts)",
        path, built));
  }
  if (!config) return Error{Code::kNotFound, path + ": no config.json: not a Hugging Face model directory"};
  return path;
}

std::string cache_directory() {
  if (auto hub = env("HF_HUB_CACHE")) return *hub;
  if (auto hub = env("HUGGINGFACE_HUB_CACHE")) return *hub;
  if (auto home = env("HF_HOME")) return *home + "/hub";
  if (auto cache = env("XDG_CACHE_HOME")) return *cache + "/huggingface/hub";
  return env("HOME").value_or("") + "/.cache/huggingface/hub";
}

// "name" or "org/name" of the characters the hub allows; nothing that could climb out of the cache.
bool is_repository_name(std::string_view name) {
  size_t slashes = 0;
  if (name.empty() || name.front() == '/' || name.back() == '/' || name.size() > 200) return false;
  if (name.find("..") != std::string_view::npos || name.find("--") != std::string_view::npos) return false;
  for (char c : name) {
    if (c == '/') {
      ++slashes;
    } else if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
                 c == '.')) {
      return false;
    }
  }
  return slashes <= 1 && name.front() != '.';
}

}  // namespace

Result<std::string> read_model_file(const std::string& path, size_t max_bytes) {
  auto file = open_fd(path, O_RDONLY | O_CLOEXEC);
  if (!file) return file.error();
  auto text = read_all(file->get(), max_bytes);
  if (!text) return text.error().with_context(path);
  return text;
}

Result<std::string> resolve_model(const std::string& path_or_name) {
  if (path_or_name.empty()) return invalid_argument("no model was given");
  switch (kind_of(path_or_name)) {
    case Kind::kDirectory:
      return check_directory(path_or_name);
    case Kind::kOther:
      return invalid_argument(path_or_name +
                              ": not a directory; a model is a directory with config.json and *.safetensors");
    case Kind::kAbsent:
      break;
  }
  if (!is_repository_name(path_or_name)) return Error{Code::kNotFound, path_or_name + ": no such directory"};

  std::string folder = path_or_name;
  if (size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  const std::string repository = cache_directory() + "/models--" + folder;
  if (kind_of(repository) != Kind::kDirectory) {
    return Error{
        Code::kNotFound,
        fmt::format("{}: no such directory, and not in the Hugging Face cache (looked for {}); download it first: "
                    "hf download {}",
                    path_or_name, repository, path_or_name)};
  }
  auto revision = read_model_file(repository + "/refs/main", kMaxRefBytes);
  if (!revision) return revision.error().with_context(path_or_name);
  while (!revision->empty() && (revision->back() == '\n' || revision->back() == ' ')) revision->pop_back();
  if (revision->empty() || revision->find('/') != std::string::npos || revision->front() == '.') {
    return invalid_argument(fmt::format("{}: {}/refs/main does not hold a revision", path_or_name, repository));
  }
  const std::string snapshot = repository + "/snapshots/" + *revision;
  if (kind_of(snapshot) != Kind::kDirectory) {
    return Error{Code::kNotFound,
                 fmt::format("{}: {} is missing: the download is not complete", path_or_name, snapshot)};
  }
  return check_directory(snapshot);
}

}  // namespace dyn::native
