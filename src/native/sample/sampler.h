// Sampler: picks the next token from one row of logits. Pure: the result depends on logits, slot state and row only, so
// it is the same in any batch, on any thread, and again after a preemption.
//
//   SamplerSlot slot;
//   slot.start(params, prompt, generated, vocab_size);
//   Sampler sampler(vocab_size);                       // scratch memory of one thread
//   std::vector<engine::TopLogprob> top(5);
//   Sample s = sampler.sample(logits, slot, row, top);
//   slot.add(s.token);
//
// Order of operations: logit bias, repetition penalty (prompt and answer), frequency and presence penalty (answer
// only), stop tokens masked while min_tokens is not reached, and the last token of a bad word whose other tokens end
// the answer so far; greedy takes the highest logit, the lowest id of equals. Otherwise temperature, top-k, top-p of
// what top-k left, min-p, then one draw with Philox4x32-10 keyed by the seed at counter `position`. top-k keeps exactly
// k tokens (lowest ids of equals); top-p keeps the shortest head of the sorted list that reaches p, at least one token.
//
// Log-probabilities are those of the model: log-softmax of the raw logits, before bias, penalties, masks and
// temperature, which is OpenAI's and TensorRT-LLM's convention. Thread rules: a Sampler is used by one thread at a
// time; a slot likewise.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "native/exec/step_plan.h"

namespace dyn::native {

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Uniform in [0, 1), 53 bits, of the `position`-th token of an answer with this seed.
double uniform_at(uint64_t seed, uint64_t position);

// Sampling parameters of a sequence; when it has penalties, which tokens it has seen; when it has bad words, how its
// answer ends.
class SamplerSlot {
 public:
  void start(const engine::SamplingParams& params, std::span<const TokenId> prompt, std::span<const TokenId> generated,
             uint32_t vocab_size);
  void add(TokenId generated);
  [[nodiscard]] const engine::SamplingParams& params() const { return params_; }

 private:
  friend class Sampler;
  void see(TokenId token, uint32_t generated);

  engine::SamplingParams params_;
  std::vector<uint32_t> counts_;  // [vocab] 0: not seen, else 1 + how often generated; empty without penalties
  std::vector<TokenId> seen_;     // tokens whose count is not 0
  std::vector<TokenId> tail_;     // the end of the answer, one token shorter than the longest bad word
  size_t tail_limit_ = 0;
};

struct Sample {
  TokenId token = 0;
  float logprob = 0;        // when row.logprobs >= 0
  bool not_finite = false;  // the logits hold NaN or +inf, or nothing but -inf; token is 0
};

class Sampler {
 public:
  explicit Sampler(uint32_t vocab_size);

  // `logits` has vocab_size elements and is not changed. `top` (at most vocab_size) is filled with the best
  // alternatives, ranks 1, 2, ...; `row.logprobs` only says whether the chosen token's is wanted.
  Sample sample(std::span<const float> logits, const SamplerSlot& slot, const SampleRow& row,
                std::span<engine::TopLogprob> top);

  // The log-probability of `token`, and the best alternatives; -inf where the logits are not finite.
  float score(std::span<const float> logits, TokenId token, std::span<engine::TopLogprob> top);

 private:
  struct Candidate {
    float value;  // score, later probability relative to the best one
    TokenId id;
  };

  void penalise(const SamplerSlot& slot);
  void forbid_bad_words(const SamplerSlot& slot);
  void fill_top(std::span<const float> logits, double norm, std::span<engine::TopLogprob> top);
  TokenId draw(const engine::SamplingParams& params, float best, double u);
  void gather(std::span<const float> values);
  void sort_best(size_t count);
  size_t nucleus(float top_p, size_t count);

  std::vector<float> scores_;          // [vocab] logits after penalties and masks
  std::vector<Candidate> candidates_;  // [vocab]
};

}  // namespace dyn::native
