// ModelConfig: what a decoder is made of, read from a Hugging Face model directory. One decoder described by traits,
// not one class per architecture: a new architecture is a line in the table of model_config.cc.
//
//   auto config = load_model_config("/models/Qwen3-0.6B");
//   if (!config) return config.error();    // one line: which member, what is supported
//   config->head_dim; config->eos_token_ids;
//
// Both spellings of config.json are read: that of published checkpoints (rope_theta, rope_scaling, torch_dtype) and
// that of transformers 5 (rope_parameters, dtype). What would change the result and is not implemented (other rope
// kinds, a sliding window of Qwen, quantised weights, another activation) is refused by name. Plain value; no thread
// rules. Source of names and defaults: transformers 4.57 and 5,
// models/{gemma3,llama,mistral,phi3,qwen2,qwen3,qwen3_moe}/configuration_*.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "llm/tokens.h"

namespace dyn::native {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3, kLongRope };

// Rotary embedding of the first rotary_dim elements of a head, their first half paired with their second half.
struct Rope {
  float theta = 10'000.0F;
  RopeScaling scaling = RopeScaling::kNone;
  float factor = 1.0F;                  // kLinear, kLlama3
  float low_freq_factor = 1.0F;         // kLlama3
  float high_freq_factor = 4.0F;        // kLlama3
  uint32_t original_max_positions = 0;  // kLlama3; kLongRope: longer sequences take the long factors
  uint32_t rotary_dim = 0;              // 0: the whole head
  float attention_scale = 1.0F;         // kLongRope: sines and cosines are multiplied with it
  std::vector<float> short_factors;     // kLongRope: [rotary_dim / 2] waves are stretched by them
  std::vector<float> long_factors;
};

enum class Activation : uint8_t { kSilu, kGeluTanh };

// What differs from layer to layer.
struct LayerTraits {
  uint32_t window = 0;   // positions a token sees, itself included; 0: all before it
  bool experts = false;  // a mixture of experts instead of one feed-forward network
};

// A mixture of experts.
struct ExpertTraits {
  uint32_t count = 0;   // 0: the model has none
  uint32_t chosen = 0;  // experts of a token
  uint32_t intermediate_size = 0;
  bool normalize = false;  // the chosen ones' probabilities are brought to a sum of 1
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"

  uint32_t vocab_size = 0;
  uint32_t hidden_size = 0;
  uint32_t intermediate_size = 0;
  uint32_t num_layers = 0;
  uint32_t num_heads = 0;
  uint32_t num_kv_heads = 0;  // divides num_heads
  uint32_t head_dim = 0;
  uint32_t max_positions = 0;  // context length the model was made for

  float norm_eps = 1e-6F;
  Activation activation = Activation::kSilu;
  Rope rope;
  std::optional<Rope> local_rope;   // of layers with a window, where theirs is another one
  std::vector<LayerTraits> layers;  // [num_layers]; empty: every layer has the defaults

  ExpertTraits experts;

  float embedding_scale = 1.0F;  // embeddings are multiplied with it
  uint32_t query_scalar = 0;     // scores are divided by its square root; 0: head_dim
  bool norm_plus_one = false;    // norms multiply with 1 + weight
  bool post_norms = false;       // also the outputs of attention and feed-forward network are normed
  bool qk_norm = false;          // RMS norm of each query and key head before rotary embedding
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;        // gate, up and down
  bool stored_fused = false;    // checkpoints hold qkv_proj and gate_up_proj instead of their parts
  bool tie_embeddings = false;  // the LM head is the embedding

  std::optional<llm::TokenId> bos_token_id;
  std::vector<llm::TokenId> eos_token_ids;  // generation_config.json's, else config.json's; may be empty

  [[nodiscard]] LayerTraits layer(uint32_t index) const { return layers.empty() ? LayerTraits{} : layers[index]; }
  [[nodiscard]] bool uses_local_rope(uint32_t index) const {
    return local_rope.has_value() && layer(index).window != 0;
  }
  // How far back any layer looks, the token itself included; 0: to the start of the sequence.
  [[nodiscard]] uint32_t window() const;
  // A longer sequence takes the long variant of its rotary angles, all of it; 0: there is none.
  [[nodiscard]] uint32_t long_rope_from() const {
    return rope.scaling == RopeScaling::kLongRope ? rope.original_max_positions : 0;
  }
  // What scores of queries and keys are multiplied with.
  [[nodiscard]] float score_scale() const;
  [[nodiscard]] uint32_t q_size() const { return num_heads * head_dim; }
  [[nodiscard]] uint32_t kv_size() const { return num_kv_heads * head_dim; }
  [[nodiscard]] uint32_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

// Texts of config.json and, when not empty, of generation_config.json.
Result<ModelConfig> parse_model_config(std::string_view config_json, std::string_view generation_config_json = {});

// Reads both files of a model directory; also refuses directories with hf_quant_config.json.
Result<ModelConfig> load_model_config(const std::string& directory);

// "LlamaForCausalLM, Qwen2ForCausalLM, ...", for messages and documentation.
std::string supported_architectures();

}  // namespace dyn::native
