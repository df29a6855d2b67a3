#include "native/exec/cuda/module/forward.h"

#include <algorithm>
#include <cmath>

namespace dyn::native::cuda {
namespace {

template <class T>
DeviceMemory<T> copied(const T* from, size_t count, const char* what) {
  auto memory = DeviceMemory<T>::allocate(count, what);
  if (count > 0) check(cudaMemcpy(memory.data(), from, memory.bytes(), cudaMemcpyHostToDevice), what);
  return memory;
}

template <class T>
DeviceMemory<T> cleared(size_t count, const char* what) {
  auto memory = DeviceMemory<T>::allocate(count, what);
  if (count > 0) check(cudaMemset(memory.data(), 0, memory.bytes()), what);
  return memory;
}

}  // namespace

Forward::Forward(const ModelSpec& model, const StepLimits& limits, const std::byte* weights, uint32_t multiprocessors,
                 cudaStream_t stream)
    : model_(model),
      layers_(model.layers, model.layers + model.num_layers),
      limits_(limits),
      weights_(weights),
      multiprocessors_(multiprocessors),
      activation_(model.gelu != 0 ? GatedActivation::kGeluTanh : GatedActivation::kSilu),
      qkv_size_((model.num_heads + 2 * model.num_kv_heads) * model.head_dim),
      q_size_(model.num_heads * model.head_dim) {
  const size_t tokens = limits.max_num_tokens;
  const size_t batch = limits.max_batch_size;
  const size_t hidden = model.hidden_size;
  check(linear_.init(), "cuBLASLt");
  for (uint32_t i = 0; i < model.num_ropes; ++i) {
    const RopeSpec& from = model.ropes[i];
    Rope& rope = ropes_.emplace_back();
    const uint32_t half = from.half;
    rope.half = half;
    rope.frequencies = copied(from.frequencies, half, "rotary frequencies");
    if (from.long_frequencies != nullptr)
      rope.long_frequencies = copied(from.long_frequencies, half, "rotary frequencies");
    rope.factor = from.factor;
    rope.angles = DeviceMemory<float>::allocate(tokens * 2 * half, "rotary angles");
  }

  bool post_norms = false;
  bool experts = false;
  bool dense = false;
  for (const LayerSpec& layer : layers_) {
    post_norms |= layer.post_attention_norm != kNoTensor || layer.post_mlp_norm != kNoTensor;
    experts |= layer.router != kNoTensor;
    dense |= layer.router == kNoTensor;
  }
  const uint32_t inner = dense ? model.intermediate_size : 0;
  // Cleared, so that padding rows never see the bits of a NaN that nobody computed.
  x_ = cleared<float>(tokens * hidden, "activations");
  qkv_ = cleared<Bf16>(tokens * qkv_size_, "activations");
  attention_ = cleared<Bf16>(tokens * q_size_, "activations");
  inner_ = cleared<Bf16>(tokens * inner, "activations");
  if (post_norms) branch_ = cleared<float>(tokens * hidden, "activations");
  const auto max_m = static_cast<uint32_t>(std::max(tokens, batch));
  scratch_ = cleared<Bf16>(linear_scratch_elements(max_m, std::max({model.hidden_size, q_size_, inner}), 2 * inner),
                           "activations");

  size_t partials = 0;
  for (uint32_t rows = 1; rows <= batch; ++rows) {
    const uint32_t splits =
        decode_splits(rows, model.num_heads, model.num_kv_heads, multiprocessors, limits.max_seq_len);
    partials = std::max(partials, decode_workspace_floats(rows, model.num_heads, model.head_dim, splits));
  }
  partials_ = cleared<float>(partials, "attention's workspace");
  const uint32_t groups = (group() + kDecodeGroup - 1) / kDecodeGroup;
  arrivals_ = cleared<uint32_t>(batch * model.num_kv_heads * groups, "attention's workspace");

  const size_t vocab = model.vocab_size;
  logits_ = cleared<float>(batch * vocab, "logits");
  scores_ = cleared<float>(batch * vocab, "sampler's workspace");
  list_ = cleared<uint32_t>(batch * vocab, "sampler's workspace");
  pieces_ =
      cleared<std::byte>(sample_pieces_bytes(static_cast<uint32_t>(batch), model.vocab_size), "sampler's workspace");
  counts_ = cleared<uint32_t>(batch * vocab, "token counts");
  results_ = cleared<std::byte>(ResultLayout(static_cast<uint32_t>(batch)).end, "results");

  if (experts) {
    const size_t pairs = tokens * model.chosen_experts;
    std::vector<const Bf16*> matrices;
    for (const LayerSpec& layer : layers_) {
      const size_t gate_up = size_t{2} * model.moe_intermediate_size * hidden;
      const size_t down = hidden * model.moe_intermediate_size;
      for (uint32_t e = 0; e < model.num_experts; ++e)
        matrices.push_back(layer.router == kNoTensor ? nullptr : matrix(layer.gate_up) + e * gate_up);
      for (uint32_t e = 0; e < model.num_experts; ++e)
        matrices.push_back(layer.router == kNoTensor ? nullptr : matrix(layer.down) + e * down);
    }
    expert_matrices_ = copied<const Bf16*>(matrices.data(), matrices.size(), "experts");
    normed_ = cleared<Bf16>(tokens * hidden, "activations of experts");
    router_logits_ = cleared<float>(tokens * model.num_experts, "activations of experts");
    chosen_ = cleared<int32_t>(pairs, "activations of experts");
    shares_ = cleared<float>(pairs, "activations of experts");
    expert_offsets_ = cleared<int32_t>(model.num_experts + 1, "activations of experts");
    pair_of_ = cleared<int32_t>(pairs, "activations of experts");
    row_of_ = cleared<int32_t>(pairs, "activations of experts");
    expert_inner_ = cleared<Bf16>(pairs * model.moe_intermediate_size, "activations of experts");
    expert_out_ = cleared<float>(pairs * hidden, "activations of experts");
  }
  model_.layers = nullptr;  // copied; the caller's need not live on
  model_.ropes = nullptr;
  check(cudaStreamSynchronize(stream), "preparing");
}

uint64_t Forward::page_bytes() const {
  return uint64_t{2} * model_.num_layers * model_.num_kv_heads * limits_.tokens_per_block * model_.head_dim *
         sizeof(Bf16);
}

void Forward::set_kv(std::byte* pool, uint64_t page_bytes) {
  if (page_bytes != this->page_bytes()) throw Fault{Status::kFailed, "KV pages of another size"};
  pool_ = pool;
  page_bytes_ = page_bytes;
}

KvLayout Forward::kv_of(uint32_t layer) const {
  const size_t head = size_t{limits_.tokens_per_block} * model_.head_dim;
  const size_t side = model_.num_kv_heads * head;
  Bf16* keys = reinterpret_cast<Bf16*>(pool_) + 2 * side * layer;
  return {.keys = keys,
          .values = keys + side,
          .page_stride = page_bytes_ / sizeof(Bf16),
          .head_stride = head,
          .tokens_per_page = limits_.tokens_per_block,
          .kv_heads = model_.num_kv_heads};
}

void Forward::linear(const LinearParams& params, Chain& chain) {
  check(linear_.run(params, chain.next()), "product");
}

void Forward::run(const StepPointers& p, const StagedStep& step, cudaStream_t stream) {
  Chain chain{.on = {.stream = stream}};
  const uint32_t tokens = step.num_tokens;
  const auto* previous = reinterpret_cast<const uint32_t*>(results_.data());
  check(launch_embed({.embedding = matrix(model_.embedding),
                      .tokens = p.token_ids,
                      .from_sample = p.from_sample,
                      .previous_tokens = previous,
                      .x = x_.data(),
                      .num_tokens = tokens,
                      .hidden = model_.hidden_size,
                      .vocab = model_.vocab_size,
                      .scale = model_.embedding_scale},
                     chain.next()),
        "embedding");
  for (Rope& rope : ropes_) {
    const bool has_long = rope.long_frequencies.data() != nullptr;
    check(launch_rotary_angles({.positions = p.positions,
                                .frequencies = rope.frequencies.data(),
                                .long_frequencies = rope.long_frequencies.data(),
                                .long_tokens = has_long ? p.long_tokens : nullptr,
                                .angles = rope.angles.data(),
                                .num_tokens = tokens,
                                .half = rope.half,
                                .factor = rope.factor,
                                .long_factor = rope.factor},
                               chain.next()),
          "rotary angles");
  }
  for (uint32_t i = 0; i < model_.num_layers; ++i) {
    attend(p, step, i, chain);
    if (layers_[i].router != kNoTensor) {
      mix_experts(step, i, chain);
    } else {
      feed_forward(step, i, chain);
    }
  }
  if (step.num_samples == 0) return;
  linear({.x_f32 = x_.data(),
          .norm_weight = vector(model_.final_norm),
          .input_rows = p.sample_tokens,
          .eps = model_.norm_eps,
          .weights = matrix(model_.lm_head),
          .m = step.num_samples,
          .n = model_.vocab_size,
          .k = model_.hidden_size,
          .output = LinearOutput::kF32,
          .y = logits_.data(),
          .scratch = scratch_.data()},
         chain);
  const ResultLayout layout(step.num_samples);
  std::byte* results = results_.data();
  const bool top = step.any_top != 0 || step.bucket != 0;
  check(launch_sample({.logits = logits_.data(),
                       .rows = p.sample_params,
                       .mask_tokens = p.mask_tokens,
                       .bias_tokens = p.bias_tokens,
                       .bias_values = p.bias_values,
                       .counts = counts_.data(),
                       .scores = scores_.data(),
                       .list = list_.data(),
                       .pieces = pieces_.data(),
                       .tokens = reinterpret_cast<uint32_t*>(results),
                       .logprobs = reinterpret_cast<float*>(results + layout.logprobs),
                       .top = top ? reinterpret_cast<TopLogprobOut*>(results + layout.top) : nullptr,
                       .not_finite = reinterpret_cast<uint8_t*>(results + layout.not_finite),
                       .num_rows = step.num_samples,
                       .vocab = model_.vocab_size},
                      chain.next()),
        "sampling");
}

void Forward::attend(const StepPointers& p, const StagedStep& step, uint32_t index, Chain& chain) {
  const LayerSpec& layer = layers_[index];
  const Rope& rope = ropes_[layer.rope];
  const uint32_t half = rope.half;
  linear({.x_f32 = x_.data(),
          .norm_weight = vector(layer.attention_norm),
          .eps = model_.norm_eps,
          .weights = matrix(layer.qkv),
          .bias = vector(layer.qkv_bias),
          .m = step.num_tokens,
          .n = qkv_size_,
          .k = model_.hidden_size,
          .output = LinearOutput::kBf16,
          .y = qkv_.data(),
          .scratch = scratch_.data()},
         chain);
  const uint32_t decodes = step.num_decode_rows;
  if (decodes > 0) {
    // A graph serves contexts of any length.
    const uint32_t context = step.bucket != 0 ? limits_.max_seq_len : step.max_context;
    check(launch_decode_attention(
              {.qkv = qkv_.data(),
               .qkv_stride = qkv_size_,
               .q_norm = vector(layer.q_norm),
               .k_norm = vector(layer.k_norm),
               .angles = rope.angles.data(),
               .context_lens = p.context_lens,
               .pages = p.pages,
               .page_offsets = p.page_offsets,
               .kv = kv_of(index),
               .out = attention_.data(),
               .partials = partials_.data(),
               .arrivals = arrivals_.data(),
               .rows = decodes,
               .heads = model_.num_heads,
               .head_dim = model_.head_dim,
               .half = half,
               .splits = decode_splits(decodes, model_.num_heads, model_.num_kv_heads, multiprocessors_, context),
               .window = layer.window,
               .scale = model_.score_scale,
               .eps = model_.norm_eps},
              chain.next()),
          "decode attention");
  }
  if (decodes < step.num_tokens) {
    check(launch_finish_qkv({.qkv = qkv_.data() + size_t{decodes} * qkv_size_,
                             .q_norm = vector(layer.q_norm),
                             .k_norm = vector(layer.k_norm),
                             .angles = rope.angles.data() + size_t{decodes} * 2 * half,
                             .kv_slots = p.kv_slots + decodes,
                             .kv = kv_of(index),
                             .num_tokens = step.num_tokens - decodes,
                             .heads = model_.num_heads,
                             .head_dim = model_.head_dim,
                             .half = half,
                             .eps = model_.norm_eps},
                            chain.next()),
          "queries and keys");
    check(launch_prefill_attention({.qkv = qkv_.data(),
                                    .qkv_stride = qkv_size_,
                                    .row_offsets = p.row_offsets,
                                    .context_lens = p.context_lens,
                                    .pages = p.pages,
                                    .page_offsets = p.page_offsets,
                                    .tiles = p.tiles,
                                    .kv = kv_of(index),
                                    .out = attention_.data(),
                                    .num_tiles = p.num_tiles,
                                    .heads = model_.num_heads,
                                    .head_dim = model_.head_dim,
                                    .window = layer.window,
                                    .scale = model_.score_scale},
                                   chain.next()),
          "prefill attention");
  }
  project(attention_.data(), q_size_, matrix(layer.o), vector(layer.o_bias), vector(layer.post_attention_norm),
          step.num_tokens, chain);
}

void Forward::project(const Bf16* from, uint32_t from_size, const Bf16* weights, const float* bias,
                      const float* post_norm, uint32_t tokens, Chain& chain) {
  const bool adds = post_norm == nullptr;
  linear({.x = from,
          .weights = weights,
          .bias = bias,
          .m = tokens,
          .n = model_.hidden_size,
          .k = from_size,
          .output = adds ? LinearOutput::kAddF32 : LinearOutput::kF32,
          .y = adds ? x_.data() : branch_.data(),
          .scratch = scratch_.data()},
         chain);
  if (adds) return;
  check(launch_post_norm_add({.y = branch_.data(),
                              .weight = post_norm,
                              .x = x_.data(),
                              .rows = tokens,
                              .size = model_.hidden_size,
                              .eps = model_.norm_eps},
                             chain.next()),
        "norm");
}

void Forward::feed_forward(const StagedStep& step, uint32_t index, Chain& chain) {
  const LayerSpec& layer = layers_[index];
  linear({.x_f32 = x_.data(),
          .norm_weight = vector(layer.mlp_norm),
          .eps = model_.norm_eps,
          .weights = matrix(layer.gate_up),
          .bias = vector(layer.gate_up_bias),
          .m = step.num_tokens,
          .n = 2 * model_.intermediate_size,
          .k = model_.hidden_size,
          .output = LinearOutput::kGatedBf16,
          .activation = activation_,
          .y = inner_.data(),
          .scratch = scratch_.data()},
         chain);
  project(inner_.data(), model_.intermediate_size, matrix(layer.down), vector(layer.down_bias),
          vector(layer.post_mlp_norm), step.num_tokens, chain);
}

void Forward::mix_experts(const StagedStep& step, uint32_t index, Chain& chain) {
  const LayerSpec& layer = layers_[index];
  const uint32_t tokens = step.num_tokens;
  const uint32_t chosen = model_.chosen_experts;
  const uint32_t pairs = tokens * chosen;
  const Bf16* const* matrices = expert_matrices_.data() + size_t{2} * index * model_.num_experts;
  check(launch_rms_norm({.x = x_.data(),
                         .weight = vector(layer.mlp_norm),
                         .y = normed_.data(),
                         .rows = tokens,
                         .size = model_.hidden_size,
                         .eps = model_.norm_eps},
                        chain.next()),
        "norm");
  linear({.x = normed_.data(),
          .weights = matrix(layer.router),
          .m = tokens,
          .n = model_.num_experts,
          .k = model_.hidden_size,
          .output = LinearOutput::kF32,
          .y = router_logits_.data(),
          .scratch = scratch_.data()},
         chain);
  check(launch_route({.logits = router_logits_.data(),
                      .chosen_experts = chosen_.data(),
                      .shares = shares_.data(),
                      .tokens = tokens,
                      .experts = model_.num_experts,
                      .chosen = chosen,
                      .normalize = model_.normalize_experts != 0},
                     chain.next()),
        "routing");
  check(launch_group_tokens({.chosen_experts = chosen_.data(),
                             .expert_offsets = expert_offsets_.data(),
                             .pair_of = pair_of_.data(),
                             .row_of = row_of_.data(),
                             .pairs = pairs,
                             .experts = model_.num_experts},
                            chain.next()),
        "routing");
  GroupedLinearParams product{.x = normed_.data(),
                              .weights = matrices,
                              .expert_offsets = expert_offsets_.data(),
                              .pair_of = pair_of_.data(),
                              .y_bf16 = expert_inner_.data(),
                              .pairs = pairs,
                              .chosen = chosen,
                              .experts = model_.num_experts,
                              .n = 2 * model_.moe_intermediate_size,
                              .k = model_.hidden_size,
                              .gather = true,
                              .activation = activation_};
  check(launch_grouped_linear(product, chain.next()), "experts");
  product.x = expert_inner_.data();
  product.weights = matrices + model_.num_experts;
  product.y_bf16 = nullptr;
  product.y_f32 = expert_out_.data();
  product.n = model_.hidden_size;
  product.k = model_.moe_intermediate_size;
  product.gather = false;
  check(launch_grouped_linear(product, chain.next()), "experts");
  check(launch_combine_experts({.y = expert_out_.data(),
                                .shares = shares_.data(),
                                .row_of = row_of_.data(),
                                .x = x_.data(),
                                .tokens = tokens,
                                .chosen = chosen,
                                .hidden = model_.hidden_size},
                               chain.next()),
        "experts");
}

void Forward::project_tokens(const int32_t* tokens, uint32_t count, cudaStream_t stream) {
  Chain chain{.on = {.stream = stream}};
  linear({.x_f32 = x_.data(),
          .norm_weight = vector(model_.final_norm),
          .input_rows = tokens,
          .eps = model_.norm_eps,
          .weights = matrix(model_.lm_head),
          .m = count,
          .n = model_.vocab_size,
          .k = model_.hidden_size,
          .output = LinearOutput::kF32,
          .y = logits_.data(),
          .scratch = scratch_.data()},
         chain);
}

void Forward::start_counts(const CountStart* starts, uint32_t count, const uint32_t* device_tokens,
                           cudaStream_t stream) {
  for (uint32_t i = 0; i < count; ++i) {
    const CountStart& start = starts[i];
    check(launch_count_tokens({.counts = counts_.data() + size_t{start.slot} * model_.vocab_size,
                               .tokens = device_tokens + start.begin,
                               .num_prompt = start.num_prompt,
                               .num_generated = start.num_generated,
                               .vocab = model_.vocab_size},
                              {.stream = stream}),
          "token counts");
  }
}

}  // namespace dyn::native::cuda
