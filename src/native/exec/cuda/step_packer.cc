#include "native/exec/cuda/step_packer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace dyn::native {
namespace {

using cuda::StagedStep;

constexpr uint64_t kAlignment = 16;
// Room for lists of tokens, counted in entries: masked tokens and biases of a bucket's row, the same of a whole step,
// and tokens of sequences with penalties that enter their slots.
constexpr uint32_t kListOfBucketRow = 4;
constexpr uint32_t kMaxMasks = 16'384;
constexpr uint32_t kMaxBiases = 65'536;
constexpr uint32_t kMaxMasksOfRow = 1024;
constexpr uint32_t kMaxBiasesOfRow = 4096;
constexpr uint64_t kMaxCountTokens = 262'144;

uint64_t align(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

template <class T>
T* at(std::byte* to, uint32_t offset) {
  return reinterpret_cast<T*>(to + offset);
}

uint32_t tokens_of(const StepPlan& plan, size_t row) {
  return plan.row_offsets[row + 1] - plan.row_offsets[row];
}

}  // namespace

std::vector<uint32_t> graph_buckets(uint32_t max_batch_size) {
  std::vector<uint32_t> buckets;
  for (uint32_t rows = 1; rows < max_batch_size;) {
    buckets.push_back(rows);
    if (rows < 8) {
      rows *= 2;
    } else if (rows < 64) {
      rows += 8;
    } else if (rows < 256) {
      rows += 16;
    } else {
      rows += 32;
    }
  }
  buckets.push_back(max_batch_size);
  return buckets;
}

StepPacker::StepPacker(const ExecutorLimits& limits, uint32_t vocab_size, std::vector<uint32_t> buckets)
    : limits_(limits), vocab_size_(vocab_size), buckets_(std::move(buckets)) {
  order_.reserve(limits.max_batch_size);
  first_token_.resize(limits.max_batch_size);
}

uint64_t StepPacker::staging_bytes(const ExecutorLimits& limits, uint32_t max_seq_len) {
  const uint64_t tokens = std::max(limits.max_num_tokens, limits.max_batch_size);
  const uint64_t rows = limits.max_batch_size;
  const uint64_t pages = (uint64_t{max_seq_len} + limits.tokens_per_block - 1) / limits.tokens_per_block;
  const uint64_t masks = std::max<uint64_t>(kMaxMasks, rows * kListOfBucketRow);
  const uint64_t biases = std::max<uint64_t>(kMaxBiases, rows * kListOfBucketRow);
  const uint64_t sizes[] = {tokens * 4, tokens * 4, tokens * 4, tokens * 8, tokens, (rows + 1) * 4, rows * 4,
                            (rows + 1) * 4, rows * 4, rows * sizeof(cuda::SampleRowParams), masks * 4, biases * 4,
                            biases * 4, rows * pages * 4,
                            // Copies and starts: one a row at most.
                            rows * 4, rows * 4, rows * sizeof(cuda::CountStart), kMaxCountTokens * 4};
  uint64_t sum = 0;
  for (const uint64_t size : sizes) sum += align(size);
  return sum;
}

bool StepPacker::reserve(uint64_t bytes, std::span<std::byte> staging, StagedStep& step, uint32_t& offset) {
  const uint64_t end = align(step.bytes + bytes);
  if (end > staging.size()) return false;
  offset = step.bytes;
  step.bytes = static_cast<uint32_t>(end);
  return true;
}

bool StepPacker::lay_out(const Counts& counts, std::span<std::byte> staging, StagedStep& step) {
  step.num_tokens = counts.tokens;
  step.num_rows = counts.rows;
  step.num_samples = counts.samples;
  const std::pair<uint32_t*, uint64_t> arrays[] = {
      {&step.token_ids, uint64_t{4} * counts.tokens},
      {&step.from_sample, uint64_t{4} * counts.tokens},
      {&step.positions, uint64_t{4} * counts.tokens},
      {&step.kv_slots, uint64_t{8} * counts.tokens},
      {&step.long_tokens, counts.tokens},
      {&step.row_offsets, uint64_t{4} * (counts.rows + 1)},
      {&step.context_lens, uint64_t{4} * counts.rows},
      {&step.page_offsets, uint64_t{4} * (counts.rows + 1)},
      {&step.sample_tokens, uint64_t{4} * counts.samples},
      {&step.sample_params, sizeof(cuda::SampleRowParams) * counts.samples},
      {&step.mask_tokens, uint64_t{4} * counts.masks},
      {&step.bias_tokens, uint64_t{4} * counts.biases},
      {&step.bias_values, uint64_t{4} * counts.biases},
  };
  return std::ranges::all_of(arrays,
                             [&](const auto& array) { return reserve(array.second, staging, step, *array.first); });
}

// Slots whose rows the device cannot sample: known when they start, or by what a step asks of them.
void StepPacker::mark_host_slots(const StepPlan& plan, std::span<CudaSlot> slots) const {
  uint64_t masks = 0;
  uint64_t biases = 0;
  for (const SampleRow& sample : plan.samples) {
    CudaSlot& slot = slots[sample.slot];
    if (slot.on_host) continue;
    const engine::SamplingParams& params = slot.sampler.params();
    const uint64_t own_masks = sample.mask_stop_tokens ? sample.stop_tokens.size() : 0;
    const uint64_t own_biases = params.logit_bias.size();
    if (!params.bad_words.empty() || sample.logprobs > kMaxDeviceTop || own_masks > kMaxMasksOfRow ||
        own_biases > kMaxBiasesOfRow || masks + own_masks > kMaxMasks || biases + own_biases > kMaxBiases) {
      slot.on_host = true;
      continue;
    }
    masks += own_masks;
    biases += own_biases;
  }
  uint64_t counted = 0;
  for (const SlotStart& start : plan.slot_starts) {
    CudaSlot& slot = slots[start.slot];
    if (slot.on_host || !start.sampling.has_penalties()) continue;
    counted += start.prompt.size() + start.generated.size();
    if (counted > kMaxCountTokens) slot.on_host = true;
  }
}

StepPacker::Counts StepPacker::count(const StepPlan& plan, std::span<const CudaSlot> slots) const {
  Counts counts{.tokens = static_cast<uint32_t>(plan.num_tokens()),
                .rows = static_cast<uint32_t>(plan.num_rows()),
                .samples = static_cast<uint32_t>(plan.samples.size())};
  for (const SampleRow& sample : plan.samples) {
    const CudaSlot& slot = slots[sample.slot];
    if (slot.on_host) continue;
    if (sample.mask_stop_tokens) counts.masks += static_cast<uint32_t>(sample.stop_tokens.size());
    counts.biases += static_cast<uint32_t>(slot.sampler.params().logit_bias.size());
  }
  return counts;
}

uint32_t StepPacker::choose_bucket(const StepPlan& plan, const Counts& counts) const {
  if (plan.num_tokens() != plan.num_rows()) return 0;
  const auto found = std::ranges::lower_bound(buckets_, std::max(counts.rows, counts.samples));
  if (found == buckets_.end()) return 0;
  const uint32_t room = *found * kListOfBucketRow;
  return counts.masks <= room && counts.biases <= room ? *found : 0;
}

void StepPacker::order_rows(const StepPlan& plan) {
  order_.clear();
  for (const bool decode : {true, false}) {
    for (uint32_t row = 0; row < plan.num_rows(); ++row) {
      if ((tokens_of(plan, row) == 1) == decode) order_.push_back(row);
    }
  }
  uint32_t token = 0;
  for (const uint32_t row : order_) {
    first_token_[row] = token;
    token += tokens_of(plan, row);
  }
}

// Rows, their tokens and block tables. What a bucket has beyond the plan becomes padding.
void StepPacker::fill_rows(const StepPlan& plan, std::span<const TokenId> previous, StagedStep& step,
                           std::byte* to) const {
  auto* ids = at<uint32_t>(to, step.token_ids);
  auto* from_sample = at<uint32_t>(to, step.from_sample);
  auto* positions = at<int32_t>(to, step.positions);
  auto* kv_slots = at<int64_t>(to, step.kv_slots);
  auto* long_tokens = at<uint8_t>(to, step.long_tokens);
  auto* row_offsets = at<uint32_t>(to, step.row_offsets);
  auto* contexts = at<int32_t>(to, step.context_lens);
  auto* page_offsets = at<uint32_t>(to, step.page_offsets);
  auto* pages = at<int32_t>(to, step.pages);
  const uint32_t block = limits_.tokens_per_block;
  uint32_t t = 0;
  uint32_t page = 0;
  row_offsets[0] = 0;
  page_offsets[0] = 0;
  for (size_t r = 0; r < order_.size(); ++r) {
    const uint32_t row = order_[r];
    const auto table =
        std::span(plan.pages).subspan(plan.page_offsets[row], plan.page_offsets[row + 1] - plan.page_offsets[row]);
    const uint32_t tokens = tokens_of(plan, row);
    const auto context = static_cast<uint32_t>(plan.context_lens[row]);
    for (uint32_t i = 0; i < tokens; ++i, ++t) {
      const size_t from = plan.row_offsets[row] + i;
      const bool pending = plan.tokens[from] == kTokenOfPreviousStep;
      const uint32_t sample = pending ? plan.from_sample[from] : 0;
      ids[t] = pending ? previous[sample] : plan.tokens[from];
      from_sample[t] = sample;
      positions[t] = plan.positions[from];
      const uint32_t index = context - tokens + i;
      kv_slots[t] = int64_t{table[index / block]} * block + index % block;
      long_tokens[t] = plan.long_rope.empty() ? 0 : plan.long_rope[row];
    }
    if (tokens == 1) {
      ++step.num_decode_rows;
      step.max_context = std::max(step.max_context, context);
    }
    std::ranges::copy(table, pages + page);
    page += static_cast<uint32_t>(table.size());
    row_offsets[r + 1] = t;
    contexts[r] = plan.context_lens[row];
    page_offsets[r + 1] = page;
  }
  for (; t < step.num_tokens; ++t) {
    ids[t] = 0;
    from_sample[t] = 0;
    positions[t] = 0;
    kv_slots[t] = -1;
    long_tokens[t] = 0;
  }
  for (size_t r = order_.size(); r < step.num_rows; ++r) {
    row_offsets[r + 1] = static_cast<uint32_t>(r + 1);
    contexts[r] = 0;
    page_offsets[r + 1] = page;
  }
  if (step.bucket != 0) step.num_decode_rows = step.bucket;
}

void StepPacker::fill_samples(const StepPlan& plan, std::span<const CudaSlot> slots, StagedStep& step,
                              std::byte* to) const {
  auto* tokens = at<int32_t>(to, step.sample_tokens);
  auto* params = at<cuda::SampleRowParams>(to, step.sample_params);
  auto* mask_tokens = at<uint32_t>(to, step.mask_tokens);
  auto* bias_tokens = at<uint32_t>(to, step.bias_tokens);
  auto* bias_values = at<float>(to, step.bias_values);
  uint32_t masks = 0;
  uint32_t biases = 0;
  for (uint32_t s = 0; s < step.num_samples; ++s) {
    cuda::SampleRowParams row{.temperature = 0.0F, .logits_row = s};
    if (s >= plan.samples.size()) {
      tokens[s] = 0;
      params[s] = row;
      continue;
    }
    const SampleRow& sample = plan.samples[s];
    tokens[s] = static_cast<int32_t>(first_token_[sample.row] + tokens_of(plan, sample.row) - 1);
    const CudaSlot& slot = slots[sample.slot];
    if (!slot.on_host) {
      const engine::SamplingParams& from = slot.sampler.params();
      const bool greedy = from.greedy() || !(from.temperature > 0.0F);  // NaN included
      row.seed = from.seed;
      row.position = sample.position;
      row.temperature = greedy ? 0.0F : from.temperature;
      row.top_k = from.top_k;
      row.top_p = from.top_p;
      row.min_p = from.min_p;
      row.repetition_penalty = from.repetition_penalty;
      row.presence_penalty = from.presence_penalty;
      row.frequency_penalty = from.frequency_penalty;
      row.counts_row = from.has_penalties() ? static_cast<int32_t>(sample.slot) : -1;
      row.logprobs = sample.logprobs;
      if (sample.logprobs > 0) step.any_top = 1;
      row.mask_begin = masks;
      if (sample.mask_stop_tokens) {
        for (const TokenId token : sample.stop_tokens) {
          if (token < vocab_size_) mask_tokens[masks++] = token;
        }
      }
      row.mask_end = masks;
      row.bias_begin = biases;
      for (const auto& [token, value] : from.logit_bias) {
        if (token >= vocab_size_) continue;
        bias_tokens[biases] = token;
        bias_values[biases++] = value;
      }
      row.bias_end = biases;
    }
    params[s] = row;
  }
}

// Page copies, and the tokens of sequences with penalties that enter their slots.
bool StepPacker::fill_starts(const StepPlan& plan, std::span<const CudaSlot> slots, std::span<std::byte> staging,
                             StagedStep& step) {
  step.num_page_copies = static_cast<uint32_t>(plan.page_copies.size());
  if (step.num_page_copies > 0) {
    if (!reserve(uint64_t{4} * step.num_page_copies, staging, step, step.copy_from) ||
        !reserve(uint64_t{4} * step.num_page_copies, staging, step, step.copy_to))
      return false;
    for (size_t i = 0; i < plan.page_copies.size(); ++i) {
      at<int32_t>(staging.data(), step.copy_from)[i] = plan.page_copies[i].from;
      at<int32_t>(staging.data(), step.copy_to)[i] = plan.page_copies[i].to;
    }
  }
  uint64_t tokens = 0;
  for (const SlotStart& start : plan.slot_starts) {
    if (slots[start.slot].on_host || !start.sampling.has_penalties()) continue;
    ++step.num_count_starts;
    tokens += start.prompt.size() + start.generated.size();
  }
  if (step.num_count_starts == 0) return true;
  if (!reserve(sizeof(cuda::CountStart) * step.num_count_starts, staging, step, step.count_starts) ||
      !reserve(4 * tokens, staging, step, step.count_tokens))
    return false;
  auto* to = at<cuda::CountStart>(staging.data(), step.count_starts);
  auto* list = at<uint32_t>(staging.data(), step.count_tokens);
  uint32_t begin = 0;
  for (const SlotStart& start : plan.slot_starts) {
    if (slots[start.slot].on_host || !start.sampling.has_penalties()) continue;
    *to++ = {.slot = start.slot,
             .begin = begin,
             .num_prompt = static_cast<uint32_t>(start.prompt.size()),
             .num_generated = static_cast<uint32_t>(start.generated.size())};
    std::ranges::copy(start.prompt, list + begin);
    begin += static_cast<uint32_t>(start.prompt.size());
    std::ranges::copy(start.generated, list + begin);
    begin += static_cast<uint32_t>(start.generated.size());
  }
  return true;
}

Result<StagedStep> StepPacker::pack(const StepPlan& plan, std::span<CudaSlot> slots, std::span<const TokenId> previous,
                                    uint32_t flight, std::span<std::byte> staging) {
  mark_host_slots(plan, slots);
  Counts counts = count(plan, slots);
  StagedStep step{};
  step.struct_size = sizeof step;
  step.flight = flight;
  step.bucket = choose_bucket(plan, counts);
  if (step.bucket != 0) {
    counts = {.tokens = step.bucket,
              .rows = step.bucket,
              .samples = step.bucket,
              .masks = step.bucket * kListOfBucketRow,
              .biases = step.bucket * kListOfBucketRow};
  }
  order_rows(plan);
  if (!lay_out(counts, staging, step) || !reserve(4 * plan.pages.size(), staging, step, step.pages) ||
      !fill_starts(plan, slots, staging, step)) {
    return internal_error(fmt::format("step plan: it needs more than the staging buffer's {} bytes", staging.size()));
  }
  fill_rows(plan, previous, step, staging.data());
  fill_samples(plan, slots, step, staging.data());
  return step;
}

Result<StagedStep> StepPacker::pack_padding(uint32_t bucket, uint32_t flight, std::span<std::byte> staging) {
  StagedStep step{};
  step.struct_size = sizeof step;
  step.flight = flight;
  step.bucket = bucket;
  const Counts counts{.tokens = bucket,
                      .rows = bucket,
                      .samples = bucket,
                      .masks = bucket * kListOfBucketRow,
                      .biases = bucket * kListOfBucketRow};
  order_.clear();
  if (!lay_out(counts, staging, step) || !reserve(4, staging, step, step.pages)) {
    return internal_error("the staging buffer has no room for a graph's rows");
  }
  const StepPlan nothing;
  fill_rows(nothing, {}, step, staging.data());
  fill_samples(nothing, {}, step, staging.data());
  return step;
}

}  // namespace dyn::native
