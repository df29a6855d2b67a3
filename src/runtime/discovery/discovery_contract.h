// The contract of Discovery as tests that every implementation must pass (discovery_contract_test.cc).
//
//   INSTANTIATE_TEST_SUITE_P(File, DiscoveryContract, ::testing::Values(DiscoveryBackend{"file", [] { ... }}));
//
// Thread rules: test code.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "runtime/discovery/discovery.h"

namespace dyn::runtime {

// One store of a test; connect() is what a process of its own would do.
class DiscoveryStore {
 public:
  virtual ~DiscoveryStore() = default;
  virtual std::unique_ptr<Discovery> connect() = 0;
};

struct DiscoveryBackend {
  std::string name;
  std::function<std::unique_ptr<DiscoveryStore>()> make_store;
};

class DiscoveryContract : public ::testing::TestWithParam<DiscoveryBackend> {
 protected:
  std::unique_ptr<DiscoveryStore> store_ = GetParam().make_store();
};

}  // namespace dyn::runtime
