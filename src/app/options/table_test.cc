#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "app/options/option.h"
#include "app/options/settings.h"
#include "app/options/test_support.h"
#include "app/options/text.h"
#include "app/options/worker_config.h"

namespace dyn::app {
namespace {

TEST(OptionTable, EveryRowIsComplete) {
  for (const Option& option : option_table()) {
    SCOPED_TRACE(std::string(option.name));
    EXPECT_FALSE(option.help.empty());
    EXPECT_TRUE(option.help.ends_with('.')) << "help is sentences";
    EXPECT_FALSE(option.why.ends_with('.'));
    EXPECT_TRUE(option.flag || !option.engine_key.empty() || !option.env.empty());
    if (option.effect == Effect::kRefused) {
      EXPECT_FALSE(option.why.empty());
      EXPECT_FALSE(option.instead.empty());
      EXPECT_TRUE(option.refuses.empty());
    }
    if (option.effect == Effect::kNoEffect) EXPECT_FALSE(option.why.empty());
    if (!option.refuses.empty()) {
      EXPECT_FALSE(option.why.empty());
      EXPECT_FALSE(option.instead.empty());
    }
    if (option.type == Type::kEnum) EXPECT_FALSE(option.choices.empty());
    if (option.type == Type::kBool) EXPECT_TRUE(option.metavar.empty());
  }
}

TEST(OptionTable, DefaultsAreValidAndNotRefused) {
  for (const Option& option : option_table()) {
    SCOPED_TRACE(std::string(option.name));
    const Value value = default_value(option);  // ends the process if it does not convert
    EXPECT_EQ(std::holds_alternative<std::monostate>(value), option.fallback.empty());
    // An honoured option without a default must be one that the builder takes for optional.
    if (option.effect == Effect::kHonoured && option.expands.empty() && option.type == Type::kBool) {
      EXPECT_FALSE(option.fallback.empty());
    }
  }
}

TEST(OptionTable, NamesAreUnique) {
  std::set<std::string> flags;
  std::set<std::string> variables;
  std::set<std::string> keys;
  std::set<std::string> names;
  for (const Option& option : option_table()) {
    EXPECT_TRUE(names.emplace(option.name).second) << option.name;
    for (const std::string& name : env_names(option)) EXPECT_TRUE(variables.insert(name).second) << name;
    if (!option.engine_key.empty()) EXPECT_TRUE(keys.emplace(option.engine_key).second) << option.engine_key;
  }
  for (const FlagSpelling& spelling : flag_spellings())
    EXPECT_TRUE(flags.insert(spelling.text).second) << spelling.text;
}

TEST(OptionTable, ReferencesAreResolved) {
  for (const Option& option : option_table()) {
    SCOPED_TRACE(std::string(option.name));
    for (const std::string_view name : split(option.expands)) {
      const Option* target = find_option(name);
      ASSERT_NE(target, nullptr);
      EXPECT_EQ(target->type, Type::kBool);
    }
    const auto choices = split(option.choices);
    for (const std::string_view refused : split(option.refuses)) {
      EXPECT_NE(std::find(choices.begin(), choices.end(), refused), choices.end()) << refused;
    }
    for (const std::string_view pair : split(option.value_aliases)) {
      const std::string_view target = pair.substr(pair.find('=') + 1);
      EXPECT_NE(std::find(choices.begin(), choices.end(), target), choices.end()) << pair;
    }
  }
}

TEST(OptionTable, NoEngineKeyIsSectionToo) {
  for (const Option& option : option_table()) {
    if (!option.engine_key.empty()) EXPECT_FALSE(is_engine_section(option.engine_key)) << option.engine_key;
  }
}

// No flag is parsed and ignored: what the table calls honoured is read, and nothing else is.
TEST(OptionTable, HonouredIsWhatTheConfigurationReads) {
  auto resolved = testing::resolve({});
  ASSERT_TRUE(resolved) << resolved.error().message;
  std::vector<Notice> notices;
  ASSERT_TRUE(make_worker_config(resolved->settings, {}, notices));
  const auto& read = resolved->settings.names_read();
  // Read before a configuration exists, by the model look-up, or with a single value that is not refused.
  const std::set<std::string_view> elsewhere = {
      "extra-engine-args", "override-engine-args", "HF_HUB_CACHE",  "HUGGINGFACE_HUB_CACHE",
      "HF_HOME",           "request-plane",        "response-plane"};
  for (const Option& option : option_table()) {
    if (!option.expands.empty() || elsewhere.contains(option.name)) continue;
    EXPECT_EQ(read.contains(option.name), option.effect == Effect::kHonoured) << option.name;
  }
}

// The flags of `python -m dynamo.trtllm` 0.8, 1.0, 1.5 and 1.6: each is understood.
TEST(OptionTable, KnowsEveryFlagOfTheOriginal) {
  for (const char* flag : {"endpoint",
                           "model-path",
                           "model",
                           "served-model-name",
                           "tensor-parallel-size",
                           "pipeline-parallel-size",
                           "expert-parallel-size",
                           "enable-attention-dp",
                           "kv-block-size",
                           "migration-limit",
                           "gpus-per-node",
                           "max-batch-size",
                           "max-num-tokens",
                           "max-seq-len",
                           "max-beam-width",
                           "free-gpu-memory-fraction",
                           "extra-engine-args",
                           "override-engine-args",
                           "publish-events-and-metrics",
                           "publish-kv-events",
                           "publish-metrics",
                           "disable-request-abort",
                           "disaggregation-mode",
                           "use-nixl-connect",
                           "modality",
                           "enable-multimodal",
                           "encode-endpoint",
                           "allowed-local-media-path",
                           "max-file-size-mb",
                           "dyn-tool-call-parser",
                           "dyn-reasoning-parser",
                           "dyn-default-thinking-mode",
                           "exclude-tools-when-tool-choice-none",
                           "dyn-structural-tag",
                           "dyn-enable-structural-tag",
                           "dyn-structural-tag-scope",
                           "dyn-structural-tag-schema",
                           "custom-jinja-template",
                           "dyn-endpoint-types",
                           "endpoint-types",
                           "store-kv",
                           "discovery-backend",
                           "request-plane",
                           "response-plane",
                           "event-plane",
                           "enable-local-indexer",
                           "durable-kv-events",
                           "connector",
                           "namespace",
                           "kv-state-endpoint",
                           "fpm-trace",
                           "dump-config-to",
                           "multimodal-embedding-cache-capacity-gb",
                           "dyn-encoder-cache-capacity-gb",
                           "multimodal-embedding-cache-publisher",
                           "output-modalities",
                           "media-output-fs-url",
                           "media-output-http-url",
                           "health-check-payload",
                           "engine-request-limit",
                           "tcp-tls-cert-path",
                           "tcp-tls-key-path",
                           "tcp-tls-ca-cert-path",
                           "tcp-tls-insecure",
                           "tcp-tls-server-name",
                           "tcp-tls-handshake-timeout",
                           "tcp-tls-client-cert-path",
                           "tcp-tls-client-key-path",
                           "tcp-tls-client-ca-cert-path",
                           "nats-tls-ca-cert-path",
                           "nats-tls-insecure",
                           "nats-tls-client-cert-path",
                           "nats-tls-client-key-path",
                           "conversation-affinity",
                           "conversation-affinity-dp-rank-source",
                           "load-format",
                           "model-loader-extra-config",
                           "frontend-decoding",
                           "guided-decoding-backend",
                           "default-height",
                           "skip-warmup",
                           "torch-compile-mode",
                           "fuse-qkv",
                           "router-mode",
                           "router-kv-events",
                           "kv-events",
                           "enable-session-prefix-index",
                           "router-session-affinity-mode",
                           "tokenizer",
                           "engine-dir",
                           "disagg-mode",
                           "component-name",
                           "kv-cache-free-gpu-mem-fraction"}) {
    EXPECT_NE(find_flag(flag), nullptr) << flag;
  }
}

TEST(OptionTable, VariablesAreThoseOfTheOriginal) {
  const auto variables = [](std::string_view flag) { return env_names(*find_flag(flag)); };
  EXPECT_THAT(variables("model"), ::testing::ElementsAre("DYN_TRTLLM_MODEL"));
  EXPECT_THAT(variables("free-gpu-memory-fraction"), ::testing::ElementsAre("DYN_TRTLLM_FREE_GPU_MEMORY_FRACTION"));
  EXPECT_THAT(variables("discovery-backend"), ::testing::ElementsAre("DYN_DISCOVERY_BACKEND", "DYN_STORE_KV"));
  EXPECT_THAT(variables("conversation-affinity"), ::testing::ElementsAre("DYN_ENGINE_CONV_AFFINITY"));
}

// A text that the option takes and that is not its default.
std::string sample(const Option& option) {
  switch (option.type) {
    case Type::kBool:
      return option.fallback == "true" ? "false" : "true";
    case Type::kInt:
    case Type::kBytes: {
      const int64_t least = std::max<int64_t>(option.low, 3);
      return std::to_string(std::min(least, option.high));
    }
    case Type::kFloat:
      return "0.5";
    case Type::kEnum:
    case Type::kList: {
      const auto choices = split(option.choices);
      if (choices.empty()) return "word";
      return std::string(choices.back() == option.fallback ? choices.front() : choices.back());
    }
    case Type::kJson:
    case Type::kAny:
      return R"({"max_batch_size":3})";
    case Type::kText:
    case Type::kPath:
      return "/some/text";
  }
  return {};
}

// What an option got, from outside: its value, or the refusal that names the way it was given.
void expect_taken(const Option& option, const Result<Resolved>& resolved, const std::string& written,
                  const std::string& text, Layer layer) {
  SCOPED_TRACE(written + " " + text);
  if (!resolved) {
    const bool refused = option.effect == Effect::kRefused || !option.refuses.empty();
    EXPECT_TRUE(refused) << resolved.error().message;
    EXPECT_THAT(resolved.error().message, ::testing::HasSubstr(written));
    EXPECT_THAT(resolved.error().message, ::testing::HasSubstr(std::string(option.why)));
    return;
  }
  std::vector<const Option*> targets = {&option};
  if (!option.expands.empty()) {
    targets.clear();
    for (const std::string_view name : split(option.expands)) targets.push_back(find_option(name));
  }
  for (const Option* target : targets) {
    const Setting& setting = resolved->settings.get(*target);
    EXPECT_EQ(setting.source.layer, layer);
    EXPECT_EQ(value_text(setting.value), value_text(*convert(option, text)));
  }
  if (option.effect == Effect::kNoEffect) {
    EXPECT_THAT(testing::notices_of(resolved->notices), ::testing::HasSubstr(std::string(option.why)));
  }
}

TEST(OptionTable, EveryOptionTakesEverySource) {
  for (const Option& option : option_table()) {
    if (option.name == "extra-engine-args" || option.name == "override-engine-args") continue;  // files of their own
    const std::string text = sample(option);
    for (const std::string& flag : flag_names(option)) {
      if (option.name == "publish-events-and-metrics") continue;  // refuses by its target's reason, tested below
      Environment environment = testing::file_store();
      if (option.name == "discovery-backend") environment.clear();
      expect_taken(option, testing::resolve({"--" + flag + "=" + text}, environment), "--" + flag, text, Layer::kFlag);
    }
    for (std::string name : env_names(option)) {
      if (option.name == "publish-events-and-metrics") continue;
      std::string value = text;
      Environment environment;
      if (option.name != "discovery-backend") environment = testing::file_store();
      if (name.ends_with('*')) {
        name.back() = 'X';
        value = name;
      }
      environment[name] = text;
      const std::string shown = name.substr(0, name.size() - (value == name ? 1 : 0));
      expect_taken(option, testing::resolve({}, environment), shown, value, Layer::kEnvironment);
    }
    if (option.engine_key.empty()) continue;
    const std::string key(option.engine_key);
    // Dotted text would be typed; the file carries it quoted where it is text.
    std::string yaml;
    size_t depth = 0;
    for (const std::string_view part : split(key, ".")) {
      yaml += (depth > 0 ? "\n" : "") + std::string(2 * depth, ' ') + std::string(part) + ":";
      ++depth;
    }
    const testing::TempFile file(yaml + " " + text + "\n");
    const std::string shown_text = option.type == Type::kAny ? text : text;
    expect_taken(option, testing::resolve({"--extra-engine-args", file.path()}), key, shown_text, Layer::kFile);
    if (option.type != Type::kAny) {
      expect_taken(option, testing::resolve({"--trtllm." + key, text}), key, text, Layer::kOverride);
    }
  }
}

}  // namespace
}  // namespace dyn::app
