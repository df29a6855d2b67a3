// What every request plane owes its callers and its handlers: the fixture of the contract tests, which run over each
// implementation. What is particular to one transport (framing, acknowledgement order) is tested beside it.
//
//   TEST_P(RequestPlaneTest, KillEndsWithoutAnotherByte) {
//     start();
//     auto [served, home] = run();      // a call that has reached its handler, its call-home accepted
//     ...
//   }
//
// A new plane gets one more PlaneKind in request_plane_contract_test.cc. Thread rules: test thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/metrics.h"
#include "base/test_support.h"
#include "net/event_loop.h"
#include "runtime/request_plane/admission.h"
#include "runtime/request_plane/call_home.h"
#include "runtime/request_plane/request_plane.h"
#include "runtime/request_plane/test_frontend.h"
#include "runtime/request_plane/test_handler.h"

namespace dyn::runtime::testing {

inline constexpr std::string_view kItem = R"({"data":{"data":{"token_ids":[42]}},"complete_final":false})";
inline constexpr std::chrono::milliseconds kShort{50};  // how long something that must not happen is given to happen

struct PlaneSettings {
  AdmissionLimits admission;
  CallHomeOptions call_home;
};

// Sends a call and returns its acknowledgement; another path than the transport's unless it is empty.
using Caller = std::function<std::string(const TestCall&, const std::string& path)>;

// One way to make a plane and to bring calls to it.
struct PlaneKind {
  const char* name;
  std::unique_ptr<RequestPlane> (*make)(const PlaneSettings&, net::LoopPool&, metrics::Registry&);
  Caller (*connect)(const Transport&);
};

class RequestPlaneTest : public ::testing::TestWithParam<PlaneKind> {
 protected:
  void SetUp() override { loops_.start(); }
  void TearDown() override {
    if (plane_) plane_->stop();
    plane_.reset();
    loops_.stop();
  }

  RequestPlane& start(const PlaneSettings& settings = {}) {
    plane_ = GetParam().make(settings, loops_, registry_);
    EXPECT_TRUE(plane_->start());
    auto transport = plane_->add_endpoint(kEndpoint, 0x694d, handler_.handler(), {{"model", "tiny"}});
    EXPECT_TRUE(transport);
    transport_ = *transport;
    return *plane_;
  }
  std::string call(const TestCall& call, const std::string& path = "") {
    if (!caller_) caller_ = GetParam().connect(transport_);
    return caller_(call, path);
  }
  // A call that has reached its handler, its call-home accepted.
  struct Running {
    std::shared_ptr<ServedRequest> served;
    CallHome home;
  };
  Running run(const CallOptions& options = {}) {
    const TestCall made = frontend_.make_call(options);
    EXPECT_EQ(call(made), "");
    auto served = handler_.next();
    return {std::move(served), frontend_.accept(made.subject)};
  }
  bool becomes_idle() {
    return eventually([&] { return plane_->active_streams() == 0; });
  }
  bool exposes(const std::string& line) { return registry_.exposition().find(line) != std::string::npos; }
  static std::string metric(const std::string& name, const std::string& labels, const std::string& value) {
    return name + "{dynamo_component=\"backend\",dynamo_endpoint=\"generate\",dynamo_namespace=\"dynamo\"" + labels +
           ",model=\"tiny\",worker_id=\"694d\"} " + value;
  }

  const EndpointId kEndpoint = {"dynamo", "backend", "generate"};
  metrics::Registry registry_;
  net::LoopPool loops_{2, "test"};
  TestHandler handler_;
  TestFrontend frontend_;
  std::unique_ptr<RequestPlane> plane_;
  Transport transport_;
  Caller caller_;
};

}  // namespace dyn::runtime::testing
