#include "worker/load_publisher.h"

#include <gtest/gtest.h>

#include <string>

#include "base/test_hex.h"

namespace dyn::worker {
namespace {

std::string hex(uint64_t used_blocks, llm::RouterEventForm form) {
  Buffer out;
  encode_active_load(out, 7587890459949987073, used_blocks, form);
  return dyn::hex(out.view());
}

// The expected bytes follow the official publishers of Dynamo 1.0 and 1.5.
TEST(ActiveLoad, BothForms) {
  EXPECT_EQ(hex(12, llm::RouterEventForm::kComponent),
            "84a9776f726b65725f6964cf694d9a2bc3e4f501a764705f72616e6b00b46163746976655f6465636f64"
            "655f626c6f636b730cb56163746976655f70726566696c6c5f746f6b656e73c0");
  EXPECT_EQ(hex(12, llm::RouterEventForm::kEndpoint),
            "85a9776f726b65725f6964cf694d9a2bc3e4f501a764705f72616e6b00b46163746976655f6465636f64"
            "655f626c6f636b73c0b56163746976655f70726566696c6c5f746f6b656e73c0ae6b765f757365645f62"
            "6c6f636b730c");
}

}  // namespace
}  // namespace dyn::worker
