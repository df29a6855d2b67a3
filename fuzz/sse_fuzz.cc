// Server-Sent Events: the same events whether the bytes come at once or in two pieces.
#include <string>

#include "fuzz.h"
#include "wire/sse.h"

using namespace dyn;
using fuzz::expect;

namespace {

std::string events_of(std::string_view text, size_t cut) {
  wire::SseReader reader;
  std::string all;
  for (const std::string_view part : {text.substr(0, cut), text.substr(cut)}) {
    const auto done = reader.feed(part, [&](const wire::SseEvent& event) {
      expect(event.data.size() <= wire::kMaxSseEventBytes);
      all.append(event.name).append("|").append(event.data).append("|").append(event.comment).append("\n");
    });
    if (!done) return all + "!";
  }
  return all;
}

}  // namespace

DYN_FUZZ_TARGET(Bytes in) {
  const std::string_view text(reinterpret_cast<const char*>(in.data()), in.size());
  const std::string whole = events_of(text, text.size());
  const size_t cut = in.empty() ? 0 : static_cast<size_t>(in.front()) * text.size() / 256;
  expect(events_of(text, cut) == whole);
}
