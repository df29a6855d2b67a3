// A stream in steady state allocates nothing: each token of each stream passes here.
#include <gtest/gtest.h>

#include "base/test_allocations.h"
#include "runtime/request_plane/request_plane_contract.h"
#include "runtime/request_plane/tcp_request_plane.h"

namespace dyn::runtime {
namespace {
using testing::kItem;
using testing::RequestPlaneTest;

TEST_P(RequestPlaneTest, AStreamInSteadyStateAllocatesNothing) {
  SKIP_UNLESS_ALLOCATIONS_ARE_COUNTED();
  start();
  auto [served, home] = run();
  const auto write_items = [](ResponseStream& stream) {
    for (int i = 0; i < 1000; ++i) {
      stream.begin_item().append(kItem);
      stream.end_item();
      stream.flush();
    }
  };
  served->on(write_items);
  size_t counted = 0;
  served->on([&](ResponseStream& stream) {
    const size_t before = allocations();
    write_items(stream);
    counted = allocations() - before;
  });
  EXPECT_EQ(counted, 0U);
  served->finish();
  EXPECT_EQ(home.read_to_end().items.size(), 2000U);
}

}  // namespace
}  // namespace dyn::runtime
