#include "app/options/worker_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "app/options/test_support.h"

namespace dyn::app {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using testing::file_store;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::parse;
using testing::TempFile;

Environment with(const Environment& variables) {
  Environment environment = file_store();
  environment.insert(variables.begin(), variables.end());
  return environment;
}

WorkerConfig config(std::vector<std::string> arguments, const Environment& environment = file_store()) {
  auto command = parse(std::move(arguments), environment);
  EXPECT_TRUE(command) << error_of(command);
  return command ? command->config : WorkerConfig{};
}

TEST(WorkerConfig, DefaultsAreThoseOfTheOriginal) {
  const WorkerConfig c = config({});
  EXPECT_EQ(c.model, "TinyLlama/TinyLlama-1.1B-Chat-v1.0");
  EXPECT_EQ(c.served_model_name, c.model);
  EXPECT_EQ(c.max_batch_size, 256U);
  EXPECT_EQ(c.max_num_tokens, 512U);
  EXPECT_FALSE(c.max_seq_len);
  EXPECT_EQ(c.kv_block_size, 32U);
  EXPECT_TRUE(c.enable_block_reuse);
  EXPECT_TRUE(c.enable_partial_reuse);
  EXPECT_EQ(c.engine, EngineKind::kNative);
  EXPECT_EQ(c.threads, 0U);
  EXPECT_EQ(c.ns + "." + c.component + "." + c.endpoint_name, "dynamo.backend.generate");
  EXPECT_EQ(c.discovery, DiscoveryKind::kFile);
  EXPECT_FALSE(c.system_port);
  EXPECT_TRUE(c.serve_chat && c.serve_completions);
  EXPECT_FALSE(c.endpoint_types_given);
  EXPECT_EQ(c.grace_period_secs, 5);
  EXPECT_EQ(c.drain_timeout_secs, 900);
  EXPECT_TRUE(c.tcp_host.empty());
  EXPECT_EQ(c.tcp_port, 0);
  EXPECT_EQ(c.tcp_max_message_bytes, 32U << 20);
  EXPECT_EQ(c.tcp_listen_backlog, 1024);
  EXPECT_FALSE(c.engine_request_limit);
  EXPECT_EQ(c.system_host, "0.0.0.0");
  EXPECT_EQ(c.health_path, "/health");
  EXPECT_EQ(c.live_path, "/live");
  EXPECT_FALSE(c.starting_ready);
  EXPECT_TRUE(c.health_endpoints.empty());
  EXPECT_FALSE(c.health_check_enabled);
  EXPECT_EQ(c.health_check_wait_secs, 10);
  EXPECT_EQ(c.health_check_timeout_secs, 3);
  EXPECT_EQ(c.max_queue_size, 40'000U);
}

TEST(WorkerConfig, NameOfTheEndpoint) {
  const auto name = [](std::vector<std::string> arguments, Environment environment = file_store()) {
    environment.emplace("DYN_DISCOVERY_BACKEND", "file");
    const WorkerConfig c = config(std::move(arguments), environment);
    return c.ns + "." + c.component + "." + c.endpoint_name;
  };
  EXPECT_EQ(name({"--dynamo-compat", "0.8"}), "dynamo.tensorrt_llm.generate");
  EXPECT_EQ(name({"--dynamo-compat", "1.0"}), "dynamo.tensorrt_llm.generate");
  EXPECT_EQ(name({"--dynamo-compat", "1.6"}), "dynamo.backend.generate");
  EXPECT_EQ(name({"--namespace", "a", "--component-name", "b"}), "a.b.generate");
  EXPECT_EQ(name({"--namespace", "a", "--endpoint", "dyn://x.y.z"}), "x.y.z");
  EXPECT_EQ(name({}, {{"DYN_NAMESPACE", "n"}, {"DYN_NAMESPACE_WORKER_SUFFIX", "r2"}}), "n-r2.backend.generate");
  EXPECT_EQ(name({}, {{"DYN_ENDPOINT", "x.y.z"}, {"DYN_NAMESPACE_WORKER_SUFFIX", "r2"}}), "x.y.z");
  for (const char* bad : {"x.y", "x.y.z.w", "x..z", "x.y.z/", "", "dyn://"}) {
    if (*bad != '\0') EXPECT_THAT(error_of(parse({std::string("--endpoint=") + bad})), HasSubstr("three parts")) << bad;
  }
  EXPECT_THAT(error_of(parse({"--namespace", "a/b"})), HasSubstr("--namespace a/b cannot be used"));
  EXPECT_THAT(error_of(parse({"--component-name", "a.b"})), HasSubstr("--component-name a.b cannot be used"));
}

TEST(WorkerConfig, RequestPlane) {
  const WorkerConfig c = config({"--tcp-rpc-host", "::1", "--tcp-rpc-port", "9000", "--engine-request-limit", "8",
                                 "--net-threads", "3", "--response-buffer-bytes", "64K"});
  EXPECT_EQ(c.tcp_host, "::1");
  EXPECT_EQ(c.tcp_port, 9000);
  EXPECT_EQ(c.engine_request_limit, 8U);
  EXPECT_EQ(c.max_queue_size, 16U);
  EXPECT_EQ(c.net_threads, 3U);
  EXPECT_EQ(c.response_buffer_bytes, 65536U);
  EXPECT_EQ(config({"--engine-request-limit", "8", "--max-queue-size", "0"}).max_queue_size, 0U);
  EXPECT_THAT(error_of(parse({"--tcp-rpc-host", "localhost"})), HasSubstr("IP literals"));
}

TEST(WorkerConfig, RequestPlaneFromTheEnvironment) {
  Environment environment = with({{"DYN_TCP_RPC_HOST", "10.0.0.7"},
                                  {"DYN_TCP_RPC_PORT", "9345"},
                                  {"DYN_TCP_MAX_MESSAGE_SIZE", "1048576"},
                                  {"DYN_TCP_LISTEN_BACKLOG", "64"},
                                  {"DYN_ENGINE_REQUEST_LIMIT", "8"}});
  const WorkerConfig c = config({}, environment);
  EXPECT_EQ(c.tcp_host, "10.0.0.7");
  EXPECT_EQ(c.tcp_port, 9345);
  EXPECT_EQ(c.tcp_max_message_bytes, 1'048'576U);
  EXPECT_EQ(c.tcp_listen_backlog, 64);
  EXPECT_EQ(c.engine_request_limit, 8U);
  EXPECT_EQ(c.max_queue_size, 16U);
  environment["DYN_DYNAMO_REQUEST_QUEUE_LIMIT"] = "0";
  EXPECT_EQ(config({}, environment).max_queue_size, 0U);
  environment["DYN_DYNAMO_REQUEST_QUEUE_LIMIT"] = "10000000";
  EXPECT_EQ(config({}, environment).max_queue_size, 10'000'000U);
}

TEST(WorkerConfig, AVariableOutOfRangeIsNamed) {
  const std::pair<const char*, std::vector<const char*>> wrong[] = {
      {"DYN_TCP_RPC_PORT", {"abc", "-1", "70000", "1x"}},
      {"DYN_TCP_MAX_MESSAGE_SIZE", {"1023", "4294967296", "-1", "much"}},
      {"DYN_TCP_LISTEN_BACKLOG", {"0", "65536", "x"}},
      {"DYN_ENGINE_REQUEST_LIMIT", {"0", "-1", "10000001", "1.5"}},
      {"DYN_DYNAMO_REQUEST_QUEUE_LIMIT", {"-1", "10000001", "x"}},
      {"DYN_SYSTEM_PORT", {"65536", "80.5", "http", "1e30"}},
      {"DYN_SYSTEM_HEALTH_PATH", {"health"}},
      {"DYN_SYSTEM_LIVE_PATH", {"live"}},
      {"DYN_SYSTEM_STARTING_HEALTH_STATUS", {"maybe"}},
      {"DYN_HEALTH_CHECK_ENABLED", {"maybe"}},
      {"DYN_CANARY_WAIT_TIME", {"0", "-1", "soon", "0.0009", "inf", "nan"}},
      {"DYN_HEALTH_CHECK_REQUEST_TIMEOUT", {"0", "-1", "soon", "0.0009"}},
      {"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", {"soon", "5s", "nan"}},
      {"DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", {"soon", "inf"}},
  };
  for (const auto& [name, values] : wrong) {
    for (const char* value : values) {
      EXPECT_THAT(error_of(parse({}, with({{name, value}}))), HasSubstr(name)) << name << "=" << value;
    }
  }
}

TEST(WorkerConfig, EndpointTypes) {
  EXPECT_FALSE(config({"--endpoint-types", "completions"}).serve_chat);
  const WorkerConfig none = config({"--dyn-endpoint-types", "none"});
  EXPECT_FALSE(none.serve_chat || none.serve_completions);
  EXPECT_THAT(error_of(parse({"--endpoint-types", "none,chat"})), HasSubstr("none cannot stand beside"));
  EXPECT_THAT(error_of(parse({"--endpoint-types="})), HasSubstr("the list is empty"));
}

TEST(WorkerConfig, CustomTemplateIsExpandedAndMustExist) {
  const TempFile file("{{ x }}");
  const size_t slash = file.path().rfind('/');
  Environment environment = file_store();
  environment["TEMPLATES"] = file.path().substr(0, slash);
  environment["HOME"] = file.path().substr(0, slash);
  const std::string name = file.path().substr(slash + 1);
  EXPECT_EQ(config({"--custom-jinja-template", "$TEMPLATES/" + name}, environment).custom_jinja_template, file.path());
  EXPECT_EQ(config({"--custom-jinja-template", "${TEMPLATES}/" + name}, environment).custom_jinja_template,
            file.path());
  EXPECT_EQ(config({"--custom-jinja-template", "~/" + name}, environment).custom_jinja_template, file.path());
  EXPECT_THAT(error_of(parse({"--custom-jinja-template", "/nope/${UNSET/x.jinja"}, environment)),
              HasSubstr("Custom Jinja template file not found: /nope/${UNSET/x.jinja"));
}

TEST(WorkerConfig, Health) {
  Environment environment = file_store();
  environment["DYN_SYSTEM_PORT"] = "0";
  environment["DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS"] = R"(["generate", "other"])";
  environment["DYN_HEALTH_CHECK_ENABLED"] = "true";
  environment["DYN_CANARY_WAIT_TIME"] = "1.5";
  const WorkerConfig c = config({}, environment);
  EXPECT_EQ(c.system_port, 0);
  EXPECT_THAT(c.health_endpoints, ElementsAre("generate", "other"));
  EXPECT_TRUE(c.health_check_enabled);
  EXPECT_EQ(c.health_check_wait_secs, 1.5);
  EXPECT_THAT(error_of(parse({"--system-live-path", "live"})), HasSubstr("a path starts with '/'"));
}

TEST(WorkerConfig, HealthFromTheEnvironment) {
  const WorkerConfig c = config({}, with({{"DYN_SYSTEM_PORT", "40000"},
                                          {"DYN_SYSTEM_HOST", "127.0.0.1"},
                                          {"DYN_SYSTEM_HEALTH_PATH", "/h"},
                                          {"DYN_SYSTEM_LIVE_PATH", "/l"},
                                          {"DYN_SYSTEM_STARTING_HEALTH_STATUS", "ready"},
                                          {"DYN_HEALTH_CHECK_REQUEST_TIMEOUT", "2.5"}}));
  EXPECT_EQ(c.system_port, 40000);
  EXPECT_EQ(c.system_host, "127.0.0.1");
  EXPECT_EQ(c.health_path, "/h");
  EXPECT_EQ(c.live_path, "/l");
  EXPECT_TRUE(c.starting_ready);
  EXPECT_EQ(c.health_check_timeout_secs, 2.5);
  EXPECT_FALSE(config({}, with({{"DYN_SYSTEM_PORT", "-5"}})).system_port);
}

TEST(WorkerConfig, EndpointsThatDecideAboutHealth) {
  const auto endpoints = [](const char* list) {
    return config({}, with({{"DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", list}})).health_endpoints;
  };
  for (const char* list : {R"(["generate", "clear_kv_blocks"])", "['generate','clear_kv_blocks']",
                           "[generate,clear_kv_blocks]", "generate,clear_kv_blocks"}) {
    EXPECT_THAT(endpoints(list), ElementsAre("generate", "clear_kv_blocks")) << list;
  }
  EXPECT_THAT(endpoints("[]"), IsEmpty());
}

TEST(WorkerConfig, EngineAndMock) {
  const WorkerConfig c =
      config({"--engine", "mock", "--mock-step-ms", "2.5", "--mock-tokens", "echo", "--mock-error-on-token", "7"});
  EXPECT_EQ(c.engine, EngineKind::kMock);
  EXPECT_EQ(c.mock.step_ms, 2.5);
  EXPECT_EQ(c.mock.tokens, MockTokenKind::kEcho);
  EXPECT_EQ(c.mock.error_on_token, 7U);
  EXPECT_FALSE(c.mock.die_after_steps);
  auto unused = parse({"--mock-step-ms", "1"});
  ASSERT_TRUE(unused);
  EXPECT_THAT(testing::notices_of(unused->notices), HasSubstr("without effect: the engine is the native one"));
  EXPECT_EQ(config({"--kv-cache-bytes", "2GiB"}).kv_cache_bytes, 2ULL << 30);
  EXPECT_EQ(config({"--trtllm.scheduler_config.capacity_scheduler_policy", "max_utilization"}).capacity_policy,
            CapacityPolicy::kMaxUtilization);
  EXPECT_THAT(error_of(parse({"--trtllm.kv_cache_config.max_tokens", "31"})), HasSubstr("less than one block"));
  EXPECT_EQ(config({}).device, Device::kAuto);
  EXPECT_EQ(config({"--device", "cuda"}).device, Device::kCuda);
  EXPECT_EQ(config({"--device", "cpu"}).device, Device::kCpu);
  EXPECT_EQ(config({}).free_gpu_memory_fraction, 0.9);
  EXPECT_EQ(config({"--free-gpu-memory-fraction", "0.4"}).free_gpu_memory_fraction, 0.4);
  EXPECT_THAT(error_of(parse({"--model", "ngc://org/model"})), HasSubstr("fetch it first"));
}

TEST(WorkerConfig, Logging) {
  Environment environment = file_store();
  environment["DYN_LOG"] = "info,native=debug";
  environment["DYN_LOGGING_JSONL"] = "1";
  EXPECT_EQ(config({}, environment).log.filter, "info,native=debug");
  EXPECT_TRUE(config({}, environment).log.jsonl);
  EXPECT_FALSE(config({"--log-format", "readable"}, environment).log.jsonl);
  EXPECT_EQ(config({"--log-level", "trace"}, environment).log.filter, "trace");
}

TEST(WorkerConfig, NegativeGracePeriodIsNone) {
  EXPECT_EQ(config({"--grace-period-secs", "-3"}).grace_period_secs, 0);
  EXPECT_EQ(config({}, with({{"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "-3"}})).grace_period_secs, 0);
}

TEST(WorkerConfig, ShutdownFromTheEnvironment) {
  const WorkerConfig c = config({}, with({{"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "0.25"},
                                          {"DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "30"}}));
  EXPECT_EQ(c.grace_period_secs, 0.25);
  EXPECT_EQ(c.drain_timeout_secs, 30);
}

}  // namespace
}  // namespace dyn::app
