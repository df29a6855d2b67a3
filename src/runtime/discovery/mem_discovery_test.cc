#include "runtime/discovery/mem_discovery.h"

#include <gtest/gtest.h>

#include "runtime/discovery/discovery_contract.h"

namespace dyn::runtime {
namespace {

class MemTestStore final : public DiscoveryStore {
 public:
  std::unique_ptr<Discovery> connect() override { return make_mem_discovery(store_); }

 private:
  std::shared_ptr<MemStore> store_ = make_mem_store();
};

INSTANTIATE_TEST_SUITE_P(Mem, DiscoveryContract,
                         ::testing::Values(DiscoveryBackend{"mem", [] { return std::make_unique<MemTestStore>(); }}));

TEST(MemDiscovery, WithoutAStoreTheProcessSharesOne) {
  auto a = make_mem_discovery();
  auto b = make_mem_discovery();
  ASSERT_TRUE(a->put({"v1/instances", "k", "{}"}).ok());
  EXPECT_EQ(b->list("v1/instances", "")->size(), 1U);
}

TEST(MemDiscovery, StoresAreSeparate) {
  auto a = make_mem_discovery(make_mem_store());
  auto b = make_mem_discovery(make_mem_store());
  ASSERT_TRUE(a->put({"v1/instances", "k", "{}"}).ok());
  EXPECT_TRUE(b->list("v1/instances", "")->empty());
}

}  // namespace
}  // namespace dyn::runtime
