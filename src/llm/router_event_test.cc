#include "llm/router_event.h"

#include <gtest/gtest.h>

#include <string>

#include "base/test_hex.h"

// The expected bytes follow the official publishers of Dynamo 1.0 and 1.5.
namespace dyn::llm {
namespace {

constexpr uint64_t kWorker = 7587890459949987073;
constexpr uint64_t kHash = 14643705804678351452U;

std::string hex(const RouterEvent& event, RouterEventForm form) {
  Buffer out;
  encode_router_event(out, event, form);
  return dyn::hex(out.view());
}

TEST(RouterEvent, StoredInBothForms) {
  const RouterEvent event{
      .worker_id = kWorker, .event_id = 1, .data = RouterStored{.parent = {}, .blocks = {{kHash, kHash}}}};
  EXPECT_EQ(hex(event, RouterEventForm::kComponent),
            "82a9776f726b65725f6964cf694d9a2bc3e4f501a56576656e7483a86576656e745f696401a464617461"
            "81a673746f72656482ab706172656e745f68617368c0a6626c6f636b739183aa626c6f636b5f68617368"
            "cfcb38e4d7fb2dca5cab746f6b656e735f68617368cfcb38e4d7fb2dca5cad6d6d5f65787472615f696e"
            "666fc0a764705f72616e6b00");
  EXPECT_EQ(hex(event, RouterEventForm::kEndpoint),
            "84a9776f726b65725f6964cf694d9a2bc3e4f501ac73746f726167655f74696572a6646576696365b0"
            "7265736964656e63795f646f6d61696ea6776f726b6572a56576656e7483a86576656e745f696401a464"
            "61746181a673746f72656483ab706172656e745f68617368c0ae73746172745f706f736974696f6ec0a6"
            "626c6f636b739183aa626c6f636b5f68617368cfcb38e4d7fb2dca5cab746f6b656e735f68617368cfcb"
            "38e4d7fb2dca5cad6d6d5f65787472615f696e666fc0a764705f72616e6b00");
}

TEST(RouterEvent, RemovedAndCleared) {
  EXPECT_EQ(hex({.worker_id = kWorker, .event_id = 2, .data = KvBlocksRemoved{.blocks = {kHash}}},
                RouterEventForm::kComponent),
            "82a9776f726b65725f6964cf694d9a2bc3e4f501a56576656e7483a86576656e745f696402a464617461"
            "81a772656d6f76656481ac626c6f636b5f68617368657391cfcb38e4d7fb2dca5ca764705f72616e6b00");
  EXPECT_EQ(hex({.worker_id = kWorker, .event_id = 2, .data = KvCleared{}}, RouterEventForm::kComponent),
            "82a9776f726b65725f6964cf694d9a2bc3e4f501a56576656e7483a86576656e745f696402a464617461"
            "a7636c6561726564a764705f72616e6b00");
}

}  // namespace
}  // namespace dyn::llm
