#include "native/exec/cuda/step_packer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace dyn::native {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr ExecutorLimits kLimits{.max_batch_size = 12, .max_num_tokens = 64, .tokens_per_block = 16, .num_pages = 100};
constexpr uint32_t kVocab = 50;
constexpr uint32_t kMaxSeqLen = 64;

// A staging buffer, slots, and views of what was packed.
class Packed {
 public:
  Packed()
      : staging_(StepPacker::staging_bytes(kLimits, kMaxSeqLen)),
        slots(kLimits.max_batch_size),
        packer(kLimits, kVocab, graph_buckets(kLimits.max_batch_size)) {}

  void pack(const StepPlan& plan, std::vector<TokenId> previous = {}) {
    auto packed = packer.pack(plan, slots, previous, 1, staging_);
    ASSERT_TRUE(packed.ok()) << packed.error().message;
    step = *packed;
    EXPECT_EQ(step.flight, 1U);
    EXPECT_LE(step.bytes, staging_.size());
  }
  template <class T>
  std::vector<T> at(uint32_t offset, size_t count) const {
    EXPECT_EQ(offset % 16, 0U);
    EXPECT_LE(offset + count * sizeof(T), step.bytes);
    const auto* from = reinterpret_cast<const T*>(staging_.data() + offset);
    return {from, from + count};
  }
  cuda::SampleRowParams sample(size_t i) const {
    return at<cuda::SampleRowParams>(step.sample_params, step.num_samples).at(i);
  }

 private:
  std::vector<std::byte> staging_;

 public:
  std::vector<CudaSlot> slots;
  StepPacker packer;
  cuda::StagedStep step{};
};

// Rows of (tokens, context); page numbers count up from 10.
StepPlan plan_of(const std::vector<std::pair<uint32_t, int32_t>>& rows) {
  StepPlan plan;
  plan.row_offsets = {0};
  plan.page_offsets = {0};
  TokenId next = 1;
  PageId page = 10;
  for (const auto& [tokens, context] : rows) {
    for (uint32_t i = 0; i < tokens; ++i) {
      plan.tokens.push_back(next++);
      plan.positions.push_back(context - static_cast<int32_t>(tokens - i));
    }
    plan.row_offsets.push_back(static_cast<uint32_t>(plan.tokens.size()));
    plan.context_lens.push_back(context);
    for (int32_t i = 0; i < (context + 15) / 16; ++i) plan.pages.push_back(page++);
    plan.page_offsets.push_back(static_cast<uint32_t>(plan.pages.size()));
  }
  return plan;
}

TEST(GraphBuckets, GoUpToTheBatch) {
  EXPECT_THAT(graph_buckets(1), ElementsAre(1));
  EXPECT_THAT(graph_buckets(12), ElementsAre(1, 2, 4, 8, 12));
  EXPECT_THAT(graph_buckets(80), ElementsAre(1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80));
  EXPECT_EQ(graph_buckets(512).size(), 4U + 7 + 12 + 8);
  EXPECT_EQ(graph_buckets(512).back(), 512U);
}

TEST(StepPacker, DecodeRowsComeFirst) {
  Packed p;
  StepPlan plan = plan_of({{3, 20}, {1, 33}, {2, 2}, {1, 5}});
  plan.samples = {{.row = 0, .slot = 4}, {.row = 1, .slot = 2}, {.row = 3, .slot = 1}};
  p.pack(plan);
  EXPECT_EQ(p.step.bucket, 0U) << "not of decode rows alone";
  EXPECT_EQ(p.step.num_decode_rows, 2U);
  EXPECT_EQ(p.step.max_context, 33U);
  EXPECT_THAT(p.at<uint32_t>(p.step.token_ids, 7), ElementsAre(4, 7, 1, 2, 3, 5, 6));
  EXPECT_THAT(p.at<int32_t>(p.step.positions, 7), ElementsAre(32, 4, 17, 18, 19, 0, 1));
  EXPECT_THAT(p.at<uint32_t>(p.step.row_offsets, 5), ElementsAre(0, 1, 2, 5, 7));
  EXPECT_THAT(p.at<int32_t>(p.step.context_lens, 4), ElementsAre(33, 5, 20, 2));
  // Pages of the plan: row 0 has 10 and 11, row 1 12 to 14, row 2 15, row 3 16.
  EXPECT_THAT(p.at<int32_t>(p.step.pages, 7), ElementsAre(12, 13, 14, 16, 10, 11, 15));
  EXPECT_THAT(p.at<uint32_t>(p.step.page_offsets, 5), ElementsAre(0, 3, 4, 6, 7));
  EXPECT_THAT(p.at<int64_t>(p.step.kv_slots, 7),
              ElementsAre(14 * 16 + 0, 16 * 16 + 4, 11 * 16 + 1, 11 * 16 + 2, 11 * 16 + 3, 15 * 16, 15 * 16 + 1));
  // Samples keep the plan's order: last tokens of rows 0, 1 and 3.
  EXPECT_THAT(p.at<int32_t>(p.step.sample_tokens, 3), ElementsAre(4, 0, 1));
  EXPECT_EQ(p.packer.first_token(0), 2U);
}

TEST(StepPacker, ABucketIsFilledUpWithPadding) {
  Packed p;
  StepPlan plan = plan_of({{1, 5}, {1, 17}, {1, 1}});
  plan.samples = {{.row = 0, .slot = 4}, {.row = 2, .slot = 2}};
  p.pack(plan);
  EXPECT_EQ(p.step.bucket, 4U);
  EXPECT_EQ(p.step.num_tokens, 4U);
  EXPECT_EQ(p.step.num_rows, 4U);
  EXPECT_EQ(p.step.num_samples, 4U);
  EXPECT_EQ(p.step.num_decode_rows, 4U);
  EXPECT_THAT(p.at<int64_t>(p.step.kv_slots, 4), ElementsAre(10 * 16 + 4, 12 * 16, 13 * 16, -1));
  EXPECT_THAT(p.at<int32_t>(p.step.context_lens, 4), ElementsAre(5, 17, 1, 0));
  EXPECT_THAT(p.at<uint32_t>(p.step.page_offsets, 5), ElementsAre(0, 1, 3, 4, 4));
  EXPECT_THAT(p.at<uint32_t>(p.step.row_offsets, 5), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(p.at<int32_t>(p.step.sample_tokens, 4), ElementsAre(0, 2, 0, 0));
  EXPECT_EQ(p.sample(3).counts_row, -1);
  EXPECT_EQ(p.sample(3).temperature, 0.0F);

  // Everything before the pages lies where the bucket alone says.
  const cuda::StagedStep first = p.step;
  auto padding = p.packer.pack_padding(4, 1, {});
  EXPECT_FALSE(padding.ok()) << "no room at all";
  Packed other;
  StepPlan longer = plan_of({{1, 60}, {1, 50}, {1, 40}, {1, 64}});
  longer.samples = {{.row = 3, .slot = 0}};
  other.pack(longer);
  EXPECT_EQ(other.step.bucket, 4U);
  EXPECT_EQ(other.step.pages, first.pages);
  EXPECT_EQ(other.step.sample_params, first.sample_params);
  EXPECT_EQ(other.step.bias_values, first.bias_values);
}

TEST(StepPacker, MoreSamplesThanRowsTakeALargerBucket) {
  Packed p;
  StepPlan plan = plan_of({{1, 5}});
  for (SlotId slot = 0; slot < 3; ++slot) plan.samples.push_back({.row = 0, .slot = slot});
  p.pack(plan);
  EXPECT_EQ(p.step.bucket, 4U);
  EXPECT_THAT(p.at<int32_t>(p.step.sample_tokens, 4), ElementsAre(0, 0, 0, 0));
}

TEST(StepPacker, TokensOfTheStepBefore) {
  Packed p;
  StepPlan plan = plan_of({{1, 5}, {1, 6}, {1, 7}});
  plan.tokens = {kTokenOfPreviousStep, 9, kTokenOfPreviousStep};
  plan.from_sample = {1, 0, 0};
  p.pack(plan, {33, kTokenOfPreviousStep});  // the host sampled the first of two
  EXPECT_THAT(p.at<uint32_t>(p.step.token_ids, 3), ElementsAre(kTokenOfPreviousStep, 9, 33));
  EXPECT_THAT(p.at<uint32_t>(p.step.from_sample, 3), ElementsAre(1, 0, 0));
}

TEST(StepPacker, SamplingParameters) {
  Packed p;
  const engine::SamplingParams penalised{
      .temperature = 0.5F, .top_k = 3, .top_p = 0.9F, .presence_penalty = 1, .seed = 8};
  const engine::SamplingParams biased{.temperature = 1, .top_k = 1, .logit_bias = {{3, 1.5F}, {99, 1}, {4, -2}}};
  p.slots[2].sampler.start(penalised, {}, {}, kVocab);
  p.slots[5].sampler.start(biased, {}, {}, kVocab);
  const std::vector<TokenId> stops = {7, 8, 77};
  StepPlan plan = plan_of({{1, 5}, {1, 6}});
  plan.samples = {{.row = 0, .slot = 2, .position = 41, .logprobs = 2, .mask_stop_tokens = true, .stop_tokens = stops},
                  {.row = 1, .slot = 5, .stop_tokens = stops}};
  p.pack(plan);
  EXPECT_EQ(p.step.bucket, 2U);
  EXPECT_EQ(p.step.any_top, 1U);
  const auto a = p.sample(0);
  EXPECT_EQ(a.seed, 8U);
  EXPECT_EQ(a.position, 41U);
  EXPECT_EQ(a.temperature, 0.5F);
  EXPECT_EQ(a.top_k, 3U);
  EXPECT_EQ(a.top_p, 0.9F);
  EXPECT_EQ(a.presence_penalty, 1.0F);
  EXPECT_EQ(a.counts_row, 2);
  EXPECT_EQ(a.logprobs, 2);
  EXPECT_EQ(a.mask_end - a.mask_begin, 2U) << "77 is no token of this vocabulary";
  EXPECT_THAT(p.at<uint32_t>(p.step.mask_tokens, 2), ElementsAre(7, 8));
  const auto b = p.sample(1);
  EXPECT_EQ(b.temperature, 0.0F) << "top_k = 1 is greedy";
  EXPECT_EQ(b.counts_row, -1);
  EXPECT_EQ(b.mask_begin, b.mask_end) << "not masked";
  EXPECT_EQ(b.bias_end - b.bias_begin, 2U) << "99 is no token either";
  EXPECT_THAT(p.at<uint32_t>(p.step.bias_tokens, 2), ElementsAre(3, 4));
  EXPECT_THAT(p.at<float>(p.step.bias_values, 2), ElementsAre(1.5F, -2.0F));
}

TEST(StepPacker, LongListsTakeNoGraph) {
  Packed p;
  std::vector<TokenId> stops(9);
  std::iota(stops.begin(), stops.end(), 1U);
  StepPlan plan = plan_of({{1, 5}, {1, 6}});
  plan.samples = {{.row = 0, .slot = 2, .mask_stop_tokens = true, .stop_tokens = stops}};
  p.pack(plan);
  EXPECT_EQ(p.step.bucket, 0U);
  EXPECT_EQ(p.step.num_samples, 1U);
  EXPECT_EQ(p.sample(0).mask_end, 9U);
}

TEST(StepPacker, WhatTheDeviceCannotSampleIsLeftToTheHost) {
  Packed p;
  p.slots[1].sampler.start({.temperature = 1, .bad_words = {{1, 2}}}, {}, {}, kVocab);
  p.slots[3].sampler.start({.temperature = 1}, {}, {}, kVocab);
  StepPlan plan = plan_of({{1, 5}, {1, 6}, {1, 7}});
  const std::vector<TokenId> many(2000, 3);
  plan.samples = {{.row = 0, .slot = 1},
                  {.row = 1, .slot = 2, .logprobs = 21},
                  {.row = 2, .slot = 3, .logprobs = 20},
                  {.row = 2, .slot = 4, .mask_stop_tokens = true, .stop_tokens = many}};
  p.pack(plan);
  EXPECT_TRUE(p.slots[1].on_host);
  EXPECT_TRUE(p.slots[2].on_host);
  EXPECT_FALSE(p.slots[3].on_host);
  EXPECT_TRUE(p.slots[4].on_host);
  EXPECT_EQ(p.sample(0).logprobs, -1) << "the device's answer is not looked at";
  EXPECT_EQ(p.sample(2).logprobs, 20);
}

TEST(StepPacker, StartsOfPenalisedSlotsAndPageCopies) {
  Packed p;
  const engine::SamplingParams penalised{.repetition_penalty = 2};
  const std::vector<TokenId> prompt = {5, 6, 5};
  const std::vector<TokenId> answer = {9};
  StepPlan plan = plan_of({{1, 5}});
  plan.slot_starts = {{.slot = 0, .sampling = {}, .prompt = prompt},
                      {.slot = 7, .sampling = penalised, .prompt = prompt, .generated = answer},
                      {.slot = 3, .sampling = penalised, .prompt = answer}};
  for (const SlotStart& start : plan.slot_starts)
    p.slots[start.slot].sampler.start(start.sampling, start.prompt, start.generated, kVocab);
  plan.page_copies = {{.from = 1, .to = 2}, {.from = 3, .to = 4}};
  p.pack(plan);
  EXPECT_THAT(p.at<int32_t>(p.step.copy_from, 2), ElementsAre(1, 3));
  EXPECT_THAT(p.at<int32_t>(p.step.copy_to, 2), ElementsAre(2, 4));
  ASSERT_EQ(p.step.num_count_starts, 2U) << "without penalties nothing is counted";
  const auto starts = p.at<cuda::CountStart>(p.step.count_starts, 2);
  EXPECT_EQ(starts[0].slot, 7U);
  EXPECT_EQ(starts[0].num_prompt, 3U);
  EXPECT_EQ(starts[0].num_generated, 1U);
  EXPECT_EQ(starts[1].begin, 4U);
  EXPECT_THAT(p.at<uint32_t>(p.step.count_tokens, 5), ElementsAre(5, 6, 5, 9, 9));
}

TEST(StepPacker, LongRopeAndPagesBehindTheWindow) {
  Packed p;
  StepPlan plan = plan_of({{1, 40}, {2, 2}});
  plan.pages[0] = kNoPage;
  plan.long_rope = {1, 0};
  p.pack(plan);
  EXPECT_THAT(p.at<uint8_t>(p.step.long_tokens, 3), ElementsAre(1, 0, 0));
  EXPECT_THAT(p.at<int32_t>(p.step.pages, 4), ElementsAre(-1, 11, 12, 13));
}

TEST(StepPacker, TheLargestStepFits) {
  Packed p;
  std::vector<std::pair<uint32_t, int32_t>> rows(kLimits.max_batch_size, {5, kMaxSeqLen});
  StepPlan plan = plan_of(rows);
  for (uint32_t r = 0; r < rows.size(); ++r) plan.samples.push_back({.row = r, .slot = r});
  p.pack(plan);
  EXPECT_EQ(p.step.num_tokens, 60U);
  std::vector<std::byte> small(1000);
  auto packed = p.packer.pack(plan, p.slots, {}, 0, small);
  ASSERT_FALSE(packed.ok());
  EXPECT_THAT(packed.error().message, HasSubstr("staging buffer's 1000 bytes"));
}

}  // namespace
}  // namespace dyn::native
