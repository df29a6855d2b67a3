#include "app/bench_serve_answer.h"

#include <algorithm>

#include "wire/json_reader.h"

namespace dyn::app::bench {
namespace {

constexpr size_t kMaxKeptText = 2'000;  // of an answer that tells an error

uint32_t micros(ServeClock::duration time) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(time).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(us, 0, UINT32_MAX));
}

// What an event tells; the members a benchmark needs, of chat and of completions.
struct Chunk {
  bool has_choices = false;
  bool has_text = false;
  bool finished = false;
  bool has_usage = false;
  uint64_t input_tokens = 0;
  uint64_t output_tokens = 0;
  std::string error;
};

bool read_text(wire::Reader& in, Chunk& chunk) {
  std::string_view text;
  if (!in.read_unless_null(text)) return false;
  chunk.has_text |= !text.empty();
  return true;
}

bool read_choice(wire::Reader& in, Chunk& chunk) {
  return in.read_object([&](std::string_view key) {
    if (key == "text") return read_text(in, chunk);
    if (key == "finish_reason") {
      chunk.finished |= in.peek() == wire::Kind::kString;
      return in.skip();
    }
    if (key != "delta" || in.peek() != wire::Kind::kObject) return in.skip();
    return in.read_object([&](std::string_view member) {
      if (member == "content" || member == "reasoning_content" || member == "reasoning") return read_text(in, chunk);
      if (member == "tool_calls") chunk.has_text |= in.peek_first_element() != wire::Kind::kNothing;
      return in.skip();
    });
  });
}

Result<Chunk> read_chunk(std::string_view json) {
  wire::JsonReader in(as_bytes(json));
  Chunk chunk;
  in.read_object([&](std::string_view key) {
    if (in.peek() == wire::Kind::kNull) return in.skip();
    if (key == "choices") {
      return in.read_array([&](size_t) {
        chunk.has_choices = true;
        return read_choice(in, chunk);
      });
    }
    if (key == "usage") {
      chunk.has_usage = true;
      return in.read_object([&](std::string_view member) {
        if (member == "prompt_tokens") return in.read_unless_null(chunk.input_tokens);
        if (member == "completion_tokens") return in.read_unless_null(chunk.output_tokens);
        return in.skip();
      });
    }
    if (key == "error") {
      Buffer text;
      if (!in.append_json(text)) return false;
      chunk.error = as_text(text.view());
      return true;
    }
    return in.skip();
  });
  if (auto done = in.finish(); !done) return done.error();
  return chunk;
}

}  // namespace

std::optional<uint32_t> AnswerOutcome::tpot_us() const {
  if (output_tokens < 2 || e2el_us < ttft_us) return std::nullopt;
  return static_cast<uint32_t>((e2el_us - ttft_us) / (output_tokens - 1));
}

void AnswerReader::head(const net::HttpHead& head) {
  head_seen_ = true;
  status_ = head.status;
  streamed_ = status_ == 200 && head.content_type.starts_with("text/event-stream");
}

bool AnswerReader::body(std::string_view part, ServeClock::time_point now) {
  if (!streamed_) {
    text_ += part.substr(0, kMaxKeptText - std::min(kMaxKeptText, text_.size()));
    return true;
  }
  const auto fed = events_.feed(part, [&](const wire::SseEvent& one) {
    if (!outcome_.failure) event(one, now);
  });
  if (!fed) fail("bad event", fed.error().message);
  return !outcome_.failure.has_value();
}

void AnswerReader::event(const wire::SseEvent& event, ServeClock::time_point now) {
  if (event.name == "error") return fail("error event", event.data.empty() ? event.comment : event.data);
  if (event.data.empty()) return;
  if (event.data == "[DONE]") {
    finished_ = true;
    return;
  }
  chunk(event.data, now);
}

void AnswerReader::chunk(std::string_view json, ServeClock::time_point now) {
  const auto chunk = read_chunk(json);
  if (!chunk) return fail("bad event", chunk.error().message + " in: " + std::string(json));
  const Chunk& c = chunk.value();
  if (!c.error.empty()) return fail("error event", c.error);
  if (c.has_choices && !first_choice_) first_choice_ = now;
  finished_ |= c.finished;
  if (c.has_usage) {  // the last one counts: some servers send running totals
    outcome_.has_usage = true;
    outcome_.input_tokens = c.input_tokens;
    outcome_.output_tokens = c.output_tokens;
  }
  if (!c.has_text) return;
  if (outcome_.events == 0) {
    first_token_ = now;
  } else {
    outcome_.itl_us.push_back(micros(now - last_token_));
  }
  ++outcome_.events;
  last_token_ = now;
}

void AnswerReader::fail(std::string kind, std::string_view text) {
  if (!outcome_.failure)
    outcome_.failure = ServeFailure{.kind = std::move(kind), .text = std::string(text.substr(0, kMaxKeptText))};
}

AnswerOutcome AnswerReader::end(const Result<void>& done, ServeClock::time_point now) {
  if (!outcome_.failure && !done) {
    const Error& error = done.error();
    switch (error.code) {
      case Code::kCancelled:
        outcome_.cancelled = true;
        break;
      case Code::kDeadline:
        fail("timeout", error.message);
        break;
      case Code::kInvalidArgument:
        fail("bad http", error.message);
        break;
      default:
        fail(head_seen_ ? "disconnected" : "connection", error.message);
    }
  }
  if (outcome_.cancelled) return std::move(outcome_);
  if (head_seen_ && status_ != 200) fail("http " + std::to_string(status_), text_);
  if (head_seen_ && !streamed_) fail("not a stream", text_);
  if (!finished_) fail("cut short", "the stream ended without [DONE] or a finish reason");
  if (!outcome_.has_usage) outcome_.output_tokens = outcome_.events;
  if (outcome_.events == 0) {
    // Tokens without text, if the server says that there were some.
    if (outcome_.output_tokens == 0 || !first_choice_) fail("no token", "the stream ended without a token");
    first_token_ = first_choice_.value_or(now);
    last_token_ = now;
  }
  outcome_.ttft_us = micros(first_token_ - sent_);
  outcome_.e2el_us = micros(last_token_ - sent_);
  return std::move(outcome_);
}

}  // namespace dyn::app::bench
