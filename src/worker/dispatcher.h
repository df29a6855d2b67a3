// Dispatcher: from the engine thread to the response streams. Once a step it hands each net loop ONE batch and ONE
// wake-up; the loop encodes a chunk per stream and writes it. Nothing on this path allocates or locks in steady state.
//
//   Dispatcher dispatcher(loops);
//   engine->start(dispatcher);
//   // on a net loop, for an incoming request:
//   engine::RequestId id = dispatcher.open(stream, {.codec = codec, .request_id = control.id});
//   if (auto ok = engine->submit(...id...); !ok) dispatcher.reject(id, ok.error());
//
// Every opened request ends in exactly one way: finished by the engine, rejected, cancelled by its caller (the engine
// is told to abort), or abandoned at shutdown so that the frontend moves it to another worker. Ownership: loops and
// engine outlive the dispatcher's use; streams are held until their request ends. Thread rules: open(), reject(),
// finish_empty() on the stream's loop; on_step(), on_fatal() on the engine thread; the rest from any thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "llm/output.h"
#include "net/event_loop.h"
#include "runtime/request_plane/response_stream.h"

namespace dyn::worker {

// What the dispatcher needs to know about a request to write its answer.
struct OpenRequest {
  llm::Codec codec = llm::Codec::kJson;
  std::string request_id;                   // for logs
  std::vector<llm::TokenId> user_stop_ids;  // stop tokens that the client named: reported as stop_reason
};

struct DispatcherCounters {
  std::atomic<uint64_t> opened{0};
  std::atomic<uint64_t> finished{0};
  std::atomic<uint64_t> rejected{0};
  std::atomic<uint64_t> cancelled{0};
  std::atomic<uint64_t> too_slow{0};
  std::atomic<uint64_t> abandoned{0};
};

class Dispatcher final : public engine::Observer {
 public:
  explicit Dispatcher(net::LoopPool& loops);
  ~Dispatcher() override;

  // Who is told to abort. Must be set before the first open().
  void set_engine(engine::Engine* engine) { engine_ = engine; }
  // Called on the engine thread when the engine died, after every open request was told to move on.
  void set_on_fatal(std::function<void(const Error&)> callback) { on_fatal_ = std::move(callback); }
  // Called on the engine thread once a step that handed out tokens; must be cheap. Set it while nothing is open.
  void set_on_output(std::function<void()> callback) { on_output_ = std::move(callback); }
  // Called on the engine thread with the KV events of a step, if there are any; must be cheap. Set it before the engine
  // starts.
  using OnKvEvents = std::function<void(std::span<const llm::KvEvent>)>;
  void set_on_kv_events(OnKvEvents callback) { on_kv_events_ = std::move(callback); }

  engine::RequestId open(std::shared_ptr<runtime::ResponseStream> stream, OpenRequest request);
  // One error item, then the end of the stream: the status that the error stands for reaches the user.
  void reject(engine::RequestId id, const Error& error);
  // The whole answer of each choice is "length" without a token: max_tokens 0.
  void finish_empty(engine::RequestId id, uint32_t prompt_tokens, uint32_t choices = 1);

  // A request of the worker itself (warm-up, canary): no stream; `done` is called on the engine thread with the first
  // output. Returns the id to submit with.
  engine::RequestId open_probe(std::function<void(Result<void>)> done);
  void close_probe(engine::RequestId id);

  // Ends every open request with the error that makes frontends try another worker.
  void abandon_all();

  [[nodiscard]] const DispatcherCounters& counters() const { return counters_; }
  [[nodiscard]] size_t open_requests() const { return open_requests_.load(std::memory_order_relaxed); }

  void on_step(const engine::StepOutput& step) noexcept override;
  void on_fatal(const Error& error) noexcept override;

 private:
  class Lane;  // everything of one net loop

  void finish_probe(engine::RequestId id, Result<void> result);

  std::vector<std::unique_ptr<Lane>> lanes_;
  engine::Engine* engine_ = nullptr;
  std::function<void(const Error&)> on_fatal_;
  std::function<void()> on_output_;
  OnKvEvents on_kv_events_;
  DispatcherCounters counters_;
  std::atomic<size_t> open_requests_{0};

  std::mutex probes_mutex_;  // probes are rare; never taken for a stream's tokens
  std::unordered_map<engine::RequestId, std::function<void(Result<void>)>> probes_;
  uint64_t next_probe_ = 0;
};

}  // namespace dyn::worker
