#include "app/engine_commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>

#include "app/bench_arguments.h"
#include "app/cli.h"
#include "app/options/render.h"
#include "base/buffer.h"
#include "native/exec/cpu/cpu_topology.h"
#include "native/model/build_engine.h"
#include "native/model/model_dir.h"
#include "wire/json_writer.h"

namespace dyn::app {

namespace {

using bench::ArgumentReader;
using native::CpuPathChoice;
using native::LoadFormat;
using native::WeightDtype;

constexpr unsigned kMaxThreads = 1024;

constexpr std::string_view kBuildUsage =
    R"(Usage: dynamo-trtllm build --model MODEL --output DIR [options]

Makes an engine folder: the model's weights as products read them, in a file that is mapped at each start, with the
model's configuration and tokenizer. Serve it with --model DIR, or with --model MODEL --engine-dir DIR.

  --model DIR|NAME         model directory, or a model in the Hugging Face cache
  --output DIR             a new folder, or an engine folder that is replaced
  --weight-dtype auto|int8 as in the checkpoint, or INT8 made of BF16 with a scale an output channel  [auto]
  --cpu-path auto|oracle|fast   that will read the weights: packed for the fast one, row-major for the F32 reference;
                           auto: fast for BF16 checkpoints            [auto]
  --load-format auto|safetensors|dummy   dummy: random weights, for measurements     [auto]
  --threads N              that pack                                  [one a core]
)";

constexpr std::string_view kInfoUsage =
    R"(Usage: dynamo-trtllm engine-info DIR [options]

Prints what an engine folder holds and what it was made from.

  --tensors                every tensor, too
  --verify                 read all values and compare them with their digests
  --json                   JSON instead of a table, with all tensors
)";

struct InfoOptions {
  std::string directory;
  bool tensors = false;
  bool verify = false;
  bool json = false;
};

Result<native::BuildEngineOptions> parse_build(std::span<const std::string_view> args) {
  native::BuildEngineOptions options;
  ArgumentReader reader(args);
  while (reader.more()) {
    const std::string_view name = reader.next();
    Result<void> done;
    if (name == "--model" || name == "--model-path")
      done = reader.take(options.model);
    else if (name == "--output" || name == "--output-dir")
      done = reader.take(options.output);
    else if (name == "--weight-dtype")
      done = reader.take_choice(options.weight_dtype, {{"auto", WeightDtype::kAuto}, {"int8", WeightDtype::kInt8}});
    else if (name == "--cpu-path")
      done = reader.take_choice(
          options.cpu_path,
          {{"auto", CpuPathChoice::kAuto}, {"oracle", CpuPathChoice::kOracle}, {"fast", CpuPathChoice::kFast}});
    else if (name == "--load-format")
      done = reader.take_choice(options.load_format, {{"auto", LoadFormat::kSafetensors},
                                                      {"safetensors", LoadFormat::kSafetensors},
                                                      {"dummy", LoadFormat::kDummy}});
    else if (name == "--threads")
      done = reader.take(options.threads, 1U, kMaxThreads);
    else
      return invalid_argument(fmt::format("unknown option {}", name));
    if (auto checked = reader.finish(done); !checked) return checked.error();
  }
  if (options.model.empty()) return invalid_argument("--model is needed");
  if (options.output.empty()) return invalid_argument("--output is needed");
  return options;
}

Result<InfoOptions> parse_info(std::span<const std::string_view> args) {
  InfoOptions options;
  ArgumentReader reader(args);
  while (reader.more()) {
    const std::string_view name = reader.next();
    if (name == "--tensors") {
      options.tensors = true;
    } else if (name == "--verify") {
      options.verify = true;
    } else if (name == "--json") {
      options.json = true;
    } else if (name.starts_with('-') || !options.directory.empty()) {
      return invalid_argument(fmt::format("unknown option {}", name));
    } else {
      options.directory = name;
    }
    if (auto checked = reader.finish({}); !checked) return checked.error();
  }
  if (options.directory.empty()) return invalid_argument("which folder?");
  return options;
}

bool wants_help(std::span<const std::string_view> args) {
  return std::ranges::any_of(args, [](std::string_view arg) { return arg == "--help" || arg == "-h"; });
}

int fail(const char* command, const Error& error, int status) {
  std::cerr << command << ": " << error.message << (status == kExitConfiguration ? "; see --help" : "") << '\n';
  return status;
}

// "1.23 GB": 10^9 bytes, as `ls --si` and disks count.
std::string gigabytes(uint64_t bytes) {
  return bytes < 10'000'000 ? fmt::format("{:.3f} MB", static_cast<double>(bytes) / 1e6)
                            : fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9);
}

Result<native::EngineHeader> read_info(const InfoOptions& options) {
  auto directory = native::resolve_model(options.directory);  // tells a TensorRT engine by its files
  if (!directory) return directory.error();
  if (!native::is_engine_folder(*directory)) {
    return Error{Code::kNotFound, fmt::format("{}: no {}: not an engine folder; make one with dynamo-trtllm build",
                                              *directory, native::kEngineFile)};
  }
  auto header = native::read_engine_folder(*directory);
  if (!header) return header;
  if (auto same = native::check_engine_source(*header, *directory); !same) return same.error().with_context(*directory);
  if (options.verify) {
    auto verified = native::verify_engine_folder(*directory, native::default_threads());
    if (!verified) return verified.error();
  }
  return header;
}

}  // namespace

std::string engine_table(const native::EngineHeader& header, bool tensors) {
  std::string out;
  const auto line = [&](std::string_view name, std::string_view value) {
    out += fmt::format("{:<14}{}\n", name, value);
  };
  line("model", header.model);
  line("architecture", header.architecture);
  line("weights", fmt::format("{} in {} tensors, {} of {}", gigabytes(header.data_bytes), header.tensors.size(),
                              native::layout_name(header.layout), native::to_string(header.type)));
  line("built by", header.builder);
  line("format", fmt::format("{}", header.format));
  line("config.json", header.config_digest);
  line("checkpoint", header.checkpoint_digest.empty() ? "none: random weights" : header.checkpoint_digest);
  if (!tensors) return out;
  out += "\n";
  for (const native::PackedTensor& tensor : header.tensors) {
    out += fmt::format("{:>14}  {:<11}  {:<4}  {:<16}  {}\n", tensor.bytes, native::layout_name(tensor.layout),
                       native::to_string(tensor.type), fmt::format("[{}]", fmt::join(tensor.shape, ", ")), tensor.name);
  }
  return out;
}

std::string engine_json(const native::EngineHeader& header) {
  Buffer out;
  native::write_engine_json(header, out);
  return std::string(as_text(out.view()));
}

int run_build(std::span<const std::string_view> args) {
  if (wants_help(args)) {
    std::cout << kBuildUsage;
    return 0;
  }
  auto options = parse_build(args);
  if (!options) return fail("build", options.error(), kExitConfiguration);
  options->progress_bar = ::isatty(STDERR_FILENO) == 1;
  const std::string version = version_text();
  options->builder = version.substr(0, version.find(" ("));
  const auto start = std::chrono::steady_clock::now();
  const auto header = native::build_engine(*options);
  if (!header) return fail("build", header.error(), 1);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::cout << engine_table(*header, false)
            << fmt::format("\n{} is made in {:.1f} s: dynamo-trtllm --model {}\n", options->output, seconds,
                           options->output);
  return 0;
}

int run_engine_info(std::span<const std::string_view> args) {
  if (wants_help(args)) {
    std::cout << kInfoUsage;
    return 0;
  }
  const auto options = parse_info(args);
  if (!options) return fail("engine-info", options.error(), kExitConfiguration);
  const auto header = read_info(*options);
  if (!header) return fail("engine-info", header.error(), 1);
  std::cout << (options->json ? engine_json(*header) + "\n" : engine_table(*header, options->tensors));
  if (options->verify && !options->json) std::cout << "\nall values are as they were written\n";
  return 0;
}

}  // namespace dyn::app
