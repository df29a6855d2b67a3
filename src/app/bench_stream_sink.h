// Sink: one thread that plays the frontend for N streams at once: sends the requests, accepts the calls home, reads
// every item, and measures a worker process over a window of steady streaming.
//
//   Sink sink(options);
//   if (auto ready = sink.listen(); !ready) ...
//   Result<SinkReport> report = sink.run(targets);     // returns when all streams have ended
//   // or, for a sender that needs no request: sink.run({});
//
// A stream asks for a fixed number of tokens, so that a lost, doubled or misplaced token shows. The window opens when
// every stream flows, and is cut in the pauses between two bursts, so that tokens and CPU time belong together. Reading
// is cheap (one recv for each readiness event, no decoding), because on a small machine the sink shares the processors
// with what it measures. Ownership: owns its sockets. Thread rules: one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "app/bench_stream_protocol.h"
#include "app/bench_stream_stats.h"
#include "base/buffer.h"
#include "base/posix.h"
#include "base/result.h"

namespace dyn::app::bench {

struct SinkOptions {
  unsigned streams = 1;
  uint32_t tokens_per_stream = 0;
  Codec codec = Codec::kMsgpack;  // of streams without a request
  std::string model = "bench";
  uint32_t prompt_tokens = 16;
  pid_t pid = 0;                      // process to measure; 0: none
  bool stamped = true;                // token ids are stamp_now() of the engine's hand-out
  std::chrono::microseconds step{0};  // the sender's pace if known: where pauses are looked for
  std::chrono::milliseconds settle{500};
  std::chrono::milliseconds window{3000};
  std::chrono::milliseconds ramp_limit{30000};  // until every stream has its first token
  std::chrono::milliseconds tail_limit{30000};  // from the window's end until every stream has ended
};

struct SinkReport {
  unsigned streams = 0;
  double window_s = 0;
  double ramp_s = 0;                   // first request until the last stream's first token
  uint64_t tokens = 0;                 // in the window
  uint64_t bytes = 0;                  // in the window, framing included
  uint64_t total_tokens = 0;           // of the whole run
  uint64_t lost_tokens = 0;            // asked for and not received
  uint64_t extra_tokens = 0;           // received beyond what was asked for
  uint64_t misordered = 0;             // stamps that go back within a stream
  unsigned unfinished = 0;             // streams without complete-final and sentinel
  bool window_cut_short = false;       // streams ended before the window did: its figures do not stand
  std::vector<uint32_t> latency_us;    // hand-out to sink, ascending; empty without stamps
  ProcessUsage usage;                  // of options.pid in the window
  double sink_cpu_us = 0;              // the sink's own, in the window
  double others_cpus = 0;              // CPUs that other processes kept busy in the window: noise
  std::vector<std::byte> sample_item;  // one item with one token as it came

  [[nodiscard]] double cpu_us_per_token() const {
    return tokens == 0 ? 0 : static_cast<double>(usage.cpu_ns) / 1e3 / static_cast<double>(tokens);
  }
  [[nodiscard]] bool lossless() const {
    return lost_tokens == 0 && extra_tokens == 0 && misordered == 0 && unfinished == 0;
  }
};

class Sink {
 public:
  explicit Sink(SinkOptions options);
  ~Sink();
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;

  Result<void> listen();
  [[nodiscard]] const std::string& address() const { return address_; }  // "127.0.0.1:port"
  // The process to measure, when it is known only after listen().
  void measure(pid_t pid) { options_.pid = pid; }

  // Requests go round robin to `targets`; with none the sink only waits for calls home.
  Result<SinkReport> run(const std::vector<Target>& targets);

 private:
  using Clock = std::chrono::steady_clock;
  enum class Phase : uint8_t { kRamp, kSettle, kOpening, kWindow, kClosing, kTail };
  struct Stream;
  struct Connection;
  struct RequestLink;

  Result<void> connect_targets(const std::vector<Target>& targets);
  Result<void> send_requests();
  Result<void> read_acks(RequestLink& link);
  Result<void> accept_calls();
  Result<void> read_stream(Connection& connection, bool closing);
  Result<void> take_bytes(Connection& connection, Bytes bytes);
  Result<size_t> parse(Connection& connection, Bytes bytes);
  Result<void> handle_header(Connection& connection, std::string_view header);
  Result<void> handle_item(Connection& connection, Bytes item);
  Result<void> end_stream(Connection& connection);
  Result<void> advance(Clock::time_point now, bool idle);
  Result<void> open_window();
  Result<void> close_window();
  [[nodiscard]] int wait_ms(Clock::time_point now) const;
  [[nodiscard]] std::string describe_stall() const;

  SinkOptions options_;
  std::string address_;
  UniqueFd epoll_;
  UniqueFd listener_;
  std::vector<Target> targets_;
  std::vector<std::unique_ptr<RequestLink>> links_;
  std::vector<Stream> streams_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<std::byte> scratch_;

  Phase phase_ = Phase::kRamp;
  Clock::time_point phase_since_;
  Clock::time_point window_begin_;
  unsigned requested_ = 0;
  unsigned live_ = 0;   // streams with a first token
  unsigned ended_ = 0;  // streams with their sentinel
  uint64_t tokens_ = 0;
  uint64_t bytes_ = 0;
  uint64_t sink_cpu_ns_ = 0;
  uint64_t machine_cpu_ns_ = 0;
  bool recording_ = false;
  ProcessUsage usage_before_;
  SinkReport report_;
};

}  // namespace dyn::app::bench
