#include "wire/sse.h"

#include <fmt/format.h>

namespace dyn::wire {

Result<void> SseReader::feed(std::string_view part, const std::function<void(const SseEvent&)>& on_event) {
  while (!part.empty()) {
    if (after_cr_ && part.front() == '\n') part.remove_prefix(1);
    after_cr_ = false;
    const size_t end = part.find_first_of("\r\n");
    const std::string_view piece = part.substr(0, end);
    if (line_.size() + piece.size() + name_.size() + data_.size() + comment_.size() > kMaxSseEventBytes)
      return invalid_argument(fmt::format("an event is longer than {} bytes", kMaxSseEventBytes));
    if (end == std::string_view::npos) {
      line_ += piece;
      return {};
    }
    after_cr_ = part[end] == '\r';
    part.remove_prefix(end + 1);
    if (line_.empty()) {
      take_line(piece, on_event);
    } else {
      line_ += piece;
      take_line(line_, on_event);
      line_.clear();
    }
  }
  return {};
}

void SseReader::take_line(std::string_view line, const std::function<void(const SseEvent&)>& on_event) {
  if (first_line_ && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
  first_line_ = false;
  if (line.empty()) {
    if (lines_ > 0) on_event({.name = name_, .data = data_, .comment = comment_});
    name_.clear();
    data_.clear();
    comment_.clear();
    lines_ = 0;
    has_data_ = has_comment_ = false;
    return;
  }
  ++lines_;
  const size_t colon = line.find(':');
  const std::string_view field = line.substr(0, colon);
  std::string_view value = colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  const auto append = [&](std::string& to, bool& has) {
    if (has) to += '\n';
    to += value;
    has = true;
  };
  if (field == "data") {
    append(data_, has_data_);
  } else if (colon == 0) {
    append(comment_, has_comment_);
  } else if (field == "event") {
    name_ = value;
  }  // "id", "retry" and unknown fields mean nothing here
}

}  // namespace dyn::wire
