// From engine steps to stream items: order, ends, cancels, late outputs, abandonment.
#include "worker/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "worker/aggregated_handler.h"
#include "worker/fake_stream.h"
#include "worker/probe.h"

namespace dyn::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FakeEngine final : public engine::Engine {
 public:
  [[nodiscard]] engine::Caps caps() const override {
    engine::Caps caps;
    caps.vocab_size = 300;
    caps.max_seq_len = 64;
    return caps;
  }
  Result<void> start(engine::Observer&) override { return {}; }
  Result<void> submit(engine::Request request) override {
    if (refuse) return Error{Code::kOverloaded, "queue full"};
    submitted.push_back(std::move(request));
    return {};
  }
  void abort(engine::RequestId id) noexcept override { aborted.push_back(id); }
  [[nodiscard]] engine::Stats stats() const override { return {}; }
  [[nodiscard]] engine::Health health() const override { return engine::Health::kReady; }
  bool drain(std::chrono::milliseconds) override { return true; }
  void stop() noexcept override {}

  bool refuse = false;
  std::vector<engine::Request> submitted;
  std::vector<engine::RequestId> aborted;
};

class DispatcherTest : public ::testing::Test {
 protected:
  DispatcherTest() {
    loops_.start();
    dispatcher_.set_engine(&engine_);
  }
  ~DispatcherTest() override { loops_.stop(); }

  // Runs on the loop and waits.
  template <class F>
  auto on_loop(F work) {
    std::promise<decltype(work())> done;
    auto result = done.get_future();
    loops_.at(0).post([&] {
      if constexpr (std::is_void_v<decltype(work())>) {
        work();
        done.set_value();
      } else {
        done.set_value(work());
      }
    });
    return result.get();
  }

  std::shared_ptr<FakeStream> stream() { return std::make_shared<FakeStream>(loops_.at(0)); }

  engine::RequestId open(const std::shared_ptr<FakeStream>& stream, std::vector<llm::TokenId> user_stops = {}) {
    return on_loop([&] {
      return dispatcher_.open(stream, {.codec = llm::Codec::kJson, .request_id = "r", .user_stop_ids = user_stops});
    });
  }

  // The engine's thread is the test's: one step with these outputs, then a round trip through the loop.
  void step(const std::vector<engine::RequestOutput>& outputs) {
    engine::StepOutput step;
    step.requests = outputs;
    dispatcher_.on_step(step);
    settle();
  }
  void settle() {
    for (int i = 0; i < 3; ++i) on_loop([] {});
  }

  engine::RequestOutput token(engine::RequestId id, const llm::TokenId& token) {
    engine::RequestOutput output;
    output.id = id;
    output.tokens = {&token, 1};
    return output;
  }

  net::LoopPool loops_{1, "net"};
  FakeEngine engine_;
  Dispatcher dispatcher_{loops_};
};

TEST_F(DispatcherTest, TokensReachTheirStreamsInOrder) {
  auto a = stream();
  auto b = stream();
  const auto ida = open(a);
  const auto idb = open(b);
  const llm::TokenId one = 1;
  const llm::TokenId two = 2;
  step({token(ida, one), token(idb, two)});
  step({token(ida, two)});
  EXPECT_THAT(a->items, ElementsAre(HasSubstr("[1]"), HasSubstr("[2]")));
  EXPECT_THAT(b->items, ElementsAre(HasSubstr("[2]")));
  EXPECT_EQ(a->flushes, 2);
  EXPECT_EQ(dispatcher_.open_requests(), 2U);
}

TEST_F(DispatcherTest, ChoicesCarryTheirIndexAndTheLastOneEndsTheStream) {
  auto a = stream();
  const auto id = open(a, {65});
  const llm::TokenId one = 1;
  auto second = token(id, one);
  second.choice = 1;
  step({token(id, one), second});
  const std::string plain = R"({"data":{"data":{"token_ids":[1]}},"complete_final":false})";
  EXPECT_THAT(a->items, ElementsAre(plain, HasSubstr(R"("index":1)")));
  const llm::TopLogprob scores[] = {{7, -0.5F, 0}, {9, -0.25F, 1}};
  second.finish = engine::FinishReason::kStop;
  second.stop_token = 65;
  second.more_choices = true;
  auto first = token(id, one);
  first.finish = engine::FinishReason::kLength;
  first.completion_tokens = 4;
  first.prompt_logprobs = scores;
  first.prompt_top_width = 2;
  step({second});
  ASSERT_EQ(a->items.size(), 3U);
  EXPECT_THAT(a->items[2], HasSubstr(R"("finish_reason":"stop","stop_reason":65,"index":1)"));
  EXPECT_THAT(a->items[2], ::testing::Not(HasSubstr("completion_usage")));
  EXPECT_FALSE(a->finished);
  EXPECT_EQ(a->flushes, 2);
  step({first});
  ASSERT_EQ(a->items.size(), 4U);
  EXPECT_THAT(a->items[3], HasSubstr(R"("completion_tokens":4)"));
  EXPECT_THAT(a->items[3],
              HasSubstr(R"("prompt_logprobs":[null,{"7":{"logprob":-0.5},"9":{"logprob":-0.25,"rank":1}}])"));
  EXPECT_TRUE(a->finished);
  EXPECT_EQ(dispatcher_.open_requests(), 0U);
}

TEST_F(DispatcherTest, TheLastChunkCarriesReasonUsageAndOnlyTheUsersStopToken) {
  auto a = stream();
  auto b = stream();
  const auto ida = open(a, {65});
  const auto idb = open(b, {65});
  engine::RequestOutput end;
  end.finish = engine::FinishReason::kStop;
  end.prompt_tokens = 5;
  end.completion_tokens = 3;
  end.cached_tokens = 4;
  auto end_a = end;
  end_a.id = ida;
  end_a.stop_token = 65;
  auto end_b = end;
  end_b.id = idb;
  end_b.stop_token = 2;  // eos: not the user's
  step({end_a, end_b});
  ASSERT_EQ(a->items.size(), 1U);
  EXPECT_THAT(a->items[0], HasSubstr(R"("finish_reason":"stop")"));
  EXPECT_THAT(a->items[0], HasSubstr(R"("stop_reason":65)"));
  EXPECT_THAT(a->items[0], HasSubstr(R"("prompt_tokens":5,"completion_tokens":3,"total_tokens":8)"));
  EXPECT_THAT(a->items[0], HasSubstr(R"("reused_tokens":4)"));
  EXPECT_THAT(b->items[0], ::testing::Not(HasSubstr("stop_reason")));
  EXPECT_TRUE(a->finished);
  EXPECT_EQ(dispatcher_.open_requests(), 0U);
}

TEST_F(DispatcherTest, CancelAbortsAndLateOutputsGoNowhere) {
  auto a = stream();
  const auto id = open(a);
  on_loop([&] { a->cancel(runtime::CancelKind::kKill); });
  EXPECT_THAT(engine_.aborted, ElementsAre(id));
  // The slot serves somebody else now.
  auto b = stream();
  const auto other = open(b);
  EXPECT_NE(other, id);
  const llm::TokenId one = 1;
  step({token(id, one)});
  EXPECT_THAT(a->items, IsEmpty());
  EXPECT_THAT(b->items, IsEmpty());
  EXPECT_FALSE(a->finished);
}

TEST_F(DispatcherTest, StopEndsTheStreamProperly) {
  auto a = stream();
  open(a);
  on_loop([&] { a->cancel(runtime::CancelKind::kStop); });
  EXPECT_THAT(a->items, ElementsAre(HasSubstr("cancelled")));
  EXPECT_TRUE(a->finished);
}

TEST_F(DispatcherTest, ASlowReaderGetsAnError) {
  auto a = stream();
  open(a);
  on_loop([&] { a->cancel(runtime::CancelKind::kTooSlow); });
  EXPECT_THAT(a->items, ElementsAre(HasSubstr("too slow")));
  EXPECT_TRUE(a->finished);
  EXPECT_EQ(dispatcher_.counters().too_slow, 1U);
}

TEST_F(DispatcherTest, AbandonTellsFrontendsToTryElsewhere) {
  auto a = stream();
  const auto id = open(a);
  dispatcher_.abandon_all();
  settle();
  EXPECT_THAT(a->items, ElementsAre(HasSubstr("EngineShutdown")));
  EXPECT_TRUE(a->abandoned);
  EXPECT_FALSE(a->finished);
  EXPECT_THAT(engine_.aborted, ElementsAre(id));
}

TEST_F(DispatcherTest, ManyStepsInFlightKeepOrderAndLoseNothing) {
  constexpr int kStreams = 300;  // more than a turn's budget together
  constexpr int kSteps = 50;
  std::vector<std::shared_ptr<FakeStream>> streams;
  std::vector<engine::RequestId> ids;
  for (int i = 0; i < kStreams; ++i) {
    streams.push_back(stream());
    ids.push_back(open(streams.back()));
  }
  std::promise<void> release;
  loops_.at(0).post([&] { release.get_future().wait(); });  // the loop lags
  for (llm::TokenId s = 0; s < kSteps; ++s) {
    std::vector<engine::RequestOutput> outputs;
    outputs.reserve(kStreams);
    for (const auto id : ids) outputs.push_back(token(id, s));
    engine::StepOutput step;
    step.requests = outputs;
    dispatcher_.on_step(step);
  }
  release.set_value();
  while (on_loop([&] { return streams.back()->items.size(); }) < kSteps) {
  }
  for (const auto& s : streams) {
    ASSERT_EQ(s->items.size(), static_cast<size_t>(kSteps));
    for (int i = 0; i < kSteps; ++i) {
      EXPECT_THAT(s->items[static_cast<size_t>(i)], HasSubstr("[" + std::to_string(i) + "]"));
    }
    EXPECT_LT(s->flushes, kSteps);  // merged
    EXPECT_GE(s->flushes, 1);
  }
}

TEST_F(DispatcherTest, ProbesAreAnsweredOnce) {
  int answers = 0;
  const auto id = dispatcher_.open_probe([&](Result<void> result) { answers += result.ok() ? 1 : 100; });
  const llm::TokenId one = 1;
  step({token(id, one)});
  step({token(id, one)});
  EXPECT_EQ(answers, 1);
  engine_.refuse = true;
  auto refused = run_probe(engine_, dispatcher_, {.bos = 1});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kOverloaded);
}

TEST_F(DispatcherTest, FatalEndsEverythingAndIsReported) {
  auto a = stream();
  open(a);
  std::string reported;
  dispatcher_.set_on_fatal([&](const Error& error) { reported = error.message; });
  auto probe = std::make_shared<std::promise<bool>>();
  dispatcher_.open_probe([probe](Result<void> result) { probe->set_value(result.ok()); });
  dispatcher_.on_fatal({Code::kEngineDead, "device lost"});
  settle();
  EXPECT_EQ(reported, "device lost");
  EXPECT_TRUE(a->abandoned);
  EXPECT_FALSE(probe->get_future().get());
}

class HandlerTest : public DispatcherTest {
 protected:
  void handle(const std::string& body, const std::shared_ptr<FakeStream>& stream) {
    AggregatedHandler handler({engine_, dispatcher_, RequestPolicy(engine_.caps(), {})});
    std::string padded = body + std::string(wire::kReadPadding, ' ');
    on_loop([&] {
      runtime::IncomingRequest request;
      request.control.id = "r";
      request.payload = as_bytes(std::string_view(padded).substr(0, body.size()));
      handler.handle(std::move(request), stream);
    });
  }
};

TEST_F(HandlerTest, AGoodRequestReachesTheEngine) {
  auto a = stream();
  handle(R"({"token_ids":[1,2,3],"stop_conditions":{"max_tokens":4}})", a);
  ASSERT_EQ(engine_.submitted.size(), 1U);
  EXPECT_THAT(engine_.submitted[0].token_ids, ElementsAre(1, 2, 3));
  EXPECT_EQ(engine_.submitted[0].max_tokens, 4U);
}

TEST_F(HandlerTest, BadBodiesAndOptionsAreA400OfThisRequest) {
  for (const char* body : {"", "{", "[]", R"({"token_ids":"x"})", R"({"token_ids":[]})", R"({"token_ids":[1000]})",
                           R"({"token_ids":[1],"sampling_options":{"n":2}})"}) {
    auto a = stream();
    handle(body, a);
    ASSERT_EQ(a->items.size(), 1U) << body;
    EXPECT_THAT(a->items[0], HasSubstr("InvalidArgument")) << body;
    EXPECT_THAT(a->items[0], HasSubstr(R"(\"code\":400)")) << body;
    EXPECT_TRUE(a->finished);
  }
  EXPECT_THAT(engine_.submitted, IsEmpty());
  EXPECT_EQ(dispatcher_.open_requests(), 0U);
}

TEST_F(HandlerTest, ZeroTokensNeedNoEngine) {
  auto a = stream();
  handle(R"({"token_ids":[1,2],"stop_conditions":{"max_tokens":0}})", a);
  EXPECT_THAT(a->items, ElementsAre(HasSubstr(R"("finish_reason":"length")")));
  EXPECT_TRUE(a->finished);
  EXPECT_THAT(engine_.submitted, IsEmpty());
}

TEST_F(HandlerTest, AFullEngineIsToldToTheCaller) {
  engine_.refuse = true;
  auto a = stream();
  handle(R"({"token_ids":[1]})", a);
  ASSERT_EQ(a->items.size(), 1U);
  EXPECT_THAT(a->items[0], HasSubstr("queue full"));
  EXPECT_TRUE(a->finished);
}

TEST(HandlerFactory, UnknownRolesAreRefusedByName) {
  net::LoopPool loops(1, "net");
  FakeEngine engine;
  Dispatcher dispatcher(loops);
  const HandlerContext context{engine, dispatcher, RequestPolicy(engine.caps(), {})};
  auto factory = HandlerFactory::with_built_in_roles();
  EXPECT_TRUE(factory.create(Role::kAggregated, context));
  auto prefill = factory.create(Role::kPrefill, context);
  ASSERT_FALSE(prefill);
  EXPECT_THAT(prefill.error().message, HasSubstr("prefill"));
  factory.register_handler(Role::kPrefill, [](const auto& c) { return std::make_unique<AggregatedHandler>(c); });
  EXPECT_TRUE(factory.create(Role::kPrefill, context));
}

}  // namespace
}  // namespace dyn::worker
