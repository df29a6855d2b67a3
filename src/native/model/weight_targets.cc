#include "native/model/weight_targets.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace dyn::native {
namespace {

// "a.q_proj.weight" with its neighbours is "a.qkv_proj.weight", "a.gate_proj.weight" is "a.gate_up_proj.weight".
std::string name_of(const std::vector<WeightPart>& parts) {
  std::string name = parts.front().name;
  if (parts.size() == 1) return name;
  const bool qkv = parts.size() == 3;
  const std::string_view first = qkv ? "q_proj" : "gate_proj";
  return name.replace(name.rfind(first), first.size(), qkv ? "qkv_proj" : "gate_up_proj");
}

// The layout of a target's matrix in a model whose matrices are to have `layout`.
MatrixLayout layout_of(const WeightTarget& target, MatrixLayout layout) {
  if (target.read_by_row) return MatrixLayout::kRowMajor;
  return target.exact && layout == MatrixLayout::kPackedInt8 ? MatrixLayout::kPackedBf16 : layout;
}

}  // namespace

std::vector<WeightTarget> weight_targets(const ModelConfig& config, Weights& weights) {
  const uint64_t hidden = config.hidden_size;
  const uint64_t q = config.q_size();
  const uint64_t kv = config.kv_size();
  const uint64_t inner = config.intermediate_size;
  std::vector<WeightTarget> targets;
  auto matrix = [&](Matrix& to, uint64_t cols, std::vector<WeightPart> parts) {
    targets.push_back({.name = name_of(parts), .matrix = &to, .cols = cols, .parts = std::move(parts)});
  };
  auto vector = [&](Vector& to, std::vector<WeightPart> parts) {
    targets.push_back({.name = name_of(parts), .vector = &to, .parts = std::move(parts)});
  };

  auto norm = [&](Vector& to, std::string name, uint64_t size) {
    vector(to, {{std::move(name), size}});
    if (config.norm_plus_one) targets.back().offset = 1.0F;
  };

  matrix(weights.embedding, hidden, {{"model.embed_tokens.weight", config.vocab_size}});
  targets.back().read_by_row = !config.tie_embeddings;
  weights.layers.resize(config.num_layers);
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::string at = fmt::format("model.layers.{}.", i);
    const std::string attention = at + "self_attn.";
    const std::string mlp = at + "mlp.";
    auto qkv = [&](const char* kind) {
      if (config.stored_fused) return std::vector<WeightPart>{{attention + "qkv_proj." + kind, q + 2 * kv}};
      return std::vector<WeightPart>{
          {attention + "q_proj." + kind, q}, {attention + "k_proj." + kind, kv}, {attention + "v_proj." + kind, kv}};
    };
    auto gate_up = [&](const char* kind) {
      if (config.stored_fused) return std::vector<WeightPart>{{mlp + "gate_up_proj." + kind, 2 * inner}};
      return std::vector<WeightPart>{{mlp + "gate_proj." + kind, inner}, {mlp + "up_proj." + kind, inner}};
    };
    norm(layer.attention_norm, at + "input_layernorm.weight", hidden);
    matrix(layer.qkv, hidden, qkv("weight"));
    if (config.qkv_bias) vector(layer.qkv_bias, qkv("bias"));
    if (config.qk_norm) norm(layer.q_norm, attention + "q_norm.weight", config.head_dim);
    if (config.qk_norm) norm(layer.k_norm, attention + "k_norm.weight", config.head_dim);
    matrix(layer.o, q, {{attention + "o_proj.weight", hidden}});
    if (config.o_bias) vector(layer.o_bias, {{attention + "o_proj.bias", hidden}});
    if (config.post_norms) {
      norm(layer.post_attention_norm, at + "post_attention_layernorm.weight", hidden);
      norm(layer.mlp_norm, at + "pre_feedforward_layernorm.weight", hidden);
      norm(layer.post_mlp_norm, at + "post_feedforward_layernorm.weight", hidden);
    } else {
      norm(layer.mlp_norm, at + "post_attention_layernorm.weight", hidden);
    }
    if (config.layer(i).experts) {
      const uint64_t size = config.experts.intermediate_size;
      matrix(layer.router, hidden, {{mlp + "gate.weight", config.experts.count}});
      targets.back().exact = true;
      layer.experts.resize(config.experts.count);
      for (size_t e = 0; e < layer.experts.size(); ++e) {
        const std::string expert = fmt::format("{}experts.{}.", mlp, e);
        matrix(layer.experts[e].gate_up, hidden,
               {{expert + "gate_proj.weight", size}, {expert + "up_proj.weight", size}});
        matrix(layer.experts[e].down, size, {{expert + "down_proj.weight", hidden}});
      }
      continue;
    }
    matrix(layer.gate_up, hidden, gate_up("weight"));
    if (config.mlp_bias) vector(layer.gate_up_bias, gate_up("bias"));
    matrix(layer.down, inner, {{mlp + "down_proj.weight", hidden}});
    if (config.mlp_bias) vector(layer.down_bias, {{mlp + "down_proj.bias", hidden}});
  }
  norm(weights.final_norm, "model.norm.weight", hidden);
  if (!config.tie_embeddings) matrix(weights.lm_head, hidden, {{"lm_head.weight", config.vocab_size}});
  return targets;
}

WeightPlaces lay_out_weights(const std::vector<WeightTarget>& targets, DataType type, MatrixLayout layout,
                             Weights& weights) {
  const bool possible = std::ranges::all_of(targets, [&](const WeightTarget& target) {
    return target.matrix == nullptr || can_have(layout, type, target.cols);
  });
  weights.layout = possible ? layout : MatrixLayout::kRowMajor;
  WeightPlaces places;
  for (const WeightTarget& target : targets) {
    if (target.matrix != nullptr) {
      *target.matrix = {.layout = layout_of(target, weights.layout),
                        .type = type,
                        .rows = static_cast<uint32_t>(target.rows()),
                        .cols = static_cast<uint32_t>(target.cols)};
    }
    places.offsets.push_back(places.bytes);
    places.bytes += (target.bytes() + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
  }
  return places;
}

void point_weights(const std::vector<WeightTarget>& targets, const WeightPlaces& places, const std::byte* memory) {
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::byte* at = memory + places.offsets[i];
    if (targets[i].matrix != nullptr) {
      targets[i].matrix->data = at;
    } else {
      *targets[i].vector = reinterpret_cast<const float*>(at);
    }
  }
}

}  // namespace dyn::native
