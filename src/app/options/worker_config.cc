#include "app/options/worker_config.h"

#include <arpa/inet.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>

#include "app/options/text.h"

namespace dyn::app {

namespace {

constexpr uint32_t kQueueBesideEngineLimit = 16;  // Dynamo 1.5
constexpr uint32_t kQueueAlone = 40'000;          // Dynamo 1.5

bool is_name(std::string_view text, bool dots) {
  return !text.empty() && text.size() <= 200 && std::all_of(text.begin(), text.end(), [&](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || (dots && c == '.');
  });
}

// As Python's expanduser and expandvars: "~/x", "$HOME/x", "${HOME}/x"; an unknown variable stays as it is.
std::string expand_path(std::string_view path, const Environment& environment) {
  std::string out;
  const auto variable = [&](const std::string& name) -> const std::string* {
    const auto at = environment.find(name);
    return at == environment.end() ? nullptr : &at->second;
  };
  if (path == "~" || path.starts_with("~/")) {
    if (const std::string* home = variable("HOME")) {
      out = *home;
      path.remove_prefix(1);
    }
  }
  for (size_t at = 0; at < path.size();) {
    if (path[at] != '$') {
      out += path[at++];
      continue;
    }
    const bool braced = at + 1 < path.size() && path[at + 1] == '{';
    const size_t begin = at + (braced ? 2 : 1);
    size_t end = begin;
    while (end < path.size() && (std::isalnum(static_cast<unsigned char>(path[end])) != 0 || path[end] == '_')) ++end;
    const bool closed = !braced || (end < path.size() && path[end] == '}');
    const std::string name(path.substr(begin, end - begin));
    const std::string* value = closed && !name.empty() ? variable(name) : nullptr;
    const size_t after = end + (braced && closed ? 1 : 0);
    out += value != nullptr ? std::string_view(*value) : path.substr(at, after - at);
    at = after;
  }
  return out;
}

bool is_file(const std::string& path) {
  struct stat info{};
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

class Builder {
 public:
  Builder(const Settings& settings, const Environment& environment, std::vector<Notice>& notices)
      : settings_(settings), environment_(environment), notices_(notices) {}

  Result<WorkerConfig> run() {
    model();
    engine();
    mock();
    identity();
    request_plane();
    events();
    card();
    health();
    config_.grace_period_secs = std::max(0.0, settings_.number("grace-period-secs"));
    config_.drain_timeout_secs = settings_.number("drain-timeout-secs");
    config_.log = make_log_options(settings_);
    config_.dump_config_to = settings_.text("dump-config-to");
    if (!problems_.empty()) return to_error(problems_);
    return std::move(config_);
  }

 private:
  void fail(std::string_view name, std::string why, std::string fix) {
    const Option& option = *find_option(name);
    problems_.push_back(
        {as_written(option, settings_.get(option)) + " cannot be used", std::move(why), std::move(fix)});
  }

  uint32_t count(std::string_view name) { return static_cast<uint32_t>(settings_.integer(name)); }
  template <class T>
  std::optional<T> optional(std::string_view name) {
    if (!settings_.has(name)) return std::nullopt;
    return static_cast<T>(settings_.integer(name));
  }

  void model() {
    config_.engine_dir = settings_.text("engine-dir");
    config_.model = settings_.text("model");
    if (!config_.engine_dir.empty() && !settings_.given("model")) config_.model = config_.engine_dir;
    if (config_.model.empty()) fail("model", "it is empty", "name a folder or a Hugging Face id that is in the cache");
    if (config_.model.find("://") != std::string::npos) {
      fail("model", "models are not fetched", "fetch it first and pass the folder");
    }
    config_.served_model_name =
        settings_.has("served-model-name") ? settings_.text("served-model-name") : config_.model;
    config_.tokenizer = settings_.text("tokenizer");
    const std::string format = settings_.text("load-format");
    config_.load_format = format == "dummy"         ? LoadFormat::kDummy
                          : format == "safetensors" ? LoadFormat::kSafetensors
                                                    : LoadFormat::kAuto;
    if (!config_.engine_dir.empty() && config_.load_format != LoadFormat::kAuto) {
      fail("load-format", "--engine-dir names a folder whose weights are to be used", "leave one of them out");
    }
  }

  void engine() {
    config_.engine = settings_.text("engine") == "mock" ? EngineKind::kMock : EngineKind::kNative;
    const std::string device = settings_.text("device");
    config_.device = device == "cuda" ? Device::kCuda : device == "cpu" ? Device::kCpu : Device::kAuto;
    config_.threads = count("threads");
    const std::string path = settings_.text("cpu-path");
    config_.cpu_path = path == "oracle" ? CpuPath::kOracle : path == "fast" ? CpuPath::kFast : CpuPath::kAuto;
    config_.weight_dtype = settings_.text("weight-dtype") == "int8" ? WeightDtype::kInt8 : WeightDtype::kAuto;
    if (config_.cpu_path == CpuPath::kOracle && config_.weight_dtype == WeightDtype::kInt8) {
      fail("weight-dtype", "the CPU's oracle path multiplies weights as they are stored",
           "use --cpu-path fast (or auto)");
    }
    config_.max_batch_size = count("max-batch-size");
    config_.max_num_tokens = count("max-num-tokens");
    config_.max_num_tokens_given = settings_.given("max-num-tokens");
    config_.max_seq_len = optional<uint32_t>("max-seq-len");
    config_.kv_block_size = count("kv-block-size");
    config_.kv_cache_bytes = optional<uint64_t>("kv-cache-bytes");
    config_.free_gpu_memory_fraction = settings_.number("free-gpu-memory-fraction");
    config_.kv_cache_max_tokens = optional<uint64_t>("kv_cache_config.max_tokens");
    config_.enable_block_reuse = settings_.boolean("kv_cache_config.enable_block_reuse");
    config_.enable_partial_reuse = settings_.boolean("kv_cache_config.enable_partial_reuse");
    config_.capacity_policy = settings_.text("scheduler_config.capacity_scheduler_policy") == "MAX_UTILIZATION"
                                  ? CapacityPolicy::kMaxUtilization
                                  : CapacityPolicy::kGuaranteedNoEvict;
    if (config_.kv_cache_max_tokens && *config_.kv_cache_max_tokens < config_.kv_block_size) {
      fail("kv_cache_config.max_tokens", "it is less than one block of " + std::to_string(config_.kv_block_size),
           "give at least the length of the longest sequence");
    }
  }

  void mock() {
    MockConfig& mock = config_.mock;
    mock.step_ms = settings_.number("mock-step-ms");
    const std::string tokens = settings_.text("mock-tokens");
    mock.tokens = tokens == "echo"        ? MockTokenKind::kEcho
                  : tokens == "timestamp" ? MockTokenKind::kTimestamp
                                          : MockTokenKind::kHash;
    mock.vocab_size = optional<uint32_t>("mock-vocab-size").value_or(0);
    mock.kv_blocks = static_cast<uint64_t>(settings_.integer("mock-kv-blocks"));
    mock.die_after_steps = optional<uint64_t>("mock-die-after-steps");
    mock.stall_after_steps = optional<uint64_t>("mock-stall-after-steps");
    mock.error_on_token = optional<uint32_t>("mock-error-on-token");
    for (const Option& option : option_table()) {
      const Setting& setting = settings_.get(option);
      const bool of_mock = option.group == Group::kMock;
      const bool of_native = option.name == "threads" || option.name == "cpu-path" || option.name == "weight-dtype" ||
                             option.name == "batch-invariant" || option.name == "kv-cache-bytes" ||
                             option.name == "load-format" || option.name == "device" || option.name == "engine-dir" ||
                             option.name == "free-gpu-memory-fraction" || option.name == "kv_cache_config.max_tokens" ||
                             option.name == "kv_cache_config.enable_block_reuse" ||
                             option.name == "kv_cache_config.enable_partial_reuse" || option.name == "max-num-tokens" ||
                             option.name == "scheduler_config.capacity_scheduler_policy";
      if (!setting.given() || !(config_.engine == EngineKind::kMock ? of_native : of_mock)) continue;
      notices_.push_back({log::Level::kInfo, as_written(option, setting) + " is without effect: the engine is the " +
                                                 settings_.text("engine") + " one"});
    }
  }

  void identity() {
    const std::string compat = settings_.text("dynamo-compat");
    config_.compat = compat == "0.8" ? DynamoCompat::k08 : compat == "1.0" ? DynamoCompat::k10 : DynamoCompat::k15;
    config_.ns = settings_.text("namespace");
    config_.component = settings_.has("component-name")       ? settings_.text("component-name")
                        : config_.compat == DynamoCompat::k15 ? "backend"
                                                              : "tensorrt_llm";
    config_.endpoint_name = "generate";
    if (settings_.has("endpoint")) {
      parse_endpoint(settings_.text("endpoint"));
    } else {
      if (!is_name(config_.ns, true)) bad_name("namespace");
      if (!is_name(config_.component, false)) bad_name("component-name");
    }
    if (settings_.has("DYN_NAMESPACE_WORKER_SUFFIX")) {
      const std::string suffix = settings_.text("DYN_NAMESPACE_WORKER_SUFFIX");
      if (!is_name(suffix, false)) bad_name("DYN_NAMESPACE_WORKER_SUFFIX");
      if (!settings_.given("endpoint")) config_.ns += "-" + suffix;
    }
    config_.discovery = settings_.text("discovery-backend") == "mem" ? DiscoveryKind::kMem : DiscoveryKind::kFile;
    config_.file_kv_dir = settings_.text("file-kv-dir");
  }

  void bad_name(std::string_view option) {
    fail(option, "names are letters, digits, '-' and '_'", "choose another name, or leave it out");
  }

  void parse_endpoint(std::string_view text) {
    if (text.starts_with("dyn://")) text.remove_prefix(6);
    const auto parts = split(text, ".");
    const bool good =
        parts.size() == 3 && std::count(text.begin(), text.end(), '.') == 2 &&
        std::all_of(parts.begin(), parts.end(), [](std::string_view part) { return is_name(part, false); });
    if (!good) {
      return fail("endpoint", "it must have three parts of letters, digits, '-' and '_'",
                  "write namespace.component.endpoint, with or without dyn:// in front");
    }
    config_.ns = parts[0];
    config_.component = parts[1];
    config_.endpoint_name = parts[2];
  }

  void request_plane() {
    config_.tcp_host = settings_.text("tcp-rpc-host");
    unsigned char address[sizeof(in6_addr)];
    if (!config_.tcp_host.empty() && ::inet_pton(AF_INET, config_.tcp_host.c_str(), address) != 1 &&
        ::inet_pton(AF_INET6, config_.tcp_host.c_str(), address) != 1) {
      fail("tcp-rpc-host", "it is published, and callers dial IP literals only", "give an IPv4 or IPv6 address");
    }
    config_.tcp_port = static_cast<uint16_t>(settings_.integer("tcp-rpc-port"));
    config_.tcp_max_message_bytes = static_cast<uint64_t>(settings_.integer("DYN_TCP_MAX_MESSAGE_SIZE"));
    config_.tcp_listen_backlog = static_cast<int>(settings_.integer("DYN_TCP_LISTEN_BACKLOG"));
    config_.msgpack_codec = settings_.text("DYN_REQUEST_PLANE_CODEC") == "msgpack";
    config_.net_threads = count("net-threads");
    config_.response_buffer_bytes = static_cast<uint64_t>(settings_.integer("response-buffer-bytes"));
    config_.engine_request_limit = optional<uint32_t>("engine-request-limit");
    config_.max_queue_size = optional<uint32_t>("max-queue-size")
                                 .value_or(config_.engine_request_limit ? kQueueBesideEngineLimit : kQueueAlone);
  }

  void events() {
    config_.publish_kv_events = settings_.boolean("publish-kv-events");
    config_.publish_metrics = settings_.boolean("publish-metrics");
    const bool nats = settings_.text("event-plane") == "nats";
    if (nats && (config_.publish_kv_events || config_.publish_metrics)) {
      fail("event-plane", "this build publishes over ZMQ only", "give zmq, here and at the frontend");
    }
    if (!config_.publish_kv_events) return;
    if (config_.engine == EngineKind::kMock) {
      fail("publish-kv-events", "the mock engine has no KV cache to tell of", "leave it out, or use --engine native");
    }
    if (!config_.enable_block_reuse) {
      fail("publish-kv-events", "without block reuse no block can be found again, so there is nothing to publish",
           "leave it out, or set kv_cache_config.enable_block_reuse to true");
    }
  }

  void card() {
    config_.tool_call_parser = settings_.text("dyn-tool-call-parser");
    config_.reasoning_parser = settings_.text("dyn-reasoning-parser");
    config_.exclude_tools_when_tool_choice_none = settings_.boolean("exclude-tools-when-tool-choice-none");
    if (settings_.has("custom-jinja-template")) {
      config_.custom_jinja_template = expand_path(settings_.text("custom-jinja-template"), environment_);
      if (!is_file(config_.custom_jinja_template)) {
        fail("custom-jinja-template", "Custom Jinja template file not found: " + config_.custom_jinja_template,
             "give the path of a file");
      }
    }
    const std::vector<std::string> types = settings_.words("endpoint-types");
    const auto has = [&](std::string_view type) { return std::find(types.begin(), types.end(), type) != types.end(); };
    config_.endpoint_types_given = settings_.given("endpoint-types");
    config_.serve_chat = has("chat");
    config_.serve_completions = has("completions");
    if (types.empty()) fail("endpoint-types", "the list is empty", "give chat, completions, both, or none");
    if (has("none") && types.size() > 1) {
      fail("endpoint-types", "none cannot stand beside other types", "give none alone, or leave it out");
    }
    config_.migration_limit = count("migration-limit");
  }

  void health() {
    const int64_t port = settings_.integer("system-port");
    if (port >= 0) config_.system_port = static_cast<uint16_t>(port);
    config_.system_host = settings_.text("system-host");
    config_.health_path = settings_.text("system-health-path");
    config_.live_path = settings_.text("system-live-path");
    for (const std::string_view name : {"system-health-path", "system-live-path"}) {
      if (!settings_.text(name).starts_with('/')) fail(name, "a path starts with '/'", "write it as /health");
    }
    config_.starting_ready = settings_.text("system-starting-health-status") == "ready";
    config_.health_endpoints = settings_.words("system-use-endpoint-health-status");
    config_.health_check_enabled = settings_.boolean("health-check-enabled");
    config_.health_check_wait_secs = settings_.number("health-check-wait-secs");
    config_.health_check_timeout_secs = settings_.number("health-check-timeout-secs");
    for (const std::string_view name : {"health-check-wait-secs", "health-check-timeout-secs"}) {
      if (settings_.number(name) < 0.001) fail(name, "it is less than a millisecond", "give 0.001 or more");
    }
  }

  const Settings& settings_;
  const Environment& environment_;
  std::vector<Notice>& notices_;
  WorkerConfig config_;
  std::vector<Problem> problems_;
};

}  // namespace

Result<WorkerConfig> make_worker_config(const Settings& settings, const Environment& environment,
                                        std::vector<Notice>& notices) {
  return Builder(settings, environment, notices).run();
}

log::Options make_log_options(const Settings& settings) {
  log::Options options;
  options.filter = settings.text("log-level");
  const std::string format = settings.text("log-format");
  options.jsonl = format.empty() ? settings.boolean("DYN_LOGGING_JSONL") : format == "jsonl";
  options.local_time = settings.boolean("DYN_LOG_USE_LOCAL_TZ");
  const bool plain = settings.boolean("DYN_SDK_DISABLE_ANSI_LOGGING") || settings.has("NO_COLOR");
  options.colour = !plain && !options.jsonl && ::isatty(STDERR_FILENO) == 1;
  return options;
}

}  // namespace dyn::app
