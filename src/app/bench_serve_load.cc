#include "app/bench_serve_load.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>

#include "net/event_loop.h"

namespace dyn::app::bench {
namespace {

using boost::asio::steady_timer;
using ErrorCode = boost::system::error_code;

// After a failure without an answer: a server that is down is not asked thousands of times a second.
constexpr std::chrono::milliseconds kPauseAfterFailure{100};

}  // namespace

// Everything but the mutex's part belongs to the loop's thread.
struct LoadGenerator::Impl {
  // One connection, one request at a time.
  struct Slot {
    Slot(net::EventLoop& loop, const LoadOptions& options)
        : client(loop, options.endpoint, {.timeout = options.timeout}), pause(loop.context()) {}
    net::HttpClient client;
    steady_timer pause;
    std::optional<AnswerReader> reader;  // while a request is under way
    uint32_t requested_tokens = 0;
  };

  Impl(LoadOptions load_options, const Workload& requests)
      : options(std::move(load_options)),
        workload(requests),
        loop(0, "load"),
        arrival(loop.context()),
        end_of_sending(loop.context()),
        random(options.seed) {
    headers = {{"Content-Type", "application/json"}, {"Accept", "text/event-stream"}};
    if (!options.api_key.empty()) headers.emplace_back("Authorization", "Bearer " + options.api_key);
  }

  void begin() {
    started = ServeClock::now();
    last_end = started;
    if (options.duration_s > 0) {
      end_of_sending.expires_at(started + seconds(options.duration_s));
      end_of_sending.async_wait([this](const ErrorCode& error) {
        if (!error) stop_sending();
      });
    }
    if (options.request_rate > 0) {
      next_arrival = started;
      wait_for_arrival();
    }
    send_due();
  }

  static ServeClock::duration seconds(double s) {
    return std::chrono::duration_cast<ServeClock::duration>(std::chrono::duration<double>(s));
  }

  // Times are absolute, so that lateness does not add up.
  void wait_for_arrival() {
    arrival.expires_at(next_arrival);
    arrival.async_wait([this](const ErrorCode& error) {
      if (error || !sending()) return;
      ++due;
      const double uniform = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
      next_arrival += seconds(-std::log(uniform) / options.request_rate);
      send_due();
      wait_for_arrival();
    });
  }

  [[nodiscard]] bool sending() const { return !stopped && (options.num_prompts == 0 || sent < options.num_prompts); }

  void stop_sending() {
    stopped = true;
    arrival.cancel();
    finish_if_done();
  }

  void send_due() {
    while (sending() && (options.request_rate == 0 || due > 0)) {
      Slot* slot = take_slot();
      if (slot == nullptr) return;
      if (due > 0) --due;
      send(*slot);
    }
    finish_if_done();
  }

  Slot* take_slot() {
    if (!idle.empty()) {
      Slot* slot = idle.back();
      idle.pop_back();
      return slot;
    }
    if (slots.size() >= options.max_concurrency) return nullptr;
    slots.push_back(std::make_unique<Slot>(loop, options));
    return slots.back().get();
  }

  void send(Slot& slot) {
    ServeRequest request = workload.request(options.first_request + sent);
    ++sent;
    ++running;
    totals.peak_concurrency = std::max(totals.peak_concurrency, running);
    slot.requested_tokens = request.output_tokens;
    slot.reader.emplace(ServeClock::now());
    slot.client.send({.method = "POST",
                      .target = options.path + std::string(workload.target()),
                      .headers = headers,
                      .body = std::move(request.body)},
                     {.on_head = [&slot](const net::HttpHead& head) { slot.reader->head(head); },
                      .on_body =
                          [&slot](std::string_view part) {
                            if (!slot.reader->body(part, ServeClock::now())) slot.client.cancel();
                          },
                      .on_end = [this, &slot](const Result<void>& ended) { end(slot, ended); }});
  }

  void end(Slot& slot, const Result<void>& ended) {
    last_end = ServeClock::now();
    AnswerOutcome outcome = slot.reader->end(ended, last_end);
    slot.reader.reset();
    --running;
    const bool pause = outcome.failure && !ended;
    count(outcome, slot.requested_tokens);
    if (!pause || !sending()) {
      idle.push_back(&slot);
      send_due();
      return;
    }
    slot.pause.expires_after(kPauseAfterFailure);
    slot.pause.async_wait([this, &slot](const ErrorCode&) {
      idle.push_back(&slot);
      send_due();
    });
  }

  void count(const AnswerOutcome& outcome, uint32_t requested_tokens) {
    if (outcome.cancelled) {
      ++totals.cancelled;
      return;
    }
    if (outcome.failure) {
      ++failed;
      FailureCount& kind = totals.failures[outcome.failure->kind];
      if (kind.count++ == 0) kind.example = outcome.failure->text;
      return;
    }
    ++completed;
    totals.input_tokens += outcome.input_tokens;
    totals.output_tokens += outcome.output_tokens;
    totals.requested_output_tokens += requested_tokens;
    totals.events += outcome.events;
    if (!outcome.has_usage) ++totals.without_usage;
    totals.ttft_us.push_back(outcome.ttft_us);
    totals.e2el_us.push_back(outcome.e2el_us);
    if (const auto tpot = outcome.tpot_us()) totals.tpot_us.push_back(*tpot);
    totals.itl_us.insert(totals.itl_us.end(), outcome.itl_us.begin(), outcome.itl_us.end());
  }

  void cancel_all() {
    totals.interrupted = true;
    stop_sending();
    for (const auto& slot : slots) {
      slot->client.cancel();
      slot->pause.cancel();
    }
  }

  void finish_if_done() {
    if (running > 0 || sending()) return;
    end_of_sending.cancel();
    arrival.cancel();
    {
      const std::lock_guard lock(mutex);
      done = true;
    }
    changed.notify_all();
  }

  const LoadOptions options;
  const Workload& workload;
  std::vector<std::pair<std::string, std::string>> headers;
  net::EventLoop loop;
  steady_timer arrival;
  steady_timer end_of_sending;
  std::mt19937_64 random;
  std::vector<std::unique_ptr<Slot>> slots;
  std::vector<Slot*> idle;
  ServeClock::time_point started;
  ServeClock::time_point last_end;
  ServeClock::time_point next_arrival;
  uint64_t due = 0;  // arrived, not sent
  uint64_t sent = 0;
  unsigned running = 0;
  bool stopped = false;
  LoadResult totals;
  std::atomic<uint64_t> completed = 0;
  std::atomic<uint64_t> failed = 0;

  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
};

LoadGenerator::LoadGenerator(LoadOptions options, const Workload& workload)
    : impl_(std::make_unique<Impl>(std::move(options), workload)) {}

LoadGenerator::~LoadGenerator() {
  impl_->loop.stop();
}

void LoadGenerator::start() {
  impl_->loop.start();
  impl_->loop.post([impl = impl_.get()] { impl->begin(); });
}

bool LoadGenerator::wait(std::chrono::milliseconds limit) {
  std::unique_lock lock(impl_->mutex);
  return impl_->changed.wait_for(lock, limit, [&] { return impl_->done; });
}

void LoadGenerator::interrupt() {
  impl_->loop.post([impl = impl_.get()] { impl->cancel_all(); });
}

LoadProgress LoadGenerator::progress() const {
  return {.completed = impl_->completed, .failed = impl_->failed};
}

LoadResult LoadGenerator::result() {
  impl_->loop.stop();
  LoadResult& totals = impl_->totals;
  totals.completed = impl_->completed;
  totals.failed = impl_->failed;
  totals.duration_s = std::chrono::duration<double>(impl_->last_end - impl_->started).count();
  for (auto* samples : {&totals.ttft_us, &totals.tpot_us, &totals.itl_us, &totals.e2el_us}) std::ranges::sort(*samples);
  return std::move(totals);
}

}  // namespace dyn::app::bench
