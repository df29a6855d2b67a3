// The contract: serving, refusing, admission, drain and stop. Cancellation: request_plane_cancel_test.cc.
#include <set>
#include <stdexcept>
#include <thread>

#include "runtime/request_plane/request_plane_contract.h"
#include "runtime/request_plane/tcp_request_plane.h"

namespace dyn::runtime {
namespace {
using namespace std::chrono_literals;
using testing::Caller;
using testing::CallHome;
using testing::kItem;
using testing::kShort;
using testing::PlaneKind;
using testing::PlaneSettings;
using testing::RequestPlaneTest;
using testing::TcpCaller;
using testing::TestCall;
using Event = testing::StrictStreamReader::Event;
using wire::ControlWord;

const PlaneKind kTcp = {
    "Tcp",
    [](const PlaneSettings& settings, net::LoopPool& loops, metrics::Registry& registry) {
      TcpOptions options;
      options.host = "127.0.0.1";
      options.admission = settings.admission;
      options.call_home = settings.call_home;
      return make_tcp_request_plane(options, loops, registry);
    },
    [](const Transport& transport) -> Caller {
      auto caller = std::make_shared<TcpCaller>(transport.address);
      return [caller, own_path = caller->path()](const TestCall& call, const std::string& path) {
        caller->set_path(path.empty() ? own_path : path);
        return caller->call(call);
      };
    },
};

TEST_P(RequestPlaneTest, ServesARequestFromPrologueToSentinel) {
  start();
  const TestCall made = frontend_.make_call({.body = R"({"token_ids":[1,2,3]})", .headers = {{"request-id", "r1"}}});
  ASSERT_EQ(call(made), "");
  auto served = handler_.next();
  EXPECT_EQ(served->incoming.control.id, made.id);
  EXPECT_EQ(served->incoming.headers.at("request-id"), "r1");
  EXPECT_EQ(served->body, R"({"token_ids":[1,2,3]})");
  CallHome home = frontend_.accept(made.subject);
  for (int i = 0; i < 3; ++i) served->item(kItem);
  served->finish();
  const auto outcome = home.read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  EXPECT_EQ(outcome.items, std::vector<std::string>(3, std::string(kItem)));
  EXPECT_EQ(outcome.end, CallHome::End::kEof);
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(served->cancels().empty());
}

TEST_P(RequestPlaneTest, AnswersInTheCallersCodec) {
  start();
  auto [served, home] = run({.codec = wire::PayloadCodec::kMsgpack});
  EXPECT_EQ(served->incoming.control.payload_codec, wire::PayloadCodec::kMsgpack);
  served->item(
      "\x81\xa4"
      "data\xc0");
  served->finish();
  using E = Event;
  for (const E expected : {E::kAccepted, E::kItem, E::kFinal, E::kSentinel}) EXPECT_EQ(home.next(), expected);
}

TEST_P(RequestPlaneTest, AcceptsBeforeTheFirstItem) {
  start();
  auto [served, home] = run();
  EXPECT_EQ(home.next(kShort), Event::kNeedMore);
  served->accept();
  served->accept();
  EXPECT_EQ(home.next(), Event::kAccepted);
  served->finish();
  EXPECT_EQ(home.next(), Event::kFinal);
  EXPECT_EQ(home.next(), Event::kSentinel);
}

TEST_P(RequestPlaneTest, ItemsMayBeWrittenBeforeTheConnectionStands) {
  start();
  const TestCall made = frontend_.make_call();
  call(made);
  auto served = handler_.next();
  served->item(kItem);
  served->finish();
  served->drop();
  const auto outcome = frontend_.accept(made.subject).read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  EXPECT_EQ(outcome.items.size(), 1U);
}

TEST_P(RequestPlaneTest, AnEmptyItemIsNotSent) {
  start();
  auto [served, home] = run();
  served->item("");
  served->item(kItem);
  served->finish();
  const auto outcome = home.read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  EXPECT_EQ(outcome.items.size(), 1U);
}

TEST_P(RequestPlaneTest, NothingFollowsTheSentinel) {
  start();
  auto [served, home] = run();
  served->finish();
  served->item(kItem);
  served->finish();
  served->on([](ResponseStream& stream) {
    stream.refuse("late");
    stream.abandon();
  });
  const auto outcome = home.read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  EXPECT_TRUE(outcome.items.empty());
}

TEST_P(RequestPlaneTest, RefusesInThePrologue) {
  start();
  auto [served, home] = run();
  served->on([](ResponseStream& stream) { stream.refuse("Generate Error: not ready"); });
  const auto outcome = home.read_to_end();
  EXPECT_EQ(outcome.refused, "Generate Error: not ready");
  EXPECT_TRUE(outcome.sentinel);
  EXPECT_EQ(outcome.violation, "");
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(exposes(metric("dynamo_component_errors_total", ",error_type=\"generate\"", "1")));
}

TEST_P(RequestPlaneTest, AbandonsWithoutAFinalFrame) {
  start();
  auto [served, home] = run();
  served->item(kItem);
  served->on([](ResponseStream& stream) { stream.abandon(); });
  const auto outcome = home.read_to_end();
  EXPECT_EQ(outcome.items.size(), 1U);
  EXPECT_FALSE(outcome.final || outcome.sentinel);
  EXPECT_EQ(outcome.end, CallHome::End::kEof);
  home.close();
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, AForgottenStreamIsAbandoned) {
  start();
  auto [served, home] = run();
  served->item(kItem);
  served.reset();
  const auto outcome = home.read_to_end();
  EXPECT_EQ(outcome.items.size(), 1U);
  EXPECT_FALSE(outcome.final || outcome.sentinel);
  EXPECT_EQ(outcome.end, CallHome::End::kEof);
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, ABigItemArrivesWhole) {
  start();
  auto [served, home] = run();
  const std::string big(10'000'000, 'x');
  served->item(big);
  served->item(kItem);
  served->finish();
  const auto outcome = home.read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  ASSERT_EQ(outcome.items.size(), 2U);
  EXPECT_EQ(outcome.items[0], big);
}

TEST_P(RequestPlaneTest, TheSameIdMayBeAliveTwice) {
  start();
  const TestCall first = frontend_.make_call({.id = "same", .body = "1"});
  const TestCall second = frontend_.make_call({.id = "same", .body = "2"});
  call(first);
  auto served_first = handler_.next();
  call(second);
  auto served_second = handler_.next();
  served_second->item(served_second->body);
  served_second->finish();
  served_first->item(served_first->body);
  served_first->finish();
  EXPECT_EQ(frontend_.accept(first.subject).read_to_end().items.at(0), "1");
  EXPECT_EQ(frontend_.accept(second.subject).read_to_end().items.at(0), "2");
}

TEST_P(RequestPlaneTest, SpreadsStreamsOverTheLoops) {
  start();
  std::set<unsigned> loops;
  std::vector<Running> running;
  for (int i = 0; i < 4; ++i) {
    running.push_back(run());
    loops.insert(running.back().served->stream->loop().index());
  }
  EXPECT_EQ(loops.size(), loops_.size());
  for (auto& each : running) each.served->finish();
}

// ---- what cannot be served

TEST_P(RequestPlaneTest, UnknownPathsAreToldInTheAcknowledgementToCallersThatReadIt) {
  start();
  EXPECT_EQ(call(frontend_.make_call(), "694d/nope"), "Server unavailable: unknown endpoint 694d/nope");
  EXPECT_EQ(call(frontend_.make_call(), "\xff\xfe"), "Server unavailable: unknown endpoint ??");
  EXPECT_TRUE(frontend_.nobody_calls(kShort));
}

TEST_P(RequestPlaneTest, UnknownPathsOfOldCallersEndInAnErrorThatMigrates) {
  start();
  const TestCall made = frontend_.make_call({.codec = std::nullopt});
  EXPECT_EQ(call(made, "694d/nope"), "");
  const auto outcome = frontend_.accept(made.subject).read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  ASSERT_EQ(outcome.items.size(), 1U);
  EXPECT_EQ(outcome.items[0],
            R"({"data":{"event":"error","comment":["Stream ended before generation completed"],)"
            R"("error":{"error_type":{"Backend":"EngineShutdown"},"message":"engine shutting down"}},)"
            R"("complete_final":false})");
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, AnotherResponsePlaneIsNamedInTheAcknowledgement) {
  start();
  EXPECT_EQ(call(frontend_.make_call({.transport = "quic-response"})),
            "Server unavailable: response plane mismatch: frontend requested quic, worker configured tcp");
  EXPECT_TRUE(frontend_.nobody_calls(kShort));
}

TEST_P(RequestPlaneTest, BidirectionalRequestsAreRefused) {
  start();
  const TestCall made = frontend_.make_call({.request_type = "many_in"});
  EXPECT_EQ(call(made), "");
  const auto outcome = frontend_.accept(made.subject).read_to_end();
  ASSERT_TRUE(outcome.refused.has_value());
  EXPECT_TRUE(outcome.refused->find("many_in") != std::string::npos);
  EXPECT_TRUE(outcome.sentinel);
}

TEST_P(RequestPlaneTest, WhatCannotCallHomeIsAcknowledgedAndDropped) {
  start();
  TestCall bad = frontend_.make_call();
  bad.payload = "short";
  EXPECT_EQ(call(bad), "");
  bad = frontend_.make_call();
  bad.payload[24] = '?';  // the control message's first byte
  EXPECT_EQ(call(bad), "");
  bad = frontend_.make_call();
  bad.payload[0] = '\xff';  // a header of 2^63 bytes
  EXPECT_EQ(call(bad), "");
  EXPECT_EQ(call(frontend_.make_call({.context = "another id"})), "");
  EXPECT_EQ(call(frontend_.make_call({.stream_type = "request"})), "");
  EXPECT_TRUE(frontend_.nobody_calls(kShort));
  EXPECT_EQ(handler_.waiting(), 0U);
  EXPECT_EQ(plane_->active_streams(), 0U);

  auto [served, home] = run();
  served->finish();
  EXPECT_TRUE(home.read_to_end().complete());
  EXPECT_TRUE(exposes(metric("dynamo_component_errors_total", ",error_type=\"invalid_message\"", "2")));
  EXPECT_TRUE(exposes(metric("dynamo_component_errors_total", ",error_type=\"deserialization\"", "3")));
}

TEST_P(RequestPlaneTest, AnEmptyOrStrangeBodyIsTheHandlersBusiness) {
  start();
  for (const char* body : {"", "not json", "\xff"}) {
    auto [served, home] = run({.body = body});
    EXPECT_EQ(served->body, body);
    served->finish();
    EXPECT_TRUE(home.read_to_end().complete());
  }
}

// ---- admission

TEST_P(RequestPlaneTest, BeyondTheLimitRequestsWaitInTurnThenAreRefused) {
  PlaneSettings settings;
  settings.admission = {.running = 1, .queued = 2};
  start(settings);
  auto first = run({.body = "1"});
  std::vector<TestCall> calls;
  for (const char* body : {"2", "3", "4"}) {
    calls.push_back(frontend_.make_call({.body = body}));
    EXPECT_EQ(call(calls.back()), "");
    if (calls.size() < 3) {
      EXPECT_TRUE(
          eventually([&] { return exposes("dynamo_work_handler_queue_depth " + std::to_string(calls.size())); }));
    }
  }
  const auto refused = frontend_.accept(calls[2].subject).read_to_end();
  EXPECT_TRUE(refused.complete()) << refused.violation;
  EXPECT_EQ(refused.items.at(0),
            R"x({"data":{"event":"error","comment":["{\"message\":\"worker at capacity\",\"code\":503}"],)x"
            R"x("error":{"error_type":"Unknown","message":"{\"message\":\"worker at capacity\",\"code\":503}"}},)x"
            R"x("complete_final":false})x");
  EXPECT_TRUE(exposes("dynamo_rejection_request_total 1"));

  CallHome second = frontend_.accept(calls[0].subject);  // calls home at once, but waits with the prologue
  CallHome third = frontend_.accept(calls[1].subject);
  EXPECT_EQ(second.next(kShort), Event::kNeedMore);
  EXPECT_EQ(handler_.waiting(), 0U);
  first.served->finish();
  auto served = handler_.next();
  EXPECT_EQ(served->body, "2");
  served->finish();
  EXPECT_TRUE(second.read_to_end().complete());
  served = handler_.next();
  EXPECT_EQ(served->body, "3");
  served->finish();
  EXPECT_TRUE(third.read_to_end().complete());
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, CancelledRequestsLeaveTheQueue) {
  PlaneSettings settings;
  settings.admission = {.running = 1, .queued = 1};
  start(settings);
  auto first = run();
  const auto queued = [&] {
    const TestCall made = frontend_.make_call();
    call(made);
    CallHome home = frontend_.accept(made.subject);
    EXPECT_TRUE(eventually([&] { return exposes("dynamo_work_handler_queue_depth 1"); }));
    return home;
  };
  CallHome killed = queued();
  killed.send(ControlWord::kKill);
  EXPECT_TRUE(killed.closes_silently());
  CallHome reset = queued();
  reset.reset();
  EXPECT_TRUE(eventually([&] { return exposes("dynamo_work_handler_queue_depth 0"); }));
  CallHome stopped = queued();
  stopped.send(ControlWord::kStop);
  const auto outcome = stopped.read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  EXPECT_TRUE(outcome.items.empty());
  CallHome last = queued();
  EXPECT_EQ(handler_.waiting(), 0U);
  first.served->finish();
  auto served = handler_.next();
  served->finish();
  EXPECT_TRUE(last.read_to_end().complete());
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(exposes("dynamo_work_handler_pool_active_tasks 0"));
}

TEST_P(RequestPlaneTest, ACancelFreesTheSlot) {
  PlaneSettings settings;
  settings.admission = {.running = 1, .queued = 1};
  start(settings);
  auto first = run();
  const TestCall made = frontend_.make_call();
  call(made);
  CallHome home = frontend_.accept(made.subject);
  first.home.send(ControlWord::kKill);
  auto served = handler_.next();
  served->finish();
  EXPECT_TRUE(home.read_to_end().complete());
}

// ---- endings

TEST_P(RequestPlaneTest, ARemovedEndpointFinishesWhatRuns) {
  RequestPlane& plane = start();
  auto [served, home] = run();
  plane.remove_endpoint(kEndpoint);
  EXPECT_TRUE(call(frontend_.make_call()).starts_with("Server unavailable: unknown endpoint "));
  served->item(kItem);
  served->finish();
  EXPECT_TRUE(home.read_to_end().complete());
  auto again = plane.add_endpoint(kEndpoint, 0x694d, handler_.handler(), {{"model", "tiny"}});
  ASSERT_TRUE(again);
  EXPECT_EQ(again->address, transport_.address);
  EXPECT_FALSE(plane.add_endpoint(kEndpoint, 0x694d, handler_.handler()));
  auto next = run();
  next.served->finish();
  EXPECT_TRUE(next.home.read_to_end().complete());
}

TEST_P(RequestPlaneTest, DrainWaitsForWhatRuns) {
  RequestPlane& plane = start();
  EXPECT_TRUE(plane.drain(0ms));
  auto [served, home] = run();
  EXPECT_FALSE(plane.drain(kShort));
  std::thread ends([&, request = served] {
    std::this_thread::sleep_for(kShort);
    request->finish();
  });
  EXPECT_TRUE(plane.drain(20s));
  ends.join();
  EXPECT_EQ(plane.active_streams(), 0U);
  EXPECT_TRUE(home.read_to_end().complete());
}

TEST_P(RequestPlaneTest, StopCutsWhatRunsAndTellsTheHandler) {
  RequestPlane& plane = start();
  auto [served, home] = run();
  auto [finished, finished_home] = run();
  finished->finish();
  EXPECT_TRUE(finished_home.read_to_sentinel().complete());
  plane.stop();
  plane.stop();
  EXPECT_TRUE(served->cancelled_by(CancelKind::kGone));
  EXPECT_TRUE(home.closes_silently());
  EXPECT_EQ(plane.active_streams(), 0U);
  served->item(kItem);
  served->finish();
}

TEST_P(RequestPlaneTest, AHandlerThatThrowsCostsOnlyItsRequest) {
  RequestPlane& plane = start();
  const EndpointId bad{"dynamo", "backend", "bad"};
  auto transport = plane.add_endpoint(
      bad, 0x694d, [](IncomingRequest, std::shared_ptr<ResponseStream>) { throw std::runtime_error("a defect"); });
  ASSERT_TRUE(transport);
  const TestCall made = frontend_.make_call();
  EXPECT_EQ(GetParam().connect(*transport)(made, ""), "");
  const auto outcome = frontend_.accept(made.subject).read_to_end();
  EXPECT_FALSE(outcome.accepted || outcome.final);
  auto [served, home] = run();
  served->finish();
  EXPECT_TRUE(home.read_to_end().complete());
}

TEST_P(RequestPlaneTest, CountsWhatItDoes) {
  start();
  auto [served, home] = run({.body = "12345"});
  EXPECT_TRUE(exposes(metric("dynamo_component_inflight_requests", "", "1")));
  EXPECT_TRUE(exposes("dynamo_engine_request 1"));
  served->item(kItem);
  served->finish();
  EXPECT_TRUE(home.read_to_end().complete());
  ASSERT_TRUE(becomes_idle());
  EXPECT_TRUE(exposes(metric("dynamo_component_requests_total", "", "1")));
  EXPECT_TRUE(exposes(metric("dynamo_component_inflight_requests", "", "0")));
  EXPECT_TRUE(exposes(metric("dynamo_component_response_bytes_total", "", std::to_string(kItem.size()))));
  EXPECT_TRUE(exposes(metric("dynamo_component_request_duration_seconds_count", "", "1")));
  EXPECT_TRUE(exposes(metric("dynamo_component_errors_total", ",error_type=\"publish_final\"", "0")));
  EXPECT_TRUE(exposes("dynamo_work_handler_time_to_first_response_seconds_count 1"));
}

INSTANTIATE_TEST_SUITE_P(Planes, RequestPlaneTest, ::testing::Values(kTcp),
                         [](const auto& kind) { return std::string(kind.param.name); });

}  // namespace
}  // namespace dyn::runtime
