#include <cstddef>

#include "native/exec/cuda/kernels/kernels_check.cuh"
#include "native/exec/cuda/kernels/sample.h"
#include "native/sample/sampler.h"

namespace dyn::native::cuda {
namespace {

struct Row {
  engine::SamplingParams params;
  std::vector<TokenId> prompt;
  std::vector<TokenId> generated;
  std::vector<TokenId> masked;
  uint64_t position = 0;
  int32_t logprobs = -1;
};

// Rows through both samplers. Returns how many tokens differ; the rest must agree.
int compare(const std::string& name, uint32_t vocab, const std::vector<float>& logits, const std::vector<Row>& rows,
            int tolerated) {
  const auto count = static_cast<uint32_t>(rows.size());
  std::vector<SampleRowParams> device_rows;
  std::vector<uint32_t> masks;
  Device<uint32_t> counts(size_t{count} * vocab);
  for (uint32_t r = 0; r < count; ++r) {
    const engine::SamplingParams& p = rows[r].params;
    SampleRowParams d{.seed = p.seed,
                      .position = rows[r].position,
                      .temperature = p.temperature,
                      .top_k = p.top_k,
                      .top_p = p.top_p,
                      .min_p = p.min_p,
                      .repetition_penalty = p.repetition_penalty,
                      .presence_penalty = p.presence_penalty,
                      .frequency_penalty = p.frequency_penalty,
                      .logprobs = rows[r].logprobs,
                      .logits_row = r};
    d.mask_begin = static_cast<uint32_t>(masks.size());
    masks.insert(masks.end(), rows[r].masked.begin(), rows[r].masked.end());
    d.mask_end = static_cast<uint32_t>(masks.size());
    if (p.has_penalties()) {
      d.counts_row = static_cast<int32_t>(r);
      std::vector<uint32_t> tokens(rows[r].prompt);
      tokens.insert(tokens.end(), rows[r].generated.begin(), rows[r].generated.end());
      Device<uint32_t> seen(tokens);
      require(launch_count_tokens({.counts = counts.get() + size_t{r} * vocab,
                                   .tokens = seen.get(),
                                   .num_prompt = static_cast<uint32_t>(rows[r].prompt.size()),
                                   .num_generated = static_cast<uint32_t>(rows[r].generated.size()),
                                   .vocab = vocab},
                                  {}),
              "count_tokens");
      require(cudaDeviceSynchronize(), "count_tokens");
    }
    device_rows.push_back(d);
  }
  masks.push_back(0);
  Device<float> dlogits(logits), scores(size_t{count} * vocab), logprobs(count);
  Device<SampleRowParams> drows(device_rows);
  Device<uint32_t> dmasks(masks), list(size_t{count} * vocab), tokens(count);
  Device<std::byte> pieces(sample_pieces_bytes(count, vocab));
  Device<TopLogprobOut> top(size_t{count} * kMaxTopLogprobs);
  Device<uint8_t> not_finite(count);
  require(launch_sample({.logits = dlogits.get(),
                         .rows = drows.get(),
                         .mask_tokens = dmasks.get(),
                         .counts = counts.get(),
                         .scores = scores.get(),
                         .list = list.get(),
                         .pieces = pieces.get(),
                         .tokens = tokens.get(),
                         .logprobs = logprobs.get(),
                         .top = top.get(),
                         .not_finite = not_finite.get(),
                         .num_rows = count,
                         .vocab = vocab},
                        {.stream = nullptr, .overlap = true}),
          "sample");
  const auto got = tokens.host();
  const auto got_logprobs = logprobs.host();
  const auto got_top = top.host();
  const auto got_bad = not_finite.host();

  Sampler sampler(vocab);
  int different = 0;
  double logprob_error = 0;
  for (uint32_t r = 0; r < count; ++r) {
    SamplerSlot slot;
    slot.start(rows[r].params, rows[r].prompt, rows[r].generated, vocab);
    const SampleRow row{.row = r,
                        .slot = 0,
                        .position = rows[r].position,
                        .logprobs = rows[r].logprobs,
                        .mask_stop_tokens = true,
                        .stop_tokens = rows[r].masked};
    std::vector<engine::TopLogprob> best(static_cast<size_t>(std::max(0, rows[r].logprobs)));
    const Sample expected = sampler.sample(std::span(logits).subspan(size_t{r} * vocab, vocab), slot, row, best);
    if (expected.not_finite != (got_bad[r] != 0)) {
      ++different;
      std::printf("  row %u: finite differs\n", r);
      continue;
    }
    if (expected.token != got[r]) {
      ++different;
      if (different > tolerated) std::printf("  row %u: %u instead of %u\n", r, got[r], expected.token);
      continue;
    }
    if (expected.not_finite || rows[r].logprobs < 0) continue;
    logprob_error = std::max(logprob_error, std::abs(double(expected.logprob) - got_logprobs[r]));
    for (size_t i = 0; i < best.size(); ++i) {
      const TopLogprobOut& t = got_top[size_t{r} * kMaxTopLogprobs + i];
      if (t.id != best[i].id) logprob_error = 1e9;
      logprob_error = std::max(logprob_error, std::abs(double(best[i].logprob) - t.logprob));
    }
  }
  report(name + ", tokens", different, tolerated);
  report(name + ", log-probabilities", logprob_error, 2e-5);
  return different;
}

}  // namespace

void check_sample() {
  for (const uint32_t vocab : {97U, 5000U, 151'936U, 262'208U}) {
    for (const float spread : {0.01F, 3.0F}) {
      Rng rng(vocab);
      std::vector<Row> rows;
      auto add = [&](const engine::SamplingParams& params, int32_t logprobs = -1) -> Row& {
        rows.push_back({.params = params, .position = rows.size(), .logprobs = logprobs});
        rows.back().params.seed = rng();
        return rows.back();
      };
      add({.temperature = 0.0F}, 5);
      add({.temperature = 0.0F}).masked = {1, 2, 3};
      for (int i = 0; i < 4; ++i) {
        add({.temperature = 1.0F});
        add({.temperature = 0.7F, .top_p = 0.9F}, 0);
        add({.temperature = 1.3F, .top_k = 50}, 20);
        add({.temperature = 0.8F, .top_k = 40, .top_p = 0.95F, .min_p = 0.02F});
        add({.temperature = 1.0F, .min_p = 0.1F});
        add({.temperature = 5.0F, .top_k = 90, .top_p = 0.5F});
        add({.temperature = 0.05F, .top_k = 3});
        Row& row = add({.temperature = 0.9F,
                        .top_k = 20,
                        .repetition_penalty = 1.2F,
                        .presence_penalty = 0.3F,
                        .frequency_penalty = 0.1F},
                       2);
        for (int j = 0; j < 60; ++j) row.prompt.push_back(static_cast<TokenId>(rng() % vocab));
        for (int j = 0; j < 60; ++j) row.generated.push_back(static_cast<TokenId>(rng() % std::min(vocab, 90U)));
        row.masked = {0, 5, 96};
      }
      std::vector<float> logits = random_floats(rng, rows.size() * vocab, spread);
      // Nearly flat rows are the hard case: rounding of exponentials may move a draw to a neighbour.
      // Many equals, so that ties at the edge of top-k are common.
      for (size_t i = 0; i < size_t{6} * vocab; ++i) logits[i] = std::round(logits[i] * 4) / 4;
      compare("sample vocab=" + std::to_string(vocab) + " spread=" + std::to_string(spread), vocab, logits, rows,
              spread < 0.1F ? 2 : 0);
    }
  }
  // NaN, +inf, nothing but -inf; the rows beside them are unharmed.
  const uint32_t vocab = 5000;
  Rng rng(1);
  std::vector<Row> rows(5);
  for (Row& row : rows) row.params.temperature = 0.0F;
  std::vector<float> logits = random_floats(rng, rows.size() * vocab, 1.0F);
  logits[1 * vocab + 4999] = NAN;
  logits[2 * vocab] = INFINITY;
  std::fill_n(logits.begin() + 3 * vocab, vocab, -INFINITY);
  rows[3].params.temperature = 1.0F;
  compare("sample, not finite", vocab, logits, rows, 0);
}

}  // namespace dyn::native::cuda
