// WorkerConfig: everything that a worker process is told, resolved and typed. What `serve` reads; it asks no flag and
// no variable itself.
//
//   auto config = make_worker_config(settings, environment, notices);
//   if (!config) return config.error();
//   plane_options.port = config->tcp_port;
//
// Paths are as given (relative ones to the working directory); an empty string or an empty optional means "not said",
// and the comment says what that stands for. Plain value; no thread rules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/options/settings.h"
#include "base/log.h"
#include "base/result.h"

namespace dyn::app {

enum class EngineKind : uint8_t { kNative, kMock };
enum class Device : uint8_t { kAuto, kCpu, kCuda };
enum class LoadFormat : uint8_t { kAuto, kSafetensors, kDummy };
enum class CpuPath : uint8_t { kAuto, kOracle, kFast };
enum class WeightDtype : uint8_t { kAuto, kInt8 };
enum class CapacityPolicy : uint8_t { kGuaranteedNoEvict, kMaxUtilization };
enum class DynamoCompat : uint8_t { k08, k10, k15 };
enum class DiscoveryKind : uint8_t { kFile, kMem };
enum class MockTokenKind : uint8_t { kHash, kEcho, kTimestamp };

struct MockConfig {
  double step_ms = 10;
  MockTokenKind tokens = MockTokenKind::kHash;
  uint32_t vocab_size = 0;  // 0: the model's
  uint64_t kv_blocks = 0;
  std::optional<uint64_t> die_after_steps;
  std::optional<uint64_t> stall_after_steps;
  std::optional<uint32_t> error_on_token;
};

struct WorkerConfig {
  // ---- Model
  std::string model;              // a folder, or a Hugging Face id to look up in the local cache
  std::string served_model_name;  // what clients ask for
  std::string tokenizer;          // folder with the card's tokenizer files; empty: the model's
  std::string engine_dir;         // folder of packed weights; empty: none, or the model is one
  LoadFormat load_format = LoadFormat::kAuto;

  // ---- Engine
  EngineKind engine = EngineKind::kNative;
  Device device = Device::kAuto;
  CpuPath cpu_path = CpuPath::kAuto;
  WeightDtype weight_dtype = WeightDtype::kAuto;
  uint32_t threads = 0;                         // compute threads; 0: chosen by the engine
  uint32_t max_batch_size = 0;                  // sequences of a step
  uint32_t max_num_tokens = 0;                  // tokens of a step
  bool max_num_tokens_given = false;            // else a GPU has another default
  std::optional<uint32_t> max_seq_len;          // prompt + answer; empty: the model's
  uint32_t kv_block_size = 0;                   // tokens
  std::optional<uint64_t> kv_cache_bytes;       // empty: chosen from the free memory
  double free_gpu_memory_fraction = 0.9;        // of a GPU's free memory, for the KV pool
  std::optional<uint64_t> kv_cache_max_tokens;  // a second limit beside the bytes
  bool enable_block_reuse = true;
  bool enable_partial_reuse = true;
  CapacityPolicy capacity_policy = CapacityPolicy::kGuaranteedNoEvict;
  MockConfig mock;

  // ---- Name and discovery
  DynamoCompat compat = DynamoCompat::k15;
  std::string ns;             // with DYN_NAMESPACE_WORKER_SUFFIX
  std::string component;      // "backend"
  std::string endpoint_name;  // "generate"
  DiscoveryKind discovery = DiscoveryKind::kFile;
  std::string file_kv_dir;  // empty: dynamo_store_kv in $TMPDIR, else /tmp

  // ---- Request plane
  std::string tcp_host;  // IP literal; empty: the routable address of this host
  uint16_t tcp_port = 0;
  uint64_t tcp_max_message_bytes = 0;
  int tcp_listen_backlog = 0;
  bool msgpack_codec = true;  // what frontends since 1.4 are asked for; else JSON
  uint32_t net_threads = 1;
  uint64_t response_buffer_bytes = 0;            // of one response
  std::optional<uint32_t> engine_request_limit;  // requests in the engine at a time; empty: no limit
  uint32_t max_queue_size = 0;                   // requests that wait

  // ---- KV events
  bool publish_kv_events = false;  // over ZMQ, as
  bool publish_metrics = false;    // the load is

  // ---- Model card
  std::string tool_call_parser;
  std::string reasoning_parser;
  bool exclude_tools_when_tool_choice_none = true;
  std::string custom_jinja_template;  // an existing file, expanded; empty: the model's
  bool endpoint_types_given = false;  // else what the model's files allow
  bool serve_chat = true;
  bool serve_completions = true;
  uint32_t migration_limit = 0;

  // ---- Health
  std::optional<uint16_t> system_port;  // empty: no server; 0: chosen by the system
  std::string system_host;
  std::string health_path;
  std::string live_path;
  bool starting_ready = false;
  std::vector<std::string> health_endpoints;  // that decide about /health; empty: those with a canary
  bool health_check_enabled = false;
  double health_check_wait_secs = 10;
  double health_check_timeout_secs = 3;

  // ---- Shutdown
  double grace_period_secs = 5;
  double drain_timeout_secs = 900;

  log::Options log;
  std::string dump_config_to;  // empty: no dump
};

// The rules between options are checked here, and files that options name are looked for.
Result<WorkerConfig> make_worker_config(const Settings& settings, const Environment& environment,
                                        std::vector<Notice>& notices);

// "info" and so on for log::init, before anything else of the configuration is known to be right.
log::Options make_log_options(const Settings& settings);

}  // namespace dyn::app
