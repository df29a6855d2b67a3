// StepPlan: one forward pass over a ragged batch. Nothing below it knows about requests.
//
// Rows are sequences; row r owns the tokens [row_offsets[r], row_offsets[r+1]) of the flat arrays: one token for a
// decode row, a chunk of the prompt for a prefill row. Everything is host memory owned by the caller and unchanged
// until the step is collected. Shapes are given in brackets: T tokens, R rows, S sampling rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace dyn::native {

using llm::TokenId;

using PageId = int32_t;
// In a block table: a page that no layer of the model looks at any more; never read nor written. Only where every layer
// has a window, and only as leading pages: those that end before the window of the row's first token begins, which is
// at context_lens[r] - (tokens of r) + 1 - window, `window` being the greatest of the layers'.
inline constexpr PageId kNoPage = -1;
// A sequence's place in the executor for as long as it is scheduled: per-slot sampling state (token counts, seeds)
// lives in the executor, so that on a GPU sampling needs no host data of the step before.
using SlotId = uint32_t;

// In `tokens`: the token comes from the sampling result of the step before, sampling row `from_sample[t]`.
inline constexpr TokenId kTokenOfPreviousStep = 0xFFFF'FFFF;

// A sequence enters a slot (first time, or again after a preemption). The executor copies what it needs at enqueue.
struct SlotStart {
  SlotId slot = 0;
  engine::SamplingParams sampling;
  std::span<const TokenId> prompt;     // for the repetition penalty
  std::span<const TokenId> generated;  // not empty after a preemption
};

// A whole page, all layers, copied before anything of the step is computed and after all that the steps before it
// computed: the last block of a sequence that goes on in two, or a cached block of which a sequence takes the head.
struct PageCopy {
  PageId from = 0;
  PageId to = 0;
};

// Log-probabilities of what follows the tokens of a row, from raw logits, for `next.size()` tokens from its first on.
struct PromptLogprobs {
  uint32_t row = 0;
  uint32_t top = 0;               // best alternatives a token; at most vocab_size
  std::span<const TokenId> next;  // the token after each; one at least, at most as many as the row has tokens
};

struct SampleRow {
  uint32_t row = 0;  // row whose last token's logits are sampled; several samples may name one row (n > 1)
  SlotId slot = 0;
  uint64_t position = 0;  // index of the generated token in its answer: the random counter together with the seed
  int32_t logprobs = -1;  // -1: none wanted; 0: of the chosen token; k: also the k best
  bool mask_stop_tokens = false;  // min_tokens not reached: `stop_tokens` must not be chosen
  std::span<const TokenId> stop_tokens;
};

struct StepPlan {
  std::vector<TokenId> tokens;         // [T]
  std::vector<uint32_t> from_sample;   // [T] or empty; see kTokenOfPreviousStep
  std::vector<int32_t> positions;      // [T] position in the sequence, for rotary embedding
  std::vector<uint32_t> row_offsets;   // [R + 1]
  std::vector<int32_t> context_lens;   // [R] KV length of the row after this step
  std::vector<PageId> pages;           // block tables, concatenated
  std::vector<uint32_t> page_offsets;  // [R + 1] into pages; row r has ceil(context_lens[r] / tokens_per_block) pages
  std::vector<uint8_t> long_rope;      // [R] or empty: 1 where the row's rotary angles take longrope's long factors
  std::vector<PageCopy> page_copies;   // no page is written twice, none is both read and written; rows may write both
  std::vector<SlotStart> slot_starts;
  std::vector<SampleRow> samples;               // [S], rows do not descend, no slot comes twice: S <= max_batch_size
  std::vector<PromptLogprobs> prompt_logprobs;  // [Q], ascending rows

  [[nodiscard]] size_t num_tokens() const { return tokens.size(); }
  [[nodiscard]] size_t num_rows() const { return row_offsets.empty() ? 0 : row_offsets.size() - 1; }
  void clear();
};

// What the sampler chose, one entry a sampling row of the plan.
struct StepResult {
  std::vector<TokenId> tokens;          // [S]
  std::vector<float> logprobs;          // [S]; meaningful where logprobs >= 0 was asked
  std::vector<engine::TopLogprob> top;  // concatenated; top_offsets says whose
  std::vector<uint32_t> top_offsets;    // [S + 1]
  std::vector<uint8_t> not_finite;      // [S] the logits held NaN or only -inf: the row is in error

  // Of plan.prompt_logprobs, concatenated: one value a token of `next`, `top` alternatives a token, ranks 1, 2, ...
  // Where logits are not finite (see not_finite) the values are -inf and the alternatives' ids and ranks 0.
  std::vector<float> prompt_logprobs;
  std::vector<engine::TopLogprob> prompt_top;
};

}  // namespace dyn::native
