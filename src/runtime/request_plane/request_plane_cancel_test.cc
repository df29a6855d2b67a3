// The contract: cancellation at every point, slow readers, many requests at once.
#include <sys/socket.h>

#include <atomic>
#include <random>
#include <set>
#include <thread>

#include "runtime/request_plane/request_plane_contract.h"

namespace dyn::runtime {
namespace {
using namespace std::chrono_literals;
using testing::Caller;
using testing::CallHome;
using testing::kItem;
using testing::PlaneSettings;
using testing::RequestPlaneTest;
using testing::ServedRequest;
using testing::TestCall;
using testing::TestFrontend;
using Event = testing::StrictStreamReader::Event;
using wire::ControlWord;

// ---- cancellation

TEST_P(RequestPlaneTest, StopAsksToEndSoon) {
  start();
  auto [served, home] = run();
  served->item(kItem);
  home.send(ControlWord::kStop);
  home.send(ControlWord::kStop);
  ASSERT_TRUE(served->cancelled_by(CancelKind::kStop));
  served->on([](ResponseStream& stream) { EXPECT_FALSE(stream.cancelled()); });
  served->item(kItem);
  served->finish();
  const auto outcome = home.read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  EXPECT_EQ(outcome.items.size(), 2U);
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(served->well_behaved());
  EXPECT_EQ(served->cancels(), std::set{CancelKind::kStop});
  EXPECT_TRUE(exposes(metric("dynamo_component_cancellation_total", "", "1")));
}

TEST_P(RequestPlaneTest, KillEndsWithoutAnotherByte) {
  start();
  auto [served, home] = run();
  served->item(kItem);
  EXPECT_EQ(home.next(), Event::kAccepted);
  EXPECT_EQ(home.next(), Event::kItem);
  home.send(ControlWord::kKill);
  ASSERT_TRUE(served->cancelled_by(CancelKind::kKill));
  served->on([](ResponseStream& stream) { EXPECT_TRUE(stream.cancelled()); });
  served->item(kItem);
  served->finish();
  EXPECT_TRUE(home.closes_silently());
  EXPECT_TRUE(becomes_idle());
  EXPECT_EQ(served->cancels(), std::set{CancelKind::kKill});
  EXPECT_TRUE(exposes(metric("dynamo_component_cancellation_total", "", "1")));
}

TEST_P(RequestPlaneTest, KillRightAfterTheHandshake) {
  start();
  auto [served, home] = run();
  home.send(ControlWord::kKill);
  ASSERT_TRUE(served->cancelled_by(CancelKind::kKill));
  EXPECT_TRUE(home.closes_silently());
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, StopAndKillTogetherAreAKill) {
  start();
  auto [served, home] = run();
  home.send(ControlWord::kStop);
  home.send(ControlWord::kKill);
  home.shutdown_write();
  ASSERT_TRUE(served->cancelled_by(CancelKind::kKill));
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(served->well_behaved());
  EXPECT_FALSE(served->cancels().contains(CancelKind::kGone));
}

TEST_P(RequestPlaneTest, TheCallersFinBeforeTheEndMeansGone) {
  start();
  auto [served, home] = run();
  served->item(kItem);
  home.shutdown_write();
  EXPECT_TRUE(served->cancelled_by(CancelKind::kGone));
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, AResetHitsOnlyItsOwnStream) {
  start();
  auto other = run();
  for (const bool before_accept : {true, false}) {
    auto [served, home] = run();
    if (!before_accept) {
      served->item(kItem);
      EXPECT_EQ(home.next(), Event::kAccepted);
    }
    home.reset();
    EXPECT_TRUE(served->cancelled_by(CancelKind::kGone));
    served->item(kItem);
    served->finish();
    EXPECT_TRUE(served->well_behaved());
  }
  EXPECT_TRUE(eventually([&] { return plane_->active_streams() == 1; }));
  other.served->item(kItem);
  other.served->finish();
  EXPECT_TRUE(other.home.read_to_end().complete());
}

TEST_P(RequestPlaneTest, AWriteErrorIsReportedButNotFromInside) {
  start();
  auto [served, home] = run();
  home.reset();
  // Whether the loop or the write sees it first is a race; either way the report comes from outside.
  served->on([&](ResponseStream& stream) {
    for (int i = 0; i < 100; ++i) {
      stream.begin_item().append(kItem);
      stream.end_item();
      stream.flush();
    }
  });
  EXPECT_TRUE(served->cancelled_by(CancelKind::kGone));
  EXPECT_TRUE(served->well_behaved());
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, ControlFramesAfterTheFinalAreIgnored) {
  start();
  for (const ControlWord word : {ControlWord::kStop, ControlWord::kKill}) {
    auto [served, home] = run();
    served->finish();
    EXPECT_TRUE(home.read_to_sentinel().complete());
    home.send(word);
    home.shutdown_write();
    EXPECT_TRUE(home.closes_silently());
    EXPECT_TRUE(served->cancels().empty());
  }
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(exposes(metric("dynamo_component_cancellation_total", "", "0")));
}

TEST_P(RequestPlaneTest, UnknownControlFramesAreIgnored) {
  start();
  auto [served, home] = run();
  Buffer out;
  wire::encode_two_part_header(out, R"({"something":"new"})");
  home.send_bytes(as_text(out.view()));
  home.send(ControlWord::kSentinel);
  // One byte at a time.
  Buffer stop;
  wire::encode_control(stop, ControlWord::kStop);
  for (const char byte : as_text(stop.view())) home.send_bytes({&byte, 1});
  EXPECT_TRUE(served->cancelled_by(CancelKind::kStop));
  served->finish();
  EXPECT_TRUE(home.read_to_end().complete());
  EXPECT_EQ(served->cancels(), std::set{CancelKind::kStop});
}

TEST_P(RequestPlaneTest, GarbageInsteadOfControlFramesMeansGone) {
  start();
  auto [served, home] = run();
  home.send_bytes(std::string(1000, '\xff'));
  EXPECT_TRUE(served->cancelled_by(CancelKind::kGone));
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, AnEarlierCancelIsReportedToALateObserver) {
  start();
  auto [served, home] = run();
  served->on([](ResponseStream& stream) { stream.set_observer(nullptr); });
  home.send(ControlWord::kKill);
  EXPECT_TRUE(home.closes_silently());
  EXPECT_TRUE(served->cancels().empty());
  served->on([&](ResponseStream& stream) { stream.set_observer(served.get()); });
  EXPECT_TRUE(served->cancelled_by(CancelKind::kKill));
  EXPECT_TRUE(served->well_behaved());
}

TEST_P(RequestPlaneTest, ACallerThatCannotBeReachedIsGone) {
  start();
  uint16_t closed_port = 0;
  {
    const TestFrontend gone;
    closed_port = gone.port();
  }
  call(frontend_.make_call({.host = "127.0.0.1", .port = closed_port}));
  auto served = handler_.next();
  EXPECT_TRUE(served->cancelled_by(CancelKind::kGone));
  served->finish();
  EXPECT_TRUE(becomes_idle());
  call(frontend_.make_call({.host = "not-an-address", .port = 9}));
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(exposes(metric("dynamo_component_errors_total", ",error_type=\"response_stream\"", "2")));
  EXPECT_TRUE(exposes(metric("dynamo_component_inflight_requests", "", "0")));
}

TEST_P(RequestPlaneTest, ACallerThatNeverAnswersTheDialIsGone) {
  PlaneSettings settings;
  settings.call_home.connect_timeout = 100ms;
  start(settings);
  // A full backlog: the kernel drops further handshakes.
  TestFrontend full;
  ASSERT_EQ(::listen(full.listener(), 0), 0);
  std::vector<std::shared_ptr<ServedRequest>> served;
  bool one_gone = false;
  for (int i = 0; i < 4; ++i) {
    call(full.make_call());
    served.push_back(handler_.next());
    one_gone = one_gone || served.back()->cancelled_by(CancelKind::kGone, 500ms);
  }
  EXPECT_TRUE(one_gone);
  for (auto& each : served) each->drop();
}

// ---- slow readers

TEST_P(RequestPlaneTest, ASlowReaderIsBoundedAndHearsTheLastWords) {
  PlaneSettings settings;
  settings.call_home.max_buffered_bytes = 256 * 1024;
  start(settings);
  auto [served, home] = run();
  const std::string item(64 * 1024, 'x');
  size_t written = 0;
  while (served->cancels().empty() && written < 1000) {
    served->item(item);
    ++written;
  }
  EXPECT_TRUE(served->cancelled_by(CancelKind::kTooSlow));
  served->on([&](ResponseStream& stream) {
    EXPECT_FALSE(stream.cancelled());
    EXPECT_LE(stream.buffered_bytes(), 256 * 1024 + 4 * (item.size() + 24));
    stream.begin_item().append(R"({"data":{"event":"error"},"complete_final":false})");
    stream.end_item();
    stream.finish();
  });
  const auto outcome = home.read_to_end();
  EXPECT_TRUE(outcome.complete()) << outcome.violation;
  EXPECT_EQ(outcome.items.size(), written + 1);
  EXPECT_TRUE(served->well_behaved());
  EXPECT_TRUE(becomes_idle());
}

TEST_P(RequestPlaneTest, WhoGoesOnWritingToASlowReaderIsCutOff) {
  PlaneSettings settings;
  settings.call_home.max_buffered_bytes = 256 * 1024;
  start(settings);
  auto [served, home] = run();
  const std::string item(64 * 1024, 'x');
  bool cut = false;
  for (int i = 0; i < 1000 && !cut; ++i) {
    served->item(item);
    served->on([&](ResponseStream& stream) { cut = stream.cancelled(); });
  }
  EXPECT_TRUE(cut);
  EXPECT_TRUE(served->cancelled_by(CancelKind::kGone));
  EXPECT_TRUE(becomes_idle());
  const auto outcome = home.read_to_end();
  EXPECT_FALSE(outcome.final);
}

TEST_P(RequestPlaneTest, AReaderThatStallsAfterTheEndIsCutOff) {
  PlaneSettings settings;
  settings.call_home.stall_limit = 50ms;
  start(settings);
  auto [served, home] = run();
  served->item(std::string(20'000'000, 'x'));
  served->finish();
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(exposes(metric("dynamo_component_errors_total", ",error_type=\"publish_final\"", "1")));
}

TEST_P(RequestPlaneTest, ACallerThatNeverClosesIsClosed) {
  PlaneSettings settings;
  settings.call_home.close_wait = 50ms;
  start(settings);
  auto [served, home] = run();
  served->finish();
  EXPECT_TRUE(home.read_to_sentinel().complete());
  EXPECT_TRUE(home.closes_silently());
  EXPECT_EQ(home.end(), CallHome::End::kEof);
}

// ---- many

// A handler that serves by itself on the loop: a few items, or whatever the caller's cancel leaves of them.
struct SelfServing final : ResponseStream::Observer, std::enable_shared_from_this<SelfServing> {
  explicit SelfServing(std::shared_ptr<ResponseStream> response) : stream(std::move(response)) {}
  void begin() {
    stream->set_observer(this);
    self = shared_from_this();
    step();
  }
  void step() {
    if (!stream) return;
    if (left-- == 0) {
      end();
      return;
    }
    stream->begin_item().append(kItem);
    stream->end_item();
    stream->flush();
    stream->loop().post([me = shared_from_this()] { me->step(); });
  }
  void end() {
    stream->set_observer(nullptr);
    stream->finish();
    stream.reset();
    self.reset();
  }
  void on_cancel(CancelKind) override {
    const auto keep_alive = self;
    end();
  }
  std::shared_ptr<ResponseStream> stream;
  std::shared_ptr<SelfServing> self;
  int left = 5;
};

TEST_P(RequestPlaneTest, TenThousandRequestsWithCancelsAnywhere) {
  RequestPlane& plane = start();
  std::atomic<int> served = 0;
  const EndpointId id{"dynamo", "backend", "echo"};
  auto transport = plane.add_endpoint(id, 1, [&](IncomingRequest, std::shared_ptr<ResponseStream> stream) {
    served.fetch_add(1, std::memory_order_relaxed);
    std::make_shared<SelfServing>(std::move(stream))->begin();
  });
  ASSERT_TRUE(transport);
  constexpr int kThreads = 8;
  constexpr int kRequests = 1250;
  std::atomic<int> complete = 0;
  std::atomic<int> cancelled = 0;
  std::atomic<int> wrong = 0;
  const auto body = [&](unsigned seed) {
    std::minstd_rand random(seed);
    TestFrontend frontend;
    const Caller caller = GetParam().connect(*transport);
    for (int i = 0; i < kRequests; ++i) {
      const TestCall made = frontend.make_call();
      if (!caller(made, "").empty()) ++wrong;
      CallHome home = frontend.accept(made.subject);
      if (random() % 2 == 0) {
        const auto outcome = home.read_to_end();
        ++(outcome.complete() && outcome.items.size() == 5 ? complete : wrong);
        continue;
      }
      for (auto events = random() % 8; events > 0; --events) {
        if (home.next() == Event::kViolation) ++wrong;
        if (home.end() != CallHome::End::kOpen) break;
      }
      switch (random() % 4) {
        case 0:
          home.send(ControlWord::kKill);
          home.close();
          break;
        case 1:
          home.reset();
          break;
        case 2:
          home.send(ControlWord::kStop);
          if (!home.read_to_end().violation.empty()) ++wrong;
          break;
        default:
          home.close();
      }
      ++cancelled;
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) threads.emplace_back(body, i + 1);
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(complete + cancelled, kThreads * kRequests);
  EXPECT_EQ(served, kThreads * kRequests);
  EXPECT_TRUE(becomes_idle());
  EXPECT_TRUE(exposes("dynamo_work_handler_pool_active_tasks 0"));
}

}  // namespace
}  // namespace dyn::runtime
