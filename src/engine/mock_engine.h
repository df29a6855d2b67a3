// The mock engine: an engine without a model, for tests, demos and latency benchmarks of everything around an engine.
//
//   auto engine = make_mock_engine({.step_ms = 10});
//   engine->start(observer);
//
// Every step gives each running request one token; the prompt costs nothing. The tokens are a fixed function of the
// prompt (mock_token), an echo of the prompt, or the time of the hand-out. Sampling parameters are accepted and change
// nothing. KV blocks are counted as a real engine holds them (whole blocks, reserved for prompt + max_tokens on
// admission, so a request waits when they run out), but there is no reuse: cached_tokens is 0, and no KV events.
// Nothing is allocated per token. Thread rules: those of Engine.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "engine/engine.h"
#include "engine/stepper.h"

namespace dyn::engine {

enum class MockTokens : uint8_t {
  kHash,       // mock_token(): looks random, the same for the same prompt
  kEcho,       // the prompt, over and over
  kTimestamp,  // microseconds from timestamp_base to the hand-out, modulo vocab_size
};

struct MockOptions {
  double step_ms = 10;  // time of a step; 0: as fast as possible
  MockTokens tokens = MockTokens::kHash;
  std::chrono::steady_clock::time_point timestamp_base;

  uint32_t vocab_size = 32'000;
  uint32_t max_batch_size = 256;
  uint32_t max_seq_len = 4096;  // lowered to what all KV blocks together can hold
  uint32_t kv_block_size = 32;
  uint64_t total_kv_blocks = 16'384;
  uint32_t max_logprobs = 20;
  uint32_t max_queue_size = 4096;

  // Faults, for tests of what must happen then.
  std::optional<uint64_t> die_after_steps;    // the engine is dead at this step: on_fatal
  std::optional<uint64_t> stall_after_steps;  // no step follows, aborts have no effect; only stop() is obeyed
  std::optional<TokenId> error_on_token;      // a prompt with this token ends with kError in its first step
};

// The token that kHash gives at `index` (0: the first of the answer). Ids 0, 1 and 2 are spared where the vocabulary
// allows, so that the usual bos, eos and pad do not end an answer by chance.
TokenId mock_token(std::span<const TokenId> prompt, uint32_t index, uint32_t vocab_size);

std::unique_ptr<Engine> make_mock_engine(const MockOptions& options);

// The core without a thread; `step_ms` still counts.
std::unique_ptr<Stepper> make_mock_stepper(const MockOptions& options);

}  // namespace dyn::engine
