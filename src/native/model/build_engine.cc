#include "native/model/build_engine.h"

#include <dirent.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "base/posix.h"
#include "native/exec/cpu/cpu_topology.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/load_progress.h"
#include "native/model/model_dir.h"
#include "native/model/weight_targets.h"
#include "wire/blake3.h"

namespace dyn::native {
namespace {

constexpr size_t kMaxSmallFileBytes = 256u << 20;  // a tokenizer

Result<std::vector<std::string>> names_in(const std::string& directory) {
  std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(directory.c_str()), ::closedir);
  if (open == nullptr) return errno_error("cannot read directory " + directory, errno);
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(open.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  return names;
}

// Configuration, tokenizer, chat template, licence: all that makes a model directory beside its weights.
bool belongs_to_model(const std::string& name) {
  if (name.ends_with(".index.json")) return false;
  for (const char* ending : {".json", ".txt", ".jinja", ".model", ".tiktoken"}) {
    if (name.ends_with(ending)) return true;
  }
  return name.starts_with("LICENSE") || name.starts_with("NOTICE");
}

Result<void> prepare_output(const std::string& output) {
  if (output.empty()) return invalid_argument("no output folder was given");
  if (::mkdir(output.c_str(), 0755) == 0) return {};
  if (errno != EEXIST) return errno_error("cannot make " + output, errno);
  auto names = names_in(output);
  if (!names) return names.error();
  if (names->empty() || is_engine_folder(output)) return {};
  return Error{Code::kAlreadyExists,
               output + ": has other files in it; give a new folder, or an engine folder to be replaced"};
}

Result<void> copy_model_files(const std::string& from, const std::string& to) {
  auto names = names_in(from);
  if (!names) return names.error();
  for (const std::string& name : *names) {
    struct stat info{};
    const std::string path = from + "/" + name;
    if (!belongs_to_model(name) || ::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    auto text = read_model_file(path, kMaxSmallFileBytes);
    if (!text) return text.error();
    if (auto written = replace_file(to + "/" + name, {*text}); !written) return written;
  }
  return {};
}

}  // namespace

Result<EngineHeader> build_engine(const BuildEngineOptions& options) {
  auto directory = resolve_model(options.model);
  if (!directory) return directory.error();
  auto config = load_model_config(*directory);
  if (!config) return config.error();
  const bool dummy = options.load_format == LoadFormat::kDummy;
  if (!dummy && !has_checkpoint(*directory) && is_engine_folder(*directory)) {
    return invalid_argument(*directory + ": is an engine folder already; give the model it was built from");
  }
  auto layout = layout_for(options.cpu_path, options.weight_dtype);
  if (!layout) return layout.error();
  EngineHeader header{.builder = options.builder, .model = options.model, .architecture = config->architecture};
  auto config_hash = config_digest(*directory);
  if (!config_hash) return config_hash.error();
  header.config_digest = std::move(*config_hash);
  if (!dummy) {
    auto hash = checkpoint_digest(*directory);
    if (!hash) return hash.error();
    header.checkpoint_digest = std::move(*hash);
  }
  if (auto prepared = prepare_output(options.output); !prepared) return prepared.error();

  const auto threads = place_threads(options.threads);
  LoadMeter meter(options.progress_bar);
  auto weights = load_weights(*config, *directory,
                              {.format = options.load_format,
                               .layout = *layout,
                               .threads = static_cast<unsigned>(threads.size()),
                               .progress = [&](uint64_t done, uint64_t total) { meter.update(done, total); }});
  meter.finish();
  if (!weights) return weights.error();
  if (auto done = check_loaded(options.cpu_path, options.weight_dtype, *weights); !done) return done.error();

  // The same places once more, for their names.
  Weights named;
  const std::vector<WeightTarget> targets = weight_targets(*config, named);
  header.type = weights->embedding.type;
  header.layout = weights->layout;
  const WeightPlaces places = lay_out_weights(targets, header.type, header.layout, named);
  header.data_bytes = places.bytes;
  for (size_t i = 0; i < targets.size(); ++i) header.tensors.push_back(packed_tensor(targets[i], places.offsets[i]));
  const std::byte* data = weights->memory.data();
  ThreadPool pool(threads);
  pool.run(static_cast<uint32_t>(header.tensors.size()), [&](uint32_t i, unsigned) {
    PackedTensor& tensor = header.tensors[i];
    tensor.digest = wire::blake3_hex({data + tensor.offset, tensor.bytes});
  });

  if (auto copied = copy_model_files(*directory, options.output); !copied) return copied.error();
  const std::string beginning = format_engine_header(header);
  auto written =
      replace_file(fmt::format("{}/{}", options.output, kEngineFile), {beginning, as_text({data, places.bytes})});
  if (!written) return written.error();
  return header;
}

}  // namespace dyn::native
