// A stream in steady state allocates nothing: each token of each stream passes here.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "runtime/request_plane/request_plane_contract.h"
#include "runtime/request_plane/tcp_request_plane.h"

// The sanitizers have allocators of their own, which must see every allocation.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DYN_TEST_UNDER_SANITIZER 1
#endif
#endif

namespace {
thread_local size_t allocations = 0;
}

#ifndef DYN_TEST_UNDER_SANITIZER
void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
#endif

namespace dyn::runtime {
namespace {
using testing::kItem;
using testing::RequestPlaneTest;

TEST_P(RequestPlaneTest, AStreamInSteadyStateAllocatesNothing) {
#ifdef DYN_TEST_UNDER_SANITIZER
  GTEST_SKIP() << "allocations are not counted under a sanitizer";
#endif
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
    const size_t before = allocations;
    write_items(stream);
    counted = allocations - before;
  });
  EXPECT_EQ(counted, 0U);
  served->finish();
  EXPECT_EQ(home.read_to_end().items.size(), 2000U);
}

}  // namespace
}  // namespace dyn::runtime
