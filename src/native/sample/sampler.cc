#include "native/sample/sampler.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

namespace dyn::native {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// The head of the sorted list that top-p looks at first; it grows by this factor until it holds enough.
constexpr size_t kNucleusStart = 256;
constexpr size_t kNucleusGrowth = 8;

struct Peak {
  float value = kNothing;
  TokenId id = 0;
  bool finite = true;  // no NaN, no +inf, and something above -inf
};

// Highest value, lowest id of equals.
Peak peak_of(std::span<const float> values) {
  // Lanes of their own, so that the compiler may use vectors: the highest value first, then where it is.
  constexpr size_t kLanes = 16;
  float best[kLanes];
  uint32_t bad[kLanes] = {};
  std::fill_n(best, kLanes, kNothing);
  const size_t whole = values.size() / kLanes * kLanes;
  const auto look_at = [&](size_t lane, float value) {
    bad[lane] |= value < std::numeric_limits<float>::infinity() ? 0U : 1U;  // NaN too
    best[lane] = value > best[lane] ? value : best[lane];
  };
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) look_at(lane, values[i + lane]);
  }
  for (size_t i = whole; i < values.size(); ++i) look_at(0, values[i]);
  Peak peak;
  bool any_bad = false;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    any_bad |= bad[lane] != 0;
    peak.value = std::max(peak.value, best[lane]);
  }
  peak.finite = !any_bad && peak.value > kNothing;
  if (peak.finite) peak.id = static_cast<TokenId>(std::ranges::find(values, peak.value) - values.begin());
  return peak;
}

// log(sum(exp(values))), `max` being their maximum.
double log_sum_exp(std::span<const float> values, float max) {
  double sum = 0;
  for (float value : values) sum += static_cast<double>(std::exp(value - max));
  return static_cast<double>(max) + std::log(sum);
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = uint64_t{0xD251'1F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E'8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E37'79B9;
    key[1] += 0xBB67'AE85;
  }
  return counter;
}

double uniform_at(uint64_t seed, uint64_t position) {
  const auto bits = philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                               {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t word = (uint64_t{bits[0]} << 32) | bits[1];
  return static_cast<double>(word >> 11) * 0x1p-53;
}

void SamplerSlot::start(const engine::SamplingParams& params, std::span<const TokenId> prompt,
                        std::span<const TokenId> generated, uint32_t vocab_size) {
  params_ = params;
  counts_.clear();
  seen_.clear();
  tail_limit_ = 0;
  for (const auto& word : params.bad_words) tail_limit_ = std::max(tail_limit_, word.size() - 1);
  const auto tail = generated.last(std::min(generated.size(), tail_limit_));
  tail_.reserve(tail_limit_);
  tail_.assign(tail.begin(), tail.end());
  if (!params.has_penalties()) return;
  counts_.resize(vocab_size);
  for (TokenId token : prompt) see(token, 0);
  for (TokenId token : generated) see(token, 1);
}

void SamplerSlot::add(TokenId generated) {
  if (!counts_.empty()) see(generated, 1);
  if (tail_limit_ == 0) return;
  if (tail_.size() == tail_limit_) tail_.erase(tail_.begin());
  tail_.push_back(generated);
}

void SamplerSlot::see(TokenId token, uint32_t generated) {
  if (token >= counts_.size()) return;  // no token of this vocabulary: nothing to penalise
  uint32_t& count = counts_[token];
  if (count == 0) {
    count = 1;
    seen_.push_back(token);
  }
  count += generated;
}

Sampler::Sampler(uint32_t vocab_size) : scores_(vocab_size) {
  candidates_.reserve(vocab_size);
}

// transformers' RepetitionPenaltyLogitsProcessor, then OpenAI's frequency and presence penalties.
void Sampler::penalise(const SamplerSlot& slot) {
  const engine::SamplingParams& params = slot.params_;
  for (TokenId token : slot.seen_) {
    float& score = scores_[token];
    score = score > 0 ? score / params.repetition_penalty : score * params.repetition_penalty;
    if (const uint32_t generated = slot.counts_[token] - 1; generated > 0) {
      score -= params.frequency_penalty * static_cast<float>(generated) + params.presence_penalty;
    }
  }
}

void Sampler::forbid_bad_words(const SamplerSlot& slot) {
  for (const std::vector<TokenId>& word : slot.params_.bad_words) {
    const auto head = std::span(word).first(word.size() - 1);
    if (head.size() > slot.tail_.size() || word.back() >= scores_.size()) continue;
    if (std::ranges::equal(head, std::span(slot.tail_).last(head.size()))) scores_[word.back()] = kNothing;
  }
}

void Sampler::fill_top(std::span<const float> logits, double norm, std::span<engine::TopLogprob> top) {
  if (top.empty()) return;
  gather(logits);
  sort_best(top.size());
  for (size_t i = 0; i < top.size(); ++i) {
    top[i] = {.id = candidates_[i].id,
              .logprob = static_cast<float>(static_cast<double>(candidates_[i].value) - norm),
              .rank = static_cast<uint32_t>(i + 1)};
  }
}

float Sampler::score(std::span<const float> logits, TokenId token, std::span<engine::TopLogprob> top) {
  assert(logits.size() == scores_.size() && top.size() <= logits.size() && token < logits.size());
  const Peak peak = peak_of(logits);
  if (!peak.finite) {
    std::ranges::fill(top, engine::TopLogprob{.id = 0, .logprob = kNothing, .rank = 0});
    return kNothing;
  }
  const double norm = log_sum_exp(logits, peak.value);
  fill_top(logits, norm, top);
  return static_cast<float>(static_cast<double>(logits[token]) - norm);
}

void Sampler::gather(std::span<const float> values) {
  candidates_.clear();
  for (size_t i = 0; i < values.size(); ++i) candidates_.push_back({values[i], static_cast<TokenId>(i)});
}

// Puts the `count` best candidates in front, best first, the lower id first of equals. None is NaN.
void Sampler::sort_best(size_t count) {
  auto better = [](const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.id < b.id;
  };
  const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
  if (count < candidates_.size()) std::nth_element(candidates_.begin(), end, candidates_.end(), better);
  std::sort(candidates_.begin(), end, better);
}

// How many of the first `count` candidates (values are probabilities relative to the best) make up `top_p` of their
// sum. Sorts as many as it looks at.
size_t Sampler::nucleus(float top_p, size_t count) {
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += static_cast<double>(candidates_[i].value);
  const double wanted = static_cast<double>(top_p) * total;
  for (size_t head = std::min(count, kNucleusStart);; head = std::min(count, head * kNucleusGrowth)) {
    sort_best(head);
    double sum = 0;
    for (size_t i = 0; i < head; ++i) {
      sum += static_cast<double>(candidates_[i].value);
      if (sum >= wanted) return i + 1;
    }
    if (head == count) return count;
  }
}

TokenId Sampler::draw(const engine::SamplingParams& params, float best, double u) {
  const bool top_k = params.top_k > 0 && params.top_k < scores_.size();
  gather(scores_);
  if (top_k) {
    sort_best(params.top_k);
    candidates_.resize(params.top_k);
  }
  for (Candidate& c : candidates_) c.value = std::exp((c.value - best) / params.temperature);
  if (params.top_p < 1.0F) candidates_.resize(nucleus(params.top_p, candidates_.size()));
  // The best candidate has 1, so the limit relative to it is min_p itself.
  if (params.min_p > 0.0F)
    std::erase_if(candidates_, [&](const Candidate& c) { return c.value < std::min(params.min_p, 1.0F); });

  double total = 0;
  for (const Candidate& c : candidates_) total += static_cast<double>(c.value);
  double left = u * total;
  const Candidate* chosen = nullptr;  // the last possible one when rounding leaves a rest
  for (const Candidate& c : candidates_) {
    if (c.value <= 0.0F) continue;
    chosen = &c;
    left -= static_cast<double>(c.value);
    if (left < 0) break;
  }
  return chosen->id;
}

Sample Sampler::sample(std::span<const float> logits, const SamplerSlot& slot, const SampleRow& row,
                       std::span<engine::TopLogprob> top) {
  assert(logits.size() == scores_.size() && top.size() <= logits.size());
  const Sample failed{.token = 0, .logprob = 0, .not_finite = true};
  const Peak raw = peak_of(logits);
  if (!raw.finite) {
    std::ranges::fill(top, engine::TopLogprob{});
    return failed;
  }

  const engine::SamplingParams& params = slot.params_;
  const bool greedy = params.greedy() || !(params.temperature > 0.0F);  // NaN included
  const bool masked = row.mask_stop_tokens && !row.stop_tokens.empty();
  Peak peak = raw;
  const bool changed = masked || !slot.seen_.empty() || !params.logit_bias.empty() || !params.bad_words.empty();
  if (changed || !greedy) std::ranges::copy(logits, scores_.begin());
  if (changed) {
    for (const auto& [token, bias] : params.logit_bias) {
      if (token < scores_.size()) scores_[token] += bias;
    }
    penalise(slot);
    if (masked) {
      for (TokenId token : row.stop_tokens) {
        if (token < scores_.size()) scores_[token] = kNothing;
      }
    }
    forbid_bad_words(slot);
    peak = peak_of(scores_);
  }

  Sample sample;
  if (!peak.finite) {
    std::ranges::fill(top, engine::TopLogprob{});
    return failed;
  }
  sample.token = greedy ? peak.id : draw(params, peak.value, uniform_at(params.seed, row.position));

  if (row.logprobs >= 0) {
    const double norm = log_sum_exp(logits, raw.value);
    sample.logprob = static_cast<float>(static_cast<double>(logits[sample.token]) - norm);
    fill_top(logits, norm, top);
  }
  return sample;
}

}  // namespace dyn::native
