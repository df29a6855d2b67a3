// AnswerReader: what one streamed answer of an OpenAI endpoint tells a benchmark: when its tokens came, how many, or
// how it failed.
//
//   AnswerReader reader(now);                       // the request is sent
//   reader.head(head); reader.body(part, now); ...
//   AnswerOutcome outcome = reader.end(done, now);
//
// A token arrives when its text does: events whose text is empty (a role, a usage) are no tokens. How many tokens an
// event holds is not told; the number of all is the server's own ("usage") or, without one, the number of events with
// text. Thread rules: one thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/http_client.h"
#include "wire/sse.h"

namespace dyn::app::bench {

using ServeClock = std::chrono::steady_clock;

struct ServeFailure {
  std::string kind;  // "connection", "http 503", "timeout", ...: see AnswerReader::end()
  std::string text;  // for people
};

struct AnswerOutcome {
  std::optional<ServeFailure> failure;
  bool cancelled = false;        // by this side; neither completed nor failed
  uint32_t ttft_us = 0;          // from sending to the first token
  uint32_t e2el_us = 0;          // from sending to the last token
  std::vector<uint32_t> itl_us;  // between events with text
  uint64_t events = 0;           // with text
  bool has_usage = false;
  uint64_t input_tokens = 0;   // 0 without usage
  uint64_t output_tokens = 0;  // without usage: events
  // The mean time between tokens after the first; nothing for a single token.
  [[nodiscard]] std::optional<uint32_t> tpot_us() const;
};

class AnswerReader {
 public:
  explicit AnswerReader(ServeClock::time_point sent) : sent_(sent) {}

  void head(const net::HttpHead& head);
  // False: the answer is beyond use, and the rest of it not needed.
  bool body(std::string_view part, ServeClock::time_point now);
  // Kinds of failures: "connection" (none, or lost before an answer), "http STATUS", "not a stream", "disconnected"
  // (within the answer), "timeout", "bad http", "bad event" (no JSON, or too long), "error event" (the server's word),
  // "cut short" (an end without [DONE] or a finish reason), "no token".
  AnswerOutcome end(const Result<void>& done, ServeClock::time_point now);

 private:
  void event(const wire::SseEvent& event, ServeClock::time_point now);
  void chunk(std::string_view json, ServeClock::time_point now);
  void fail(std::string kind, std::string_view text);

  const ServeClock::time_point sent_;
  AnswerOutcome outcome_;
  wire::SseReader events_;
  bool head_seen_ = false;
  unsigned status_ = 0;
  bool streamed_ = false;
  std::string text_;  // the beginning of an answer that is no stream
  bool finished_ = false;
  std::optional<ServeClock::time_point> first_choice_;
  ServeClock::time_point first_token_;
  ServeClock::time_point last_token_;
};

}  // namespace dyn::app::bench
