// SteppedEngine: an Engine made of a Stepper and one thread. Everything that engines have in common lives here: checks
// of a request, the queue limit, the inbox, drain, stop, health, the published statistics.
//
//   SteppedEngine engine(std::move(stepper), {.max_queue_size = 1024});
//   engine.start(observer);
//
// Statistics and the place in the queue are updated before a step is handed out, so an observer that submits the next
// request on seeing the last token of another is not refused for want of a place. Ownership: owns the stepper. Thread
// rules: those of Engine; the stepper runs on the engine thread only, prepare() apart.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/event_count.h"
#include "engine/inbox.h"
#include "engine/stepper.h"

namespace dyn::engine {

struct SteppedEngineOptions {
  // Requests that may wait beside the max_batch_size that may run; beyond them submit() says kOverloaded.
  uint32_t max_queue_size = 4096;
  std::string thread_name = "engine";
};

// What is wrong with a request for an engine of these capabilities, if anything. Also brings it into the form steppers
// expect: max_tokens cut to the context, stop tokens and bad words outside of the vocabulary dropped (they cannot be
// generated).
Result<void> normalize(Request& request, const Caps& caps);

class SteppedEngine final : public Engine {
 public:
  SteppedEngine(std::unique_ptr<Stepper> stepper, SteppedEngineOptions options);
  ~SteppedEngine() override;

  [[nodiscard]] Caps caps() const override { return caps_; }
  Result<void> start(Observer& observer) override;
  Result<void> submit(Request request) override;
  void abort(RequestId id) noexcept override;
  [[nodiscard]] Stats stats() const override;
  [[nodiscard]] Health health() const override;
  bool drain(std::chrono::milliseconds deadline) override;
  void stop() noexcept override;

 private:
  // Statistics as other threads read them. Each number is whole; together they may be of two steps.
  struct PublishedStats {
    std::atomic<uint64_t> steps{0}, kv_blocks_used{0}, kv_blocks_total{0}, requests_finished{0}, requests_aborted{0},
        tokens_generated{0}, prompt_tokens{0}, prompt_tokens_cached{0}, preemptions{0}, kv_block_hits{0},
        kv_block_misses{0}, kv_block_evictions{0};
    std::atomic<uint32_t> running{0}, waiting{0};

    void store(const Stats& stats);
    [[nodiscard]] Stats load() const;
  };

  void run();
  void take_commands();
  // Requests that ended since the last call.
  uint64_t count_ended();
  void finished(uint64_t count);
  void die(const Error& error);

  const std::unique_ptr<Stepper> stepper_;
  const SteppedEngineOptions options_;
  const Caps caps_;
  const uint64_t max_open_;

  Inbox inbox_;
  std::atomic<Health> health_{Health::kStarting};
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> open_{0};         // accepted, not ended: what the queue limit counts
  std::atomic<uint64_t> undelivered_{0};  // accepted, end not yet handed out: what drain() waits for
  EventCount drained_;
  PublishedStats published_;

  // Engine thread only.
  Observer* observer_ = nullptr;
  std::vector<Command> commands_;
  uint64_t taken_ = 0;
  uint64_t ended_ = 0;

  std::thread thread_;
};

}  // namespace dyn::engine
