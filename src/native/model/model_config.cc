#include "native/model/model_config.h"

#include <fmt/format.h>
#include <simdjson.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "native/model/model_dir.h"

namespace dyn::native {
namespace {

namespace dom = simdjson::dom;

constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr size_t kMaxConfigDepth = 64;
// No size in a configuration may exceed this: products of three of them fit 64 bits.
constexpr uint64_t kMaxDimension = 1u << 21;
constexpr uint64_t kMaxLayers = 4096;
constexpr uint64_t kMaxExperts = 1024;
constexpr uint64_t kMaxPositions = 1u << 30;
constexpr size_t kMaxEosTokens = 1024;

// What an architecture fixes, or leaves to config.json with this default.
struct Architecture {
  std::string_view name;
  bool qk_norm = false;
  bool attention_bias_option = false;  // "attention_bias" switches the biases of q, k, v and o
  bool qkv_bias = false;               // always, without one on o
  bool mlp_bias_option = false;        // "mlp_bias" switches the biases of gate, up and down
  uint32_t default_head_dim = 0;       // 0: hidden_size / num_attention_heads
  uint32_t default_kv_heads = 0;       // 0: as many as query heads
  bool experts = false;                // "num_experts" and its like
  bool window = false;                 // "sliding_window" holds in every layer
  uint32_t default_window = 0;         // when config.json does not name it; null means none
  bool gemma = false;                  // norms, scales and layers of two kinds as in Gemma 3
  double default_theta = 10'000.0;
  std::string_view activation_key = "hidden_act";
  std::string_view default_activation = "silu";
  bool default_tied = false;
  bool stored_fused = false;
  bool partial_rotary = false;  // "partial_rotary_factor" is obeyed
  double default_norm_eps = 1e-6;
};

constexpr std::array kArchitectures = {
    Architecture{.name = "Gemma3ForCausalLM",
                 .qk_norm = true,
                 .attention_bias_option = true,
                 .default_head_dim = 256,
                 .default_kv_heads = 4,
                 .default_window = 4096,
                 .gemma = true,
                 .default_theta = 1e6,
                 .activation_key = "hidden_activation",
                 .default_activation = "gelu_pytorch_tanh",
                 .default_tied = true},
    Architecture{.name = "LlamaForCausalLM", .attention_bias_option = true, .mlp_bias_option = true},
    Architecture{.name = "MistralForCausalLM", .default_kv_heads = 8, .window = true, .default_window = 4096},
    Architecture{.name = "Phi3ForCausalLM",
                 .window = true,
                 .stored_fused = true,
                 .partial_rotary = true,
                 .default_norm_eps = 1e-5},
    Architecture{.name = "Qwen2ForCausalLM", .qkv_bias = true},
    Architecture{.name = "Qwen3ForCausalLM", .qk_norm = true, .attention_bias_option = true, .default_head_dim = 128},
    Architecture{.name = "Qwen3MoeForCausalLM",
                 .qk_norm = true,
                 .attention_bias_option = true,
                 .default_kv_heads = 4,
                 .experts = true},
};

// Stays inside this file: parse_model_config() turns it into an Error.
struct Refused : std::runtime_error {
  Refused(Code code_, const std::string& message) : std::runtime_error(message), code(code_) {}
  Code code;
};

[[noreturn]] void wrong(const std::string& message) {
  throw Refused(Code::kInvalidArgument, message);
}
[[noreturn]] void not_supported(const std::string& message) {
  throw Refused(Code::kUnsupported, message);
}

// Typed access to the members of an object. An absent member and null are the same.
class Members {
 public:
  Members(dom::object object, std::string where) : object_(object), where_(std::move(where)) {}

  [[nodiscard]] bool has(std::string_view key) const { return find(key).has_value(); }
  // Unlike has(), also true of null.
  [[nodiscard]] bool names(std::string_view key) const { return object_.at_key(key).error() == simdjson::SUCCESS; }

  [[nodiscard]] std::optional<dom::element> find(std::string_view key) const {
    dom::element value;
    if (object_.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
    return value;
  }

  [[nodiscard]] uint32_t size(std::string_view key, std::optional<uint64_t> fallback, uint64_t limit) const {
    auto value = find(key);
    if (!value) {
      if (!fallback) wrong(fmt::format("{}: '{}' is missing", where_, key));
      return static_cast<uint32_t>(*fallback);
    }
    uint64_t number = 0;
    if (value->get(number) != simdjson::SUCCESS || number == 0 || number > limit) {
      wrong(fmt::format("{}: '{}' must be a whole number from 1 to {}", where_, key, limit));
    }
    return static_cast<uint32_t>(number);
  }

  [[nodiscard]] float real(std::string_view key, std::optional<double> fallback) const {
    auto value = find(key);
    if (!value) {
      if (!fallback) wrong(fmt::format("{}: '{}' is missing", where_, key));
      return static_cast<float>(*fallback);
    }
    double number = 0;
    const bool is_number = value->get(number) == simdjson::SUCCESS;
    const auto rounded = static_cast<float>(number);  // of a tiny number 0, of a huge one infinity
    if (!is_number || !(rounded > 0) || !std::isfinite(rounded)) {
      wrong(fmt::format("{}: '{}' must be a number above 0", where_, key));
    }
    return rounded;
  }

  [[nodiscard]] bool flag(std::string_view key, bool fallback) const {
    auto value = find(key);
    if (!value) return fallback;
    bool result = false;
    if (value->get(result) != simdjson::SUCCESS) wrong(fmt::format("{}: '{}' must be true or false", where_, key));
    return result;
  }

  [[nodiscard]] std::optional<std::string> text(std::string_view key) const {
    auto value = find(key);
    if (!value) return std::nullopt;
    std::string_view result;
    if (value->get(result) != simdjson::SUCCESS) wrong(fmt::format("{}: '{}' must be a string", where_, key));
    return std::string(result);
  }

  [[nodiscard]] std::optional<Members> object(std::string_view key) const {
    auto value = find(key);
    if (!value) return std::nullopt;
    dom::object result;
    if (value->get(result) != simdjson::SUCCESS) wrong(fmt::format("{}: '{}' must be an object", where_, key));
    return Members(result, fmt::format("{}: {}", where_, key));
  }

  [[nodiscard]] std::vector<dom::element> list(std::string_view key, size_t limit) const {
    auto value = find(key);
    dom::array items;
    if (value->get(items) != simdjson::SUCCESS) wrong(fmt::format("{}: '{}' must be a list", where_, key));
    if (items.size() > limit) wrong(fmt::format("{}: '{}' has more than {} items", where_, key, limit));
    return {items.begin(), items.end()};
  }

  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  dom::object object_;
  std::string where_;
};

Members parse_object(dom::parser& parser, std::string_view text, const std::string& where) {
  if (text.empty()) wrong(fmt::format("{}: empty", where));  // simdjson copies from its null pointer
  if (text.size() > kMaxConfigBytes) wrong(fmt::format("{}: larger than {} bytes", where, kMaxConfigBytes));
  if (auto error = parser.allocate(text.size(), kMaxConfigDepth))
    wrong(fmt::format("{}: {}", where, error_message(error)));
  dom::element root;
  if (auto error = parser.parse(text.data(), text.size()).get(root)) {
    wrong(fmt::format("{}: not valid JSON: {}", where, error_message(error)));
  }
  dom::object object;
  if (root.get(object) != simdjson::SUCCESS) wrong(fmt::format("{}: not a JSON object", where));
  return {object, where};
}

llm::TokenId token_id(dom::element value, std::string_view key, uint32_t vocab_size) {
  uint64_t id = 0;
  if (value.get(id) != simdjson::SUCCESS || id >= vocab_size) {
    wrong(fmt::format("'{}' must be a token id below vocab_size ({})", key, vocab_size));
  }
  return static_cast<llm::TokenId>(id);
}

std::vector<llm::TokenId> token_ids(const Members& members, std::string_view key, uint32_t vocab_size) {
  auto value = members.find(key);
  if (!value) return {};
  if (!value->is_array()) return {token_id(*value, key, vocab_size)};
  std::vector<llm::TokenId> ids;
  for (dom::element item : members.list(key, kMaxEosTokens)) ids.push_back(token_id(item, key, vocab_size));
  return ids;
}

const Architecture& architecture_of(const Members& config) {
  if (!config.has("architectures")) wrong(fmt::format("{}: 'architectures' is missing", config.where()));
  auto names = config.list("architectures", 16);
  std::string_view name;
  if (names.size() != 1 || names[0].get(name) != simdjson::SUCCESS) {
    wrong(fmt::format("{}: 'architectures' must be a list of one name", config.where()));
  }
  for (const Architecture& known : kArchitectures) {
    if (known.name == name) return known;
  }
  not_supported(fmt::format("architecture '{}' is not supported; supported: {}", name, supported_architectures()));
}

std::vector<float> parse_factors(const Members& scaling, std::string_view key, uint32_t count) {
  std::vector<float> factors;
  for (dom::element item : scaling.list(key, count)) {
    double factor = 0;
    if (item.get(factor) != simdjson::SUCCESS || !(factor > 0)) {
      wrong(fmt::format("{}: '{}' must hold numbers above 0", scaling.where(), key));
    }
    factors.push_back(static_cast<float>(factor));
  }
  if (factors.size() != count) wrong(fmt::format("{}: '{}' must hold {} numbers", scaling.where(), key, count));
  return factors;
}

// The lengths are in config.json itself, or since transformers 5 beside the factors.
void parse_long_rope(const Members& config, const Members& scaling, uint32_t head_dim, Rope& rope) {
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  const uint32_t max_positions = config.size("max_position_embeddings", std::nullopt, kMaxPositions);
  const Members& place = config.has(kOriginal) ? config : scaling;
  rope.scaling = RopeScaling::kLongRope;
  rope.original_max_positions = place.size(kOriginal, max_positions, kMaxPositions);
  const uint32_t pairs = (rope.rotary_dim != 0 ? rope.rotary_dim : head_dim) / 2;
  rope.short_factors = parse_factors(scaling, "short_factor", pairs);
  rope.long_factors = parse_factors(scaling, "long_factor", pairs);
  const double stretch = place.has(kOriginal) ? static_cast<double>(max_positions) / rope.original_max_positions
                                              : static_cast<double>(scaling.real("factor", 1.0));
  const double scale =
      stretch > 1.0 ? std::sqrt(1.0 + std::log(stretch) / std::log(static_cast<double>(rope.original_max_positions)))
                    : 1.0;
  rope.attention_scale = scaling.real("attention_factor", scale);
}

// "rope_scaling" (type or rope_type) beside "rope_theta", or since transformers 5 all of it in "rope_parameters", for
// each type of layer apart where there are two.
Rope parse_rope(const Members& config, const Architecture& architecture, uint32_t head_dim) {
  Rope rope;
  auto parameters = config.object("rope_parameters");
  if (architecture.gemma && parameters && parameters->has("full_attention")) {
    parameters = parameters->object("full_attention");
  }
  auto scaling = parameters ? parameters : config.object("rope_scaling");
  const Members& theta_place = parameters && parameters->has("rope_theta") ? *parameters : config;
  rope.theta = theta_place.real("rope_theta", architecture.default_theta);
  for (const Members* place : {&config, scaling ? &*scaling : &config}) {
    const float share = place->real("partial_rotary_factor", 1.0);
    if (share != 1.0F && architecture.partial_rotary) {
      rope.rotary_dim = static_cast<uint32_t>(static_cast<float>(head_dim) * share);
      if (!(share > 0 && share < 1) || rope.rotary_dim % 2 != 0 || rope.rotary_dim == 0) {
        wrong(fmt::format("{}: 'partial_rotary_factor' {} of heads of {}", place->where(), share, head_dim));
      }
    } else if (share != 1.0F) {
      not_supported(fmt::format("{}: 'partial_rotary_factor' other than 1 is not supported", place->where()));
    }
  }
  if (!scaling) return rope;

  auto type = scaling->text("rope_type");
  if (!type) type = scaling->text("type");
  if (!type) {
    if (parameters) not_supported(fmt::format("{}: one 'rope_type' for all layers is supported", scaling->where()));
    wrong(fmt::format("{}: 'rope_type' is missing", scaling->where()));
  }
  if (*type == "default") return rope;
  if (*type == "linear") {
    rope.scaling = RopeScaling::kLinear;
    rope.factor = scaling->real("factor", std::nullopt);
    return rope;
  }
  if (*type == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    rope.factor = scaling->real("factor", std::nullopt);
    rope.low_freq_factor = scaling->real("low_freq_factor", std::nullopt);
    rope.high_freq_factor = scaling->real("high_freq_factor", std::nullopt);
    rope.original_max_positions = scaling->size("original_max_position_embeddings", std::nullopt, kMaxPositions);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      wrong(fmt::format("{}: 'high_freq_factor' must be above 'low_freq_factor'", scaling->where()));
    }
    return rope;
  }
  if (*type == "longrope") {
    parse_long_rope(config, *scaling, head_dim, rope);
    return rope;
  }
  not_supported(fmt::format("{}: rope type '{}' is not supported; supported: default, linear, llama3, longrope",
                            scaling->where(), *type));
}

// The window of an architecture that has one in every layer; 0: none.
uint32_t parse_window(const Members& config, const Architecture& architecture) {
  if (!config.names("sliding_window")) return architecture.default_window;
  return config.has("sliding_window") ? config.size("sliding_window", std::nullopt, kMaxPositions) : 0;
}

Activation parse_activation(const Members& config, const Architecture& architecture) {
  const std::string name =
      config.text(architecture.activation_key).value_or(std::string(architecture.default_activation));
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  not_supported(fmt::format("config.json: activation '{}' is not supported; supported: silu, gelu_pytorch_tanh", name));
}

// Layers with a window, and between them some without: listed, or every "sliding_window_pattern"-th.
void parse_layer_types(const Members& config, uint32_t window, ModelConfig& out) {
  if (window == 0) wrong("config.json: 'sliding_window' is missing");
  out.layers.resize(out.num_layers);
  if (!config.has("layer_types")) {
    const uint32_t pattern = config.size("sliding_window_pattern", 6, kMaxLayers);
    for (uint32_t i = 0; i < out.num_layers; ++i) out.layers[i].window = (i + 1) % pattern == 0 ? 0 : window;
    return;
  }
  const auto types = config.list("layer_types", kMaxLayers);
  if (types.size() != out.num_layers) wrong("config.json: 'layer_types' must hold one type a layer");
  for (uint32_t i = 0; i < out.num_layers; ++i) {
    std::string_view type;
    if (types[i].get(type) != simdjson::SUCCESS) wrong("'layer_types' must hold strings");
    if (type != "full_attention" && type != "sliding_attention") {
      not_supported(
          fmt::format("layer type '{}' is not supported; supported: full_attention, sliding_attention", type));
    }
    if (type == "sliding_attention") out.layers[i].window = window;
  }
}

// What Gemma 3 has and others have not.
void parse_gemma(const Members& config, const Architecture& architecture, ModelConfig& out) {
  for (const char* cap : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (config.has(cap)) not_supported(fmt::format("config.json: '{}' is not supported", cap));
  }
  if (config.flag("use_bidirectional_attention", false)) {
    not_supported("config.json: 'use_bidirectional_attention' is not supported");
  }
  parse_layer_types(config, parse_window(config, architecture), out);
  out.local_rope.emplace();
  const auto parameters = config.object("rope_parameters");
  const auto local = parameters ? parameters->object("sliding_attention") : std::nullopt;
  out.local_rope->theta = local ? local->real("rope_theta", 1e4) : config.real("rope_local_base_freq", 1e4);
  if (local && local->text("rope_type").value_or("default") != "default") {
    not_supported(fmt::format("{}: only rope type 'default' is supported", local->where()));
  }
  out.embedding_scale = std::sqrt(static_cast<float>(out.hidden_size));
  out.query_scalar = config.size("query_pre_attn_scalar", 256, kMaxDimension);
  out.norm_plus_one = true;
  out.post_norms = true;
}

void refuse_sliding_window(const Members& config, uint32_t max_positions) {
  if (config.has("layer_types")) {
    for (dom::element item : config.list("layer_types", kMaxLayers)) {
      std::string_view type;
      if (item.get(type) != simdjson::SUCCESS) wrong("'layer_types' must hold strings");
      if (type != "full_attention") {
        not_supported(fmt::format("layer type '{}' is not supported; supported: full_attention", type));
      }
    }
  }
  if (!config.flag("use_sliding_window", false)) return;
  if (config.has("sliding_window") && config.size("sliding_window", std::nullopt, kMaxPositions) < max_positions) {
    not_supported("sliding-window attention ('use_sliding_window') is not supported; supported: full attention");
  }
}

// Every "decoder_sparse_step"-th layer has experts, but not those in "mlp_only_layers".
void parse_experts(const Members& config, ModelConfig& out) {
  out.experts.count = config.size("num_experts", std::nullopt, kMaxExperts);
  out.experts.chosen = config.size("num_experts_per_tok", std::nullopt, out.experts.count);
  out.experts.intermediate_size = config.size("moe_intermediate_size", std::nullopt, kMaxDimension);
  out.experts.normalize = config.flag("norm_topk_prob", false);
  const uint32_t step = config.size("decoder_sparse_step", 1, kMaxLayers);
  out.layers.resize(out.num_layers);
  for (uint32_t i = 0; i < out.num_layers; ++i) out.layers[i].experts = (i + 1) % step == 0;
  if (!config.has("mlp_only_layers")) return;
  for (dom::element item : config.list("mlp_only_layers", kMaxLayers)) {
    uint64_t index = 0;
    if (item.get(index) != simdjson::SUCCESS) wrong("config.json: 'mlp_only_layers' must hold numbers of layers");
    if (index < out.num_layers) out.layers[index].experts = false;
  }
}

ModelConfig parse(std::string_view config_json, std::string_view generation_config_json) {
  dom::parser parser;
  const Members config = parse_object(parser, config_json, "config.json");
  const Architecture& architecture = architecture_of(config);
  if (config.has("quantization_config")) {
    not_supported("config.json: 'quantization_config': quantised weights are not supported; supported: BF16, F16, F32");
  }

  ModelConfig out;
  out.architecture = architecture.name;
  out.vocab_size = config.size("vocab_size", std::nullopt, kMaxDimension);
  out.hidden_size = config.size("hidden_size", std::nullopt, kMaxDimension);
  out.intermediate_size = config.size("intermediate_size", std::nullopt, kMaxDimension);
  out.num_layers = config.size("num_hidden_layers", std::nullopt, kMaxLayers);
  out.num_heads = config.size("num_attention_heads", std::nullopt, 4096);
  out.num_kv_heads = config.size(
      "num_key_value_heads", architecture.default_kv_heads != 0 ? architecture.default_kv_heads : out.num_heads, 4096);
  if (out.num_heads % out.num_kv_heads != 0) {
    wrong(fmt::format("config.json: 'num_attention_heads' ({}) is not a multiple of 'num_key_value_heads' ({})",
                      out.num_heads, out.num_kv_heads));
  }
  uint32_t default_head_dim = architecture.default_head_dim;
  if (default_head_dim == 0) {
    if (!config.has("head_dim") && out.hidden_size % out.num_heads != 0) {
      wrong("config.json: 'head_dim' is missing and 'hidden_size' is not a multiple of 'num_attention_heads'");
    }
    default_head_dim = out.hidden_size / out.num_heads;
  }
  out.head_dim = config.size("head_dim", default_head_dim, 4096);
  if (out.head_dim % 2 != 0) wrong("config.json: 'head_dim' must be even");
  out.max_positions = config.size("max_position_embeddings", std::nullopt, kMaxPositions);
  out.norm_eps = config.real("rms_norm_eps", architecture.default_norm_eps);

  out.activation = parse_activation(config, architecture);
  out.rope = parse_rope(config, architecture, out.head_dim);
  if (architecture.gemma) {
    parse_gemma(config, architecture, out);
  } else if (architecture.window) {
    out.layers.assign(out.num_layers, {.window = parse_window(config, architecture)});
  } else {
    refuse_sliding_window(config, out.max_positions);
  }
  if (architecture.experts) parse_experts(config, out);

  const bool attention_bias = config.flag("attention_bias", false);
  const bool mlp_bias = config.flag("mlp_bias", false);
  out.qk_norm = architecture.qk_norm;
  out.stored_fused = architecture.stored_fused;
  out.qkv_bias = architecture.qkv_bias || (architecture.attention_bias_option && attention_bias);
  out.o_bias = architecture.attention_bias_option && attention_bias;
  out.mlp_bias = architecture.mlp_bias_option && mlp_bias;
  out.tie_embeddings = config.flag("tie_word_embeddings", architecture.default_tied);

  out.eos_token_ids = token_ids(config, "eos_token_id", out.vocab_size);
  if (auto bos = token_ids(config, "bos_token_id", out.vocab_size); !bos.empty()) out.bos_token_id = bos.front();
  if (!generation_config_json.empty()) {
    dom::parser generation_parser;
    const Members generation = parse_object(generation_parser, generation_config_json, "generation_config.json");
    if (auto eos = token_ids(generation, "eos_token_id", out.vocab_size); !eos.empty())
      out.eos_token_ids = std::move(eos);
    if (auto bos = token_ids(generation, "bos_token_id", out.vocab_size); !bos.empty()) out.bos_token_id = bos.front();
  }
  return out;
}

bool exists(const std::string& path) {
  struct stat info{};
  return ::stat(path.c_str(), &info) == 0;
}

}  // namespace

uint32_t ModelConfig::window() const {
  uint32_t most = 0;
  for (const LayerTraits& traits : layers) {
    if (traits.window == 0) return 0;
    most = std::max(most, traits.window);
  }
  return most;
}

float ModelConfig::score_scale() const {
  return 1.0F / std::sqrt(static_cast<float>(query_scalar != 0 ? query_scalar : head_dim));
}

std::string supported_architectures() {
  std::string names;
  for (const Architecture& known : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += known.name;
  }
  return names;
}

Result<ModelConfig> parse_model_config(std::string_view config_json, std::string_view generation_config_json) {
  try {
    return parse(config_json, generation_config_json);
  } catch (const Refused& refused) {
    return Error{refused.code, refused.what()};
  } catch (const std::exception& failure) {
    return invalid_argument(fmt::format("config.json: {}", failure.what()));
  }
}

Result<ModelConfig> load_model_config(const std::string& directory) {
  if (exists(directory + "/hf_quant_config.json")) {
    return unsupported(directory +
                       ": hf_quant_config.json: quantised weights are not supported; supported: BF16, F16, F32");
  }
  auto config = read_model_file(directory + "/config.json", kMaxConfigBytes);
  if (!config) return config.error();
  std::string generation;
  if (const std::string path = directory + "/generation_config.json"; exists(path)) {
    auto text = read_model_file(path, kMaxConfigBytes);
    if (!text) return text.error();
    generation = std::move(*text);
  }
  auto parsed = parse_model_config(*config, generation);
  if (!parsed) return parsed.error().with_context(directory);
  return parsed;
}

}  // namespace dyn::native
