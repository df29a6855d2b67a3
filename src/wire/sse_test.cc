#include "wire/sse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace dyn::wire {
namespace {

using ::testing::ElementsAre;

// Events as "name|data|comment".
std::vector<std::string> events_of(std::string_view text, size_t piece) {
  SseReader reader;
  std::vector<std::string> events;
  for (size_t at = 0; at < text.size(); at += piece) {
    const auto done = reader.feed(text.substr(at, piece), [&](const SseEvent& event) {
      events.push_back(std::string(event.name) + "|" + std::string(event.data) + "|" + std::string(event.comment));
    });
    EXPECT_TRUE(done.ok());
  }
  return events;
}

TEST(Sse, EventsDoNotDependOnHowTheBytesArrive) {
  const std::string_view text =
      "\xEF\xBB\xBF"
      "data: {\"a\":1}\n\n: keep-alive\n\nevent: error\r\n: it broke\r\n: badly\r\n\r\ndata:x\rdata: y\r\rid: 7\n"
      "data\n\n\n\ndata:  two\n\ndata: unfinished";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    EXPECT_THAT(events_of(text, piece),
                ElementsAre("|{\"a\":1}|", "||keep-alive", "error||it broke\nbadly", "|x\ny|", "||", "| two|"))
        << "pieces of " << piece;
  }
}

TEST(Sse, TellsAnUnfinishedEvent) {
  SseReader reader;
  const auto ignore = [](const SseEvent&) {};
  ASSERT_TRUE(reader.feed("data: a\n\n", ignore).ok());
  EXPECT_FALSE(reader.within_event());
  ASSERT_TRUE(reader.feed("da", ignore).ok());
  EXPECT_TRUE(reader.within_event());
  ASSERT_TRUE(reader.feed("ta: b\n", ignore).ok());
  EXPECT_TRUE(reader.within_event());
  ASSERT_TRUE(reader.feed("\n", ignore).ok());
  EXPECT_FALSE(reader.within_event());
}

TEST(Sse, AnEndlessEventIsAnError) {
  for (const std::string& part : {std::string(4096, 'a'), "data: " + std::string(4096, 'a') + "\n"}) {
    SseReader reader;
    Result<void> done;
    size_t fed = 0;
    for (; done.ok() && fed < 4 * kMaxSseEventBytes; fed += part.size()) {
      done = reader.feed(part, [](const SseEvent&) {});
    }
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().code, Code::kInvalidArgument);
    EXPECT_LE(fed, kMaxSseEventBytes + 2 * part.size());
  }
}

}  // namespace
}  // namespace dyn::wire
