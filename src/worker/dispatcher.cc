#include "worker/dispatcher.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "base/log.h"
#include "worker/step_batch.h"

namespace dyn::worker {

namespace {

constexpr char kTarget[] = "worker";

// What a loop does before its sockets get a turn: new requests must not queue behind a large batch.
constexpr size_t kSendsPerTurn = 256;    // a few microseconds each
constexpr size_t kChunksPerTurn = 4096;  // some ten nanoseconds each

// RequestId: lane in the top 8 bits, generation of the slot in the next 32, slot in the lowest 24.
constexpr uint64_t kProbeLane = 0xFF;
constexpr uint64_t kSlotMask = 0xFF'FFFF;

constexpr engine::RequestId make_id(uint64_t lane, uint32_t generation, uint64_t slot) {
  return (lane << 56) | (static_cast<uint64_t>(generation) << 24) | slot;
}
constexpr uint64_t lane_of(engine::RequestId id) {
  return id >> 56;
}
constexpr uint32_t generation_of(engine::RequestId id) {
  return static_cast<uint32_t>(id >> 24);
}
constexpr size_t slot_of(engine::RequestId id) {
  return id & kSlotMask;
}

const llm::ErrorItem kMoveOn{.type = llm::ErrorType::kEngineShutdown,
                             .message = "Stream ended before generation completed"};

}  // namespace

// One net loop's sessions and the queue to it. All but ring() is touched on the loop's thread only.
class Dispatcher::Lane {
 public:
  Lane(Dispatcher& dispatcher, net::EventLoop& loop, uint64_t index)
      : dispatcher_(dispatcher), loop_(loop), index_(index), waker_(loop.add_waker([this] { drain(); })) {}

  [[nodiscard]] net::EventLoop& loop() const { return loop_; }

  engine::RequestId open(std::shared_ptr<runtime::ResponseStream> stream, OpenRequest request) {
    if (free_.empty()) {
      free_.push_back(sessions_.size());
      sessions_.push_back(std::make_unique<Session>(*this, sessions_.size()));
    }
    Session& session = *sessions_[free_.back()];
    free_.pop_back();
    session.stream = std::move(stream);
    session.request = std::move(request);
    session.id = make_id(index_, session.generation, session.slot);
    session.dirty = false;
    session.stream->set_observer(&session);
    dispatcher_.counters_.opened.fetch_add(1, std::memory_order_relaxed);
    dispatcher_.open_requests_.fetch_add(1, std::memory_order_relaxed);
    return session.id;
  }

  void reject(engine::RequestId id, const Error& error) {
    Session* session = find(id);
    if (session == nullptr) return;
    // Newer frontends hide the text from the client, so the operator must find it here.
    log::write(log::Level::kInfo, kTarget, "request refused",
               {{"request_id", session->request.request_id}, {"reason", error.message}});
    end_with_error(*session, llm::to_error_item(error));
    dispatcher_.counters_.rejected.fetch_add(1, std::memory_order_relaxed);
  }

  void finish_empty(engine::RequestId id, uint32_t prompt_tokens, uint32_t choices) {
    Session* session = find(id);
    if (session == nullptr) return;
    for (uint32_t choice = 1; choice < choices; ++choice)
      write(*session, {.finish = llm::FinishReason::kLength, .index = choice});
    write(*session, {.finish = llm::FinishReason::kLength,
                     .usage = llm::Usage{.prompt_tokens = prompt_tokens, .cached_tokens = 0}});
    finish(*session);
  }

  void abandon_all() {
    for (const auto& session : sessions_) {
      if (!session->stream) continue;
      dispatcher_.engine_->abort(session->id);
      write_error(*session, kMoveOn);
      session->stream->flush();
      session->stream->abandon();
      dispatcher_.counters_.abandoned.fetch_add(1, std::memory_order_relaxed);
      close(*session);
    }
  }

  // Engine thread.
  void collect(const engine::RequestOutput& output) {
    if (!filling_) filling_ = ring_.take_empty();
    filling_->add(output);
  }
  void hand_over() {
    if (!filling_) return;
    ring_.push(std::move(filling_));
    waker_->wake();
  }

 private:
  struct Session final : runtime::ResponseStream::Observer {
    Session(Lane& owner, size_t at) : lane(owner), slot(at) {}
    void on_cancel(runtime::CancelKind kind) override { lane.cancelled(*this, kind); }

    Lane& lane;
    size_t slot;
    uint32_t generation = 0;
    engine::RequestId id = 0;
    std::shared_ptr<runtime::ResponseStream> stream;  // empty: the slot is free
    OpenRequest request;
    bool dirty = false;  // has frames that are not flushed
  };

  Session* find(engine::RequestId id) {
    const size_t slot = slot_of(id);
    if (slot >= sessions_.size()) return nullptr;
    Session& session = *sessions_[slot];
    return session.stream && session.generation == generation_of(id) ? &session : nullptr;
  }

  void close(Session& session) {
    session.stream->set_observer(nullptr);
    session.stream.reset();
    session.request = {};
    ++session.generation;  // late outputs of the engine no longer find it
    free_.push_back(session.slot);
    dispatcher_.open_requests_.fetch_sub(1, std::memory_order_relaxed);
  }

  static void write(Session& session, const llm::OutputChunk& chunk) {
    llm::encode_chunk(session.stream->begin_item(), session.request.codec, chunk);
    session.stream->end_item();
  }

  static void write_error(Session& session, const llm::ErrorItem& item) {
    llm::encode_error(session.stream->begin_item(), session.request.codec, item);
    session.stream->end_item();
  }

  void finish(Session& session) {
    session.stream->finish();
    dispatcher_.counters_.finished.fetch_add(1, std::memory_order_relaxed);
    close(session);
  }

  void end_with_error(Session& session, const llm::ErrorItem& item) {
    write_error(session, item);
    session.stream->finish();
    close(session);
  }

  void cancelled(Session& session, runtime::CancelKind kind) {
    dispatcher_.engine_->abort(session.id);
    DYN_DEBUG(kTarget, "Aborted Request ID: {} ({})", session.request.request_id, runtime::to_string(kind));
    switch (kind) {
      case runtime::CancelKind::kStop:
        write(session, {.finish = llm::FinishReason::kCancelled});
        session.stream->finish();
        break;
      case runtime::CancelKind::kTooSlow:
        dispatcher_.counters_.too_slow.fetch_add(1, std::memory_order_relaxed);
        log::write(log::Level::kWarn, kTarget, "response stream ended: its reader is too slow",
                   {{"request_id", session.request.request_id},
                    {"buffered_bytes", std::to_string(session.stream->buffered_bytes())}});
        write_error(session, {.type = llm::ErrorType::kUnknown, .message = "the reader of this stream is too slow"});
        session.stream->finish();
        break;
      case runtime::CancelKind::kKill:
      case runtime::CancelKind::kGone:
        break;
    }
    dispatcher_.counters_.cancelled.fetch_add(1, std::memory_order_relaxed);
    close(session);
  }

  // Encode, then send. A turn sends for at most kSendsPerTurn streams, so that the loop's sockets are heard in between.
  // While further steps wait, encoding goes on first: one send for several chunks costs less and arrives no later.
  void drain() {
    for (size_t chunks = 0; chunks < kChunksPerTurn; ++chunks) {
      if (!current_) {
        if (!ring_.pop(current_)) break;
        cursor_ = 0;
      }
      if (cursor_ < current_->entries.size()) deliver(current_->entries[cursor_++]);
      if (cursor_ == current_->entries.size()) ring_.give_back(std::move(current_));
      if (dirty_.size() - flushed_ >= kSendsPerTurn && !ring_.has_more()) break;
    }
    for (size_t sends = 0; sends < kSendsPerTurn && flushed_ < dirty_.size(); ++sends) {
      Session* session = find(dirty_[flushed_++]);
      if (session != nullptr && session->dirty) flush(*session);
    }
    if (flushed_ == dirty_.size()) {
      dirty_.clear();
      flushed_ = 0;
    }
    if (current_ || ring_.has_more() || !dirty_.empty()) waker_->wake();
  }

  static void flush(Session& session) {
    session.dirty = false;
    session.stream->flush();
  }

  void deliver(const StepBatch::Entry& entry) {
    Session* session = find(entry.id);
    if (session == nullptr) return;  // cancelled meanwhile
    if (entry.finish == engine::FinishReason::kError) {
      const Error& error = current_->errors[entry.error];
      log::write(log::Level::kWarn, kTarget, "request failed",
                 {{"request_id", session->request.request_id}, {"reason", error.message}});
      end_with_error(*session, llm::to_error_item(error));
      dispatcher_.counters_.rejected.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    const StepBatch& batch = *current_;
    const auto part = [](const auto& v, uint32_t begin, uint32_t end) {
      return std::span(v).subspan(begin, end - begin);
    };
    llm::OutputChunk chunk{.tokens = part(batch.tokens, entry.tokens_begin, entry.tokens_end),
                           .logprobs = part(batch.logprobs, entry.logprobs_begin, entry.logprobs_end),
                           .top = part(batch.top, entry.top_begin, entry.top_end),
                           .top_width = entry.top_width,
                           .finish = entry.finish};
    if (entry.choice > 0) chunk.index = entry.choice;
    const auto& user_stops = session->request.user_stop_ids;
    if (entry.stop_token && std::find(user_stops.begin(), user_stops.end(), *entry.stop_token) != user_stops.end()) {
      chunk.stop_token = entry.stop_token;
    }
    if (entry.finish == engine::FinishReason::kNone || entry.more_choices) {
      write(*session, chunk);
      if (!session->dirty) {
        session->dirty = true;
        dirty_.push_back(entry.id);
      }
      return;
    }
    chunk.prompt_logprobs = part(batch.prompt_logprobs, entry.prompt_begin, entry.prompt_end);
    chunk.prompt_top_width = entry.prompt_top_width;
    chunk.usage = llm::Usage{.prompt_tokens = entry.prompt_tokens,
                             .completion_tokens = entry.completion_tokens,
                             .cached_tokens = entry.cached_tokens};
    chunk.kv_cache_hit = llm::KvCacheHit{.prompt_tokens = entry.prompt_tokens, .reused_tokens = entry.cached_tokens};
    write(*session, chunk);
    finish(*session);
  }

  Dispatcher& dispatcher_;
  net::EventLoop& loop_;
  const uint64_t index_;
  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<size_t> free_;
  std::vector<engine::RequestId> dirty_;  // have frames to send, in order of their first one
  size_t flushed_ = 0;                    // of dirty_
  std::unique_ptr<StepBatch> current_;    // partly delivered
  size_t cursor_ = 0;

  StepRing ring_;
  std::unique_ptr<StepBatch> filling_;  // engine thread
  std::shared_ptr<net::Waker> waker_;
};

Dispatcher::Dispatcher(net::LoopPool& loops) {
  assert(loops.size() < kProbeLane);
  for (unsigned i = 0; i < loops.size(); ++i) lanes_.push_back(std::make_unique<Lane>(*this, loops.at(i), i));
}

Dispatcher::~Dispatcher() = default;

engine::RequestId Dispatcher::open(std::shared_ptr<runtime::ResponseStream> stream, OpenRequest request) {
  Lane& lane = *lanes_[stream->loop().index()];
  return lane.open(std::move(stream), std::move(request));
}

void Dispatcher::reject(engine::RequestId id, const Error& error) {
  lanes_[lane_of(id)]->reject(id, error);
}

void Dispatcher::finish_empty(engine::RequestId id, uint32_t prompt_tokens, uint32_t choices) {
  lanes_[lane_of(id)]->finish_empty(id, prompt_tokens, choices);
}

engine::RequestId Dispatcher::open_probe(std::function<void(Result<void>)> done) {
  const std::lock_guard lock(probes_mutex_);
  const auto id = (kProbeLane << 56) | next_probe_++;
  probes_.emplace(id, std::move(done));
  return id;
}

void Dispatcher::close_probe(engine::RequestId id) {
  const std::lock_guard lock(probes_mutex_);
  probes_.erase(id);
}

void Dispatcher::finish_probe(engine::RequestId id, Result<void> result) {
  std::function<void(Result<void>)> done;
  {
    const std::lock_guard lock(probes_mutex_);
    const auto found = probes_.find(id);
    if (found == probes_.end()) return;
    done = std::move(found->second);
    probes_.erase(found);
  }
  done(std::move(result));
}

void Dispatcher::abandon_all() {
  for (const auto& lane : lanes_) lane->loop().post([&lane] { lane->abandon_all(); });
}

void Dispatcher::on_step(const engine::StepOutput& step) noexcept {
  for (const auto& output : step.requests) {
    const auto lane = lane_of(output.id);
    if (lane == kProbeLane) {
      finish_probe(output.id, output.error != nullptr ? Result<void>(*output.error) : Result<void>());
    } else {
      lanes_[lane]->collect(output);
    }
  }
  for (const auto& lane : lanes_) lane->hand_over();
  if (on_output_ && !step.requests.empty()) on_output_();
  if (on_kv_events_ && !step.kv_events.empty()) on_kv_events_(step.kv_events);
}

void Dispatcher::on_fatal(const Error& error) noexcept {
  std::vector<engine::RequestId> probes;
  {
    const std::lock_guard lock(probes_mutex_);
    for (const auto& [id, done] : probes_) probes.push_back(id);
  }
  for (const auto id : probes) finish_probe(id, error);
  abandon_all();
  if (on_fatal_) on_fatal_(error);
}

}  // namespace dyn::worker
