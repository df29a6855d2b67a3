// The TCP request plane's own matters: framing, acknowledgements, connections, addresses.
#include "runtime/request_plane/tcp_request_plane.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/metrics.h"
#include "base/test_support.h"
#include "runtime/request_plane/test_frontend.h"
#include "runtime/request_plane/test_handler.h"

namespace dyn::runtime {
namespace {
using namespace std::chrono_literals;
using testing::CallHome;
using testing::CallOptions;
using testing::TcpCaller;
using testing::TestCall;
using testing::TestFrontend;
using testing::TestHandler;

class TcpRequestPlaneTest : public ::testing::Test {
 protected:
  void SetUp() override { loops_.start(); }
  void TearDown() override {
    if (plane_) plane_->stop();
    plane_.reset();
    loops_.stop();
  }
  void start(TcpOptions options = {}) {
    if (options.host.empty()) options.host = "127.0.0.1";
    plane_ = make_tcp_request_plane(options, loops_, registry_);
    ASSERT_TRUE(plane_->start());
    auto transport = plane_->add_endpoint(kEndpoint, 0x694d, handler_.handler());
    ASSERT_TRUE(transport);
    transport_ = *transport;
  }
  // Serves `call`, which has been acknowledged, to its end.
  void serve(const TestCall& call) {
    auto served = handler_.next();
    served->finish();
    const auto outcome = frontend_.accept(call.subject).read_to_end();
    EXPECT_TRUE(outcome.complete()) << outcome.violation;
  }

  const EndpointId kEndpoint = {"dynamo", "backend", "generate"};
  metrics::Registry registry_;
  net::LoopPool loops_{2, "test"};
  TestHandler handler_;
  TestFrontend frontend_;
  std::unique_ptr<RequestPlane> plane_;
  Transport transport_;
};

TEST_F(TcpRequestPlaneTest, PublishesTheShortPathAndServesTheLongOneToo) {
  start();
  EXPECT_EQ(transport_.kind, "tcp");
  EXPECT_TRUE(transport_.address.starts_with("127.0.0.1:"));
  EXPECT_TRUE(transport_.address.ends_with("/694d/generate"));
  TcpCaller caller(transport_.address);
  caller.set_path("694d/dynamo/backend/generate");
  const TestCall call = frontend_.make_call();
  EXPECT_EQ(caller.call(call), "");
  serve(call);

  TestHandler namesake;
  auto other = plane_->add_endpoint({"dynamo", "prefill", "generate"}, 0x694d, namesake.handler());
  ASSERT_TRUE(other);
  EXPECT_TRUE(other->address.ends_with("/694d/dynamo/prefill/generate"));
  TcpCaller other_caller(other->address);
  EXPECT_EQ(other_caller.call(frontend_.make_call()), "");
  namesake.next()->finish();
  plane_->remove_endpoint(kEndpoint);
  EXPECT_EQ(other_caller.call(frontend_.make_call()), "");
  namesake.next()->finish();
}

TEST_F(TcpRequestPlaneTest, AFrameMayBeSplitAnywhere) {
  start();
  TcpCaller caller(transport_.address);
  const TestCall call = frontend_.make_call();
  const std::string frame = caller.frame(call);
  for (size_t split = 1; split < frame.size(); split += 3) {
    caller.send(std::string_view(frame).substr(0, split));
    // Without a pause the kernel would join the parts again.
    std::this_thread::sleep_for(1ms);
    caller.send(std::string_view(frame).substr(split));
    ASSERT_EQ(caller.read_ack(), "");
  }
  for (const char byte : frame) caller.send({&byte, 1});
  EXPECT_EQ(caller.read_ack(), "");
}

TEST_F(TcpRequestPlaneTest, AcknowledgesPipelinedFramesOneByOneInOrder) {
  start();
  constexpr int kFrames = 1024;
  TcpCaller caller(transport_.address);
  const std::string path = caller.path();
  std::string bytes;
  std::vector<std::string> expected;
  std::vector<TestCall> calls;
  for (int i = 0; i < kFrames; ++i) {
    const bool known = i % 3 != 0;
    calls.push_back(frontend_.make_call({.body = std::string(static_cast<size_t>(i), 'b')}));
    caller.set_path(known ? path : "nope/" + std::to_string(i));
    bytes += caller.frame(calls.back());
    expected.push_back(known ? "" : "Server unavailable: unknown endpoint nope/" + std::to_string(i));
  }
  // The handler does nothing meanwhile: acknowledgements do not wait for it.
  caller.send(bytes);
  for (int i = 0; i < kFrames; ++i) ASSERT_EQ(caller.read_ack(), expected[static_cast<size_t>(i)]) << i;
  for (int i = 0; i < kFrames; ++i) {
    if (i % 3 != 0) handler_.next()->finish();
  }
  for (int i = 0; i < kFrames; ++i) {
    if (i % 3 == 0) continue;
    CallHome home = frontend_.accept(calls[static_cast<size_t>(i)].subject);
    ASSERT_TRUE(home.read_to_end().complete());
  }
}

TEST_F(TcpRequestPlaneTest, ServesManyIdleConnections) {
  start();
  std::vector<std::unique_ptr<TcpCaller>> callers;
  for (int i = 0; i < 300; ++i) callers.push_back(std::make_unique<TcpCaller>(transport_.address));
  for (auto& caller : callers) {
    const TestCall call = frontend_.make_call();
    EXPECT_EQ(caller->call(call), "");
    serve(call);
  }
}

TEST_F(TcpRequestPlaneTest, HeadersAreOptional) {
  start();
  TcpCaller caller(transport_.address);
  TestCall call = frontend_.make_call({.headers = {}});
  const std::string with_empty_object = caller.frame(call);
  EXPECT_EQ(caller.call(call), "");
  serve(call);

  // The same frame with a header length of 0, and with headers that are no JSON.
  call = frontend_.make_call({.headers = {}});
  const std::string frame = caller.frame(call);
  const size_t at = 2 + caller.path().size();
  const auto headers_bytes = load_be<uint16_t>(as_bytes(frame).data() + at);
  const std::string rest = frame.substr(at + 2 + headers_bytes);
  caller.send(frame.substr(0, at) + std::string(2, '\0') + rest);
  EXPECT_EQ(caller.read_ack(), "");
  serve(call);
  call = frontend_.make_call({.headers = {}});
  const std::string other = caller.frame(call);
  caller.send(other.substr(0, at) + std::string("\0\x03???", 5) + other.substr(at + 2 + headers_bytes));
  EXPECT_EQ(caller.read_ack(), "");
  auto served = handler_.next();
  EXPECT_TRUE(served->incoming.headers.empty());
}

TEST_F(TcpRequestPlaneTest, BigRequestsUpToTheLimitAreServed) {
  start();
  TcpCaller caller(transport_.address);
  const TestCall call = frontend_.make_call({.body = std::string(31 * 1024 * 1024, 'x')});
  EXPECT_EQ(caller.call(call), "");
  auto served = handler_.next();
  EXPECT_EQ(served->body.size(), 31U * 1024 * 1024);
  served->finish();
  EXPECT_TRUE(frontend_.accept(call.subject).read_to_end().complete());
  const TestCall small = frontend_.make_call();
  EXPECT_EQ(caller.call(small), "");
  serve(small);
}

TEST_F(TcpRequestPlaneTest, TooBigARequestIsToldAndTheConnectionCloses) {
  start();
  TcpCaller caller(transport_.address);
  const std::string frame = caller.frame(frontend_.make_call({.body = std::string(33 * 1024 * 1024, 'x')}));
  caller.try_send(frame);
  const auto ack = caller.read_ack();
  ASSERT_TRUE(ack.has_value());
  EXPECT_TRUE(ack->starts_with("Read error: ")) << *ack;
  EXPECT_TRUE(caller.closed_by_peer());
  TcpCaller other(transport_.address);
  const TestCall call = frontend_.make_call();
  EXPECT_EQ(other.call(call), "");
  serve(call);
}

TEST_F(TcpRequestPlaneTest, TheLimitIsConfigurable) {
  TcpOptions options;
  options.max_message_bytes = 4096;
  start(options);
  TcpCaller caller(transport_.address);
  caller.try_send(caller.frame(frontend_.make_call({.body = std::string(4096, 'x')})));
  EXPECT_TRUE(caller.read_ack().value_or("").starts_with("Read error: "));
  EXPECT_TRUE(caller.closed_by_peer());
}

TEST_F(TcpRequestPlaneTest, GarbageClosesTheConnectionAndNothingElse) {
  start();
  for (const std::string& garbage : {std::string(100'000, '\0'), std::string(100'000, '\xff'),
                                     std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), std::string("\0\0", 2)}) {
    TcpCaller caller(transport_.address);
    caller.try_send(garbage);
    const auto ack = caller.read_ack();
    ASSERT_TRUE(ack.has_value());
    EXPECT_TRUE(ack->starts_with("Read error: ")) << *ack;
    EXPECT_TRUE(caller.closed_by_peer());
  }
  TcpCaller cut(transport_.address);
  const std::string frame = cut.frame(frontend_.make_call());
  cut.send(frame.substr(0, frame.size() / 2));
  TcpCaller caller(transport_.address);
  const TestCall call = frontend_.make_call();
  EXPECT_EQ(caller.call(call), "");
  serve(call);
}

// Acknowledgements nobody reads must neither be lost nor grow without bound, and the requests are served all the same.
TEST_F(TcpRequestPlaneTest, ACallerMayReadItsAcknowledgementsLate) {
  start();
  TcpCaller caller(transport_.address);
  caller.set_path(std::string(1000, 'p'));
  const std::string frame = caller.frame(frontend_.make_call());
  std::string bytes;
  for (int i = 0; i < 100; ++i) bytes += frame;
  constexpr int kBursts = 100;
  std::thread sender([&] {
    for (int i = 0; i < kBursts; ++i) caller.send(bytes);
  });
  std::this_thread::sleep_for(100ms);
  for (int i = 0; i < kBursts * 100; ++i) {
    ASSERT_TRUE(caller.read_ack().value_or("").starts_with("Server unavailable: unknown endpoint "));
  }
  sender.join();
}

TEST_F(TcpRequestPlaneTest, ListensAndCallsHomeByIpv6) {
  TcpOptions options;
  options.host = "::1";
  start(options);
  ASSERT_TRUE(transport_.address.starts_with("[::1]:")) << transport_.address;
  TestFrontend frontend("::1");
  TcpCaller caller(transport_.address);
  for (const char* host : {"::1", "[::1]"}) {
    const TestCall call = frontend.make_call({.host = host});
    EXPECT_EQ(caller.call(call), "");
    handler_.next()->finish();
    EXPECT_TRUE(frontend.accept(call.subject).read_to_end().complete());
  }
}

TEST_F(TcpRequestPlaneTest, AdvertisesAConcreteAddressForAWildcard) {
  TcpOptions options;
  options.host = "0.0.0.0";
  start(options);
  EXPECT_FALSE(transport_.address.starts_with("0.0.0.0"));
  TcpCaller caller(transport_.address);
  const TestCall call = frontend_.make_call();
  EXPECT_EQ(caller.call(call), "");
  serve(call);
}

TEST_F(TcpRequestPlaneTest, SaysWhyItCannotListen) {
  start();
  TcpOptions taken;
  taken.host = "127.0.0.1";
  const size_t colon = transport_.address.find(':');
  taken.port = static_cast<uint16_t>(std::stoul(transport_.address.substr(colon + 1)));
  auto second = make_tcp_request_plane(taken, loops_, registry_);
  const auto started = second->start();
  ASSERT_FALSE(started);
  EXPECT_NE(started.error().message.find("DYN_TCP_RPC_PORT"), std::string::npos) << started.error().message;

  TcpOptions nowhere;
  nowhere.host = "no such host.";
  EXPECT_FALSE(make_tcp_request_plane(nowhere, loops_, registry_)->start());
}

TEST_F(TcpRequestPlaneTest, MayBeStoppedAmidConnectionsAndRequests) {
  start();
  std::vector<std::unique_ptr<TcpCaller>> callers;
  for (int i = 0; i < 50; ++i) {
    callers.push_back(std::make_unique<TcpCaller>(transport_.address));
    callers.back()->send(callers.back()->frame(frontend_.make_call()));
    if (i % 2 == 0) callers.back()->send("\0");
  }
  plane_->stop();
  EXPECT_EQ(plane_->active_streams(), 0U);
}

}  // namespace
}  // namespace dyn::runtime
