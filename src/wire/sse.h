// SseReader: Server-Sent Events out of a body that arrives in pieces.
//
//   SseReader events;
//   auto done = events.feed(part, [&](const SseEvent& event) {
//     if (event.data == "[DONE]") ...
//   });
//   if (!done) return done.error();    // an event longer than kMaxSseEventBytes
//
// Lines end with LF, CR or CRLF; several data lines are joined with LF; comments are kept, because Dynamo's frontends
// put the text of an error event there. Each block of lines that is ended by an empty line is one event, also one
// without data. What is left without that empty line at the end is no event (the format's own rule).
// Source: the HTML standard, section "Server-sent events". Ownership: views in an event live until its callback
// returns. Thread rules: one thread at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace dyn::wire {

inline constexpr size_t kMaxSseEventBytes = size_t{1024} * 1024;

struct SseEvent {
  std::string_view name;  // of "event:", empty without one
  std::string_view data;
  std::string_view comment;
};

class SseReader {
 public:
  // After an error the reader is at an end.
  Result<void> feed(std::string_view part, const std::function<void(const SseEvent&)>& on_event);
  // Whether bytes of an unfinished event are waiting.
  [[nodiscard]] bool within_event() const { return lines_ > 0 || !line_.empty(); }

 private:
  void take_line(std::string_view line, const std::function<void(const SseEvent&)>& on_event);

  std::string line_;  // one that has not ended yet
  std::string name_;
  std::string data_;
  std::string comment_;
  size_t lines_ = 0;  // of the present event
  bool has_data_ = false;
  bool has_comment_ = false;
  bool after_cr_ = false;
  bool first_line_ = true;
};

}  // namespace dyn::wire
