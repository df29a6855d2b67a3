#include "native/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/test_support.h"

namespace dyn::native {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json llama() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 384, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 1, "eos_token_id": 2,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64, "rope_type": "llama3"},
    "torch_dtype": "bfloat16", "tie_word_embeddings": false})");
}

// As transformers 5.23 writes the same model.
constexpr std::string_view kLlamaV5 = R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false,
  "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": 2, "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 512, "max_position_embeddings": 512,
  "mlp_bias": false, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
  "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_parameters": {"factor": 8.0,
  "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64, "rope_theta": 500000.0,
  "rope_type": "llama3"}, "tie_word_embeddings": false, "transformers_version": "5.23.0", "use_cache": true,
  "vocab_size": 384})";

constexpr std::string_view kQwen3V5 = R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
  "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu", "hidden_size": 192,
  "intermediate_size": 384, "layer_types": ["full_attention", "full_attention", "full_attention"],
  "max_position_embeddings": 512, "max_window_layers": 3, "model_type": "qwen3", "num_attention_heads": 4,
  "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 1000000.0,
  "rope_type": "default"}, "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false,
  "vocab_size": 384})";

ModelConfig parsed(const json& config, std::string_view generation = {}) {
  auto result = parse_model_config(config.dump(), generation);
  EXPECT_TRUE(result.ok()) << result.error().message;
  return result ? *result : ModelConfig{};
}

Error refused(const json& config, std::string_view generation = {}) {
  auto result = parse_model_config(config.dump(), generation);
  EXPECT_FALSE(result.ok());
  return result ? Error{} : result.error();
}

TEST(ModelConfig, ReadsLlama) {
  const ModelConfig c = parsed(llama());
  EXPECT_EQ(c.architecture, "LlamaForCausalLM");
  EXPECT_EQ(c.vocab_size, 384U);
  EXPECT_EQ(c.head_dim, 64U) << "hidden_size / num_attention_heads";
  EXPECT_EQ(c.qkv_size(), 4 * 64U + 2 * 2 * 64U);
  EXPECT_EQ(c.norm_eps, 1e-5F);
  EXPECT_EQ(c.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(c.rope.theta, 500'000.0F);
  EXPECT_EQ(c.rope.original_max_positions, 64U);
  EXPECT_FALSE(c.qk_norm || c.qkv_bias || c.o_bias || c.mlp_bias || c.tie_embeddings);
  EXPECT_EQ(c.bos_token_id, 1U);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(2U));
}

TEST(ModelConfig, ReadsTheFormOfTransformers5) {
  const ModelConfig a = parsed(llama());
  const ModelConfig b = parsed(json::parse(kLlamaV5));
  EXPECT_EQ(a.rope.theta, b.rope.theta);
  EXPECT_EQ(a.rope.scaling, b.rope.scaling);
  EXPECT_EQ(a.rope.factor, b.rope.factor);
  EXPECT_EQ(a.rope.low_freq_factor, b.rope.low_freq_factor);
  EXPECT_EQ(a.rope.high_freq_factor, b.rope.high_freq_factor);
  EXPECT_EQ(a.rope.original_max_positions, b.rope.original_max_positions);
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.head_dim, b.head_dim);

  const ModelConfig qwen = parsed(json::parse(kQwen3V5));
  EXPECT_EQ(qwen.rope.theta, 1'000'000.0F);
  EXPECT_EQ(qwen.rope.scaling, RopeScaling::kNone);
  EXPECT_TRUE(qwen.qk_norm);
  EXPECT_TRUE(qwen.tie_embeddings);
}

TEST(ModelConfig, KnowsWhatArchitecturesFix) {
  json c = llama();
  c["attention_bias"] = true;
  c["mlp_bias"] = true;
  ModelConfig config = parsed(c);
  EXPECT_TRUE(config.qkv_bias && config.o_bias && config.mlp_bias);

  c["architectures"] = {"Qwen2ForCausalLM"};
  config = parsed(c);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(config.o_bias || config.mlp_bias || config.qk_norm) << "Qwen2 has no such options";

  c["architectures"] = {"Qwen3ForCausalLM"};
  config = parsed(c);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_EQ(config.head_dim, 128U) << "Qwen3's default, whatever hidden_size is";
}

TEST(ModelConfig, ReadsMistralsWindow) {
  json c = llama();
  c["architectures"] = {"MistralForCausalLM"};
  c["sliding_window"] = 32;
  ModelConfig config = parsed(c);
  ASSERT_EQ(config.layers.size(), 3U);
  EXPECT_EQ(config.layer(2).window, 32U);
  c["sliding_window"] = nullptr;
  EXPECT_EQ(parsed(c).layer(0).window, 0U);
  c.erase("sliding_window");
  EXPECT_EQ(parsed(c).layer(0).window, 4096U) << "the default of transformers";
  EXPECT_EQ(parsed(llama()).layer(2).window, 0U);
}

TEST(ModelConfig, ReadsWhichLayersHaveExperts) {
  json c = llama();
  c["architectures"] = {"Qwen3MoeForCausalLM"};
  c["num_hidden_layers"] = 6;
  c["num_experts"] = 8;
  c["num_experts_per_tok"] = 2;
  c["moe_intermediate_size"] = 96;
  ModelConfig config = parsed(c);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_EQ(config.experts.count, 8U);
  EXPECT_EQ(config.experts.chosen, 2U);
  EXPECT_EQ(config.experts.intermediate_size, 96U);
  EXPECT_FALSE(config.experts.normalize);
  auto with_experts = [&] {
    std::vector<int> layers;
    for (uint32_t i = 0; i < config.num_layers; ++i) {
      if (config.layer(i).experts) layers.push_back(static_cast<int>(i));
    }
    return layers;
  };
  EXPECT_THAT(with_experts(), ElementsAre(0, 1, 2, 3, 4, 5));
  c["norm_topk_prob"] = true;
  c["decoder_sparse_step"] = 2;
  c["mlp_only_layers"] = {3};
  config = parsed(c);
  EXPECT_TRUE(config.experts.normalize);
  EXPECT_THAT(with_experts(), ElementsAre(1, 5));
  c["num_experts_per_tok"] = 9;
  EXPECT_THAT(refused(c).message, HasSubstr("'num_experts_per_tok' must be a whole number from 1 to 8"));
}

TEST(ModelConfig, ReadsPhi3) {
  json c = llama();
  c["architectures"] = {"Phi3ForCausalLM"};
  c["rope_scaling"] = nullptr;
  c.erase("rms_norm_eps");
  ModelConfig config = parsed(c);
  EXPECT_TRUE(config.stored_fused);
  EXPECT_EQ(config.norm_eps, 1e-5F);
  EXPECT_EQ(config.layer(0).window, 0U);
  c["sliding_window"] = 2047;
  EXPECT_EQ(parsed(c).layer(2).window, 2047U);
}

TEST(ModelConfig, ReadsLongRope) {
  json c = llama();
  c["architectures"] = {"Phi3ForCausalLM"};
  c["head_dim"] = 8;
  c["max_position_embeddings"] = 4096;
  c["original_max_position_embeddings"] = 1024;
  c["partial_rotary_factor"] = 0.5;
  c["rope_scaling"] = {{"type", "longrope"}, {"short_factor", {1, 1.5}}, {"long_factor", {2, 3}}};
  ModelConfig config = parsed(c);
  EXPECT_EQ(config.rope.scaling, RopeScaling::kLongRope);
  EXPECT_EQ(config.rope.rotary_dim, 4U);
  EXPECT_EQ(config.long_rope_from(), 1024U);
  EXPECT_THAT(config.rope.short_factors, ElementsAre(1.0F, 1.5F));
  EXPECT_THAT(config.rope.long_factors, ElementsAre(2.0F, 3.0F));
  EXPECT_FLOAT_EQ(config.rope.attention_scale, std::sqrt(1.0F + std::log(4.0F) / std::log(1024.0F)));
  c["rope_scaling"]["attention_factor"] = 1.25;
  EXPECT_EQ(parsed(c).rope.attention_scale, 1.25F);
  c["max_position_embeddings"] = 1024;
  c["rope_scaling"].erase("attention_factor");
  EXPECT_EQ(parsed(c).rope.attention_scale, 1.0F);
  c["rope_scaling"]["long_factor"] = {2};
  EXPECT_THAT(refused(c).message, HasSubstr("'long_factor' must hold 2 numbers"));
  c["rope_scaling"]["long_factor"] = {2, 0};
  EXPECT_THAT(refused(c).message, HasSubstr("'long_factor' must hold numbers above 0"));
  c["partial_rotary_factor"] = 0.4;  // 3 of 8
  EXPECT_THAT(refused(c).message, HasSubstr("'partial_rotary_factor'"));

  // As transformers 5 writes it.
  c = llama();
  c["architectures"] = {"Phi3ForCausalLM"};
  c["head_dim"] = 4;
  c["max_position_embeddings"] = 4096;
  c["rope_parameters"] = {{"rope_type", "longrope"},
                          {"rope_theta", 5e4},
                          {"short_factor", {1, 1}},
                          {"long_factor", {2, 3}},
                          {"original_max_position_embeddings", 2048}};
  config = parsed(c);
  EXPECT_EQ(config.rope.theta, 5e4F);
  EXPECT_EQ(config.long_rope_from(), 2048U);
  EXPECT_FLOAT_EQ(config.rope.attention_scale, std::sqrt(1.0F + std::log(2.0F) / std::log(2048.0F)));
}

TEST(ModelConfig, ReadsGemma3) {
  json c = llama();
  c["architectures"] = {"Gemma3ForCausalLM"};
  c.erase("tie_word_embeddings");
  c.erase("rope_theta");
  c["num_hidden_layers"] = 7;
  c["hidden_act"] = "ignored";
  c["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8}};
  c["sliding_window"] = 32;
  c["query_pre_attn_scalar"] = 64;
  ModelConfig config = parsed(c);
  EXPECT_EQ(config.activation, Activation::kGeluTanh);
  EXPECT_EQ(config.head_dim, 256U);
  EXPECT_EQ(config.embedding_scale, 16.0F);
  EXPECT_EQ(config.score_scale(), 0.125F);
  EXPECT_TRUE(config.tie_embeddings && config.qk_norm && config.norm_plus_one && config.post_norms);
  EXPECT_EQ(config.rope.theta, 1e6F);
  EXPECT_EQ(config.rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(config.local_rope->theta, 1e4F);
  EXPECT_EQ(config.local_rope->scaling, RopeScaling::kNone);
  auto windows = [&] {
    std::vector<uint32_t> result;
    for (const LayerTraits& layer : config.layers) result.push_back(layer.window);
    return result;
  };
  EXPECT_THAT(windows(), ElementsAre(32, 32, 32, 32, 32, 0, 32)) << "every sixth layer is global";
  EXPECT_TRUE(config.uses_local_rope(0));
  EXPECT_FALSE(config.uses_local_rope(5));
  c["sliding_window_pattern"] = 2;
  config = parsed(c);
  EXPECT_THAT(windows(), ElementsAre(32, 0, 32, 0, 32, 0, 32));

  json listed = c;
  listed["num_hidden_layers"] = 2;
  listed["layer_types"] = {"full_attention", "sliding_attention"};
  config = parsed(listed);
  EXPECT_THAT(windows(), ElementsAre(0, 32));
  listed["layer_types"] = {"full_attention"};
  EXPECT_THAT(refused(listed).message, HasSubstr("'layer_types' must hold one type a layer"));
  listed["layer_types"] = {"full_attention", "chunked_attention"};
  EXPECT_THAT(refused(listed).message, HasSubstr("layer type 'chunked_attention' is not supported"));

  json v5 = c;  // as transformers 5 writes it
  v5.erase("rope_scaling");
  v5["rope_parameters"] = {{"full_attention", {{"rope_type", "linear"}, {"factor", 8}, {"rope_theta", 2e6}}},
                           {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 3e4}}}};
  config = parsed(v5);
  EXPECT_EQ(config.rope.theta, 2e6F);
  EXPECT_EQ(config.rope.factor, 8.0F);
  EXPECT_EQ(config.local_rope->theta, 3e4F);

  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    json capped = c;
    capped[key] = 30.0;
    EXPECT_THAT(refused(capped).message, HasSubstr(key));
  }
}

TEST(ModelConfig, ReadsRopeScalingKinds) {
  json c = llama();
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 4}};
  EXPECT_EQ(parsed(c).rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(parsed(c).rope.factor, 4.0F);
  c["rope_scaling"] = nullptr;
  EXPECT_EQ(parsed(c).rope.scaling, RopeScaling::kNone);
  c["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 4}};
  const Error error = refused(c);
  EXPECT_EQ(error.code, Code::kUnsupported);
  EXPECT_THAT(error.message, HasSubstr("'dynamic' is not supported; supported: default, linear, llama3"));
  c["rope_scaling"] = {{"factor", 4}};
  EXPECT_THAT(refused(c).message, HasSubstr("'rope_type' is missing"));
}

TEST(ModelConfig, TakesEosTokensFromGenerationConfigFirst) {
  EXPECT_THAT(parsed(llama(), R"({"eos_token_id": [7, 8, 9]})").eos_token_ids, ElementsAre(7U, 8U, 9U));
  EXPECT_THAT(parsed(llama(), R"({"temperature": 0.6})").eos_token_ids, ElementsAre(2U));
  json c = llama();
  c["eos_token_id"] = {2, 3};
  EXPECT_THAT(parsed(c).eos_token_ids, ElementsAre(2U, 3U));
  c.erase("eos_token_id");
  EXPECT_THAT(parsed(c).eos_token_ids, ElementsAre());
  EXPECT_THAT(refused(llama(), R"({"eos_token_id": 384})").message,
              HasSubstr("'eos_token_id' must be a token id below"));
  EXPECT_THAT(refused(llama(), "[]").message, HasSubstr("generation_config.json: not a JSON object"));
}

TEST(ModelConfig, RefusesByNameWhatWouldChangeTheResult) {
  const struct {
    const char* key;
    json value;
    const char* message;
  } cases[] = {
      {"architectures",
       {"MixtralForCausalLM"},
       "'MixtralForCausalLM' is not supported; supported: Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM"},
      {"quantization_config", {{"quant_method", "gptq"}}, "'quantization_config': quantised weights are not supported"},
      {"hidden_act", "gelu", "activation 'gelu' is not supported; supported: silu"},
      {"partial_rotary_factor", 0.5, "'partial_rotary_factor'"},
      {"layer_types", {"full_attention", "sliding_attention"}, "layer type 'sliding_attention' is not supported"},
  };
  for (const auto& c : cases) {
    json config = llama();
    config[c.key] = c.value;
    const Error error = refused(config);
    EXPECT_EQ(error.code, Code::kUnsupported) << c.key;
    EXPECT_THAT(error.message, HasSubstr(c.message));
    EXPECT_EQ(error.message.find('\n'), std::string::npos) << "one line";
  }
  json window = llama();
  window["use_sliding_window"] = true;
  window["sliding_window"] = 128;
  EXPECT_THAT(refused(window).message, HasSubstr("sliding-window attention"));
  window["sliding_window"] = 512;  // never narrower than the context
  parsed(window);
  window["use_sliding_window"] = false;
  window["sliding_window"] = 128;
  parsed(window);
}

TEST(ModelConfig, RefusesMissingAndWrongMembers) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "max_position_embeddings", "architectures"}) {
    json config = llama();
    config.erase(key);
    EXPECT_THAT(refused(config).message, HasSubstr(std::string("'") + key + "' is missing"));
  }
  for (const json& value : {json(0), json(-1), json("many"), json(1.5), json(1ULL << 40), json::array()}) {
    json config = llama();
    config["hidden_size"] = value;
    EXPECT_THAT(refused(config).message, HasSubstr("'hidden_size' must be a whole number from 1 to"));
  }
  json config = llama();
  config["num_key_value_heads"] = 3;
  EXPECT_THAT(refused(config).message, HasSubstr("is not a multiple of"));
  config = llama();
  for (const json& value : {json(0), json(-1), json(1e-60), json(1e60), json("small")}) {
    config["rms_norm_eps"] = value;
    EXPECT_THAT(refused(config).message, HasSubstr("'rms_norm_eps' must be a number above 0"));
  }
  EXPECT_THAT(parse_model_config({}).error().message, HasSubstr("config.json: empty"));
  EXPECT_THAT(parse_model_config("{").error().message, HasSubstr("not valid JSON"));
  EXPECT_THAT(parse_model_config(std::string(1000, '[')).error().message, HasSubstr("not valid JSON"));
}

TEST(ModelConfig, LoadsADirectory) {
  const TempDir dir;
  auto missing = load_model_config(dir.path());
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, Code::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("config.json"));

  std::ofstream(dir / "config.json") << llama();
  EXPECT_THAT(load_model_config(dir.path())->eos_token_ids, ElementsAre(2U));
  std::ofstream(dir / "generation_config.json") << R"({"eos_token_id": 5})";
  EXPECT_THAT(load_model_config(dir.path())->eos_token_ids, ElementsAre(5U));

  std::ofstream(dir / "hf_quant_config.json") << "{}";
  EXPECT_THAT(load_model_config(dir.path()).error().message, HasSubstr("hf_quant_config.json: quantised weights"));
}

}  // namespace
}  // namespace dyn::native
