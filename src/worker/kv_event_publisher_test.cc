// A plane without sockets hands queries over; the events go through real ones.
#include "worker/kv_event_publisher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/ids.h"
#include "base/test_support.h"
#include "runtime/discovery/mem_discovery.h"
#include "runtime/event_plane/test_subscriber.h"
#include "wire/event_envelope.h"
#include "wire/msgpack_reader.h"
#include "worker/fake_stream.h"

namespace dyn::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

class FakePlane final : public runtime::RequestPlane {
 public:
  Result<void> start() override { return {}; }
  Result<runtime::Transport> add_endpoint(const runtime::EndpointId& id, uint64_t instance_id,
                                          runtime::RequestHandler handler, const metrics::Labels&) override {
    handlers[id.name] = std::move(handler);
    return runtime::Transport{"tcp", "127.0.0.1:1/" + to_hex(instance_id) + "/" + id.name};
  }
  void remove_endpoint(const runtime::EndpointId& id) override { handlers.erase(id.name); }
  bool drain(std::chrono::milliseconds) override { return true; }
  void stop() override {}
  [[nodiscard]] size_t active_streams() const override { return 0; }

  std::map<std::string, runtime::RequestHandler> handlers;
};

llm::KvBlocksStored stored(std::optional<llm::BlockHash> parent, std::vector<llm::BlockHash> blocks) {
  llm::KvBlocksStored event{
      .parent = parent, .blocks = std::move(blocks), .tokens = {}, .block_size = 1, .cache_salt = {}};
  event.tokens.assign(event.blocks.size(), 7);
  return event;
}

class KvEventPublisherTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kWorker = 0x1234;

  KvEventPublisherTest() { loops_.start(); }
  ~KvEventPublisherTest() override { loops_.stop(); }

  static std::shared_ptr<runtime::EventPublisher> socket(uint64_t publisher_id) {
    return *runtime::make_zmq_event_publisher({.publisher_id = publisher_id, .host = "127.0.0.1"});
  }

  void publish(const llm::KvEvent& event) { events_.on_events({&event, 1}); }

  std::vector<runtime::Record> records(const char* bucket) {
    auto found = discovery_->list(bucket, "");
    return found ? *found : std::vector<runtime::Record>{};
  }

  // The answer to a query at the endpoint whose name starts like this.
  std::string ask(const std::string& endpoint, const std::string& body,
                  const std::map<std::string, std::string>& headers = {}) {
    auto stream = std::make_shared<FakeStream>(loops_.at(0));
    loops_.at(0).run_sync([&] {
      runtime::IncomingRequest request;
      request.control.payload_codec = wire::PayloadCodec::kJson;
      request.headers = headers;
      request.payload = as_bytes(body);
      plane_.handlers.lower_bound(endpoint)->second(std::move(request), stream);
    });
    bool finished = false;
    EXPECT_TRUE(eventually([&] {
      loops_.at(0).run_sync([&] { finished = stream->finished; });
      return finished;
    }));
    return stream->items.empty() ? "" : stream->items.front();
  }

  net::LoopPool loops_{1, "net"};
  metrics::Registry registry_;
  std::unique_ptr<runtime::Discovery> discovery_ = runtime::make_mem_discovery();
  FakePlane plane_;
  KvEventPublisher events_{{.endpoint = {"dynamo", "backend", "generate"},
                            .worker_id = kWorker,
                            .traits = {.device_type = "cpu", .codec = "msgpack"},
                            .labels = {}},
                           {.component = socket(kWorker), .endpoint = socket(runtime::random_publisher_id())},
                           *discovery_,
                           plane_,
                           registry_};
};

TEST_F(KvEventPublisherTest, RecordsComeAndGo) {
  ASSERT_TRUE(events_.start());
  EXPECT_THAT(records(runtime::kEventChannelsBucket), SizeIs(2));
  EXPECT_THAT(records(runtime::kEventSourcesBucket), SizeIs(1));
  EXPECT_THAT(records(runtime::kInstancesBucket), SizeIs(3));
  EXPECT_THAT(plane_.handlers, SizeIs(3));
  events_.close();
  EXPECT_THAT(records(runtime::kEventChannelsBucket), IsEmpty());
  EXPECT_THAT(records(runtime::kEventSourcesBucket), IsEmpty());
  EXPECT_THAT(records(runtime::kInstancesBucket), IsEmpty());
  EXPECT_THAT(plane_.handlers, IsEmpty());
}

TEST_F(KvEventPublisherTest, BothPublicationsCarryTheSameNumbers) {
  ASSERT_TRUE(events_.start());
  const auto channels = records(runtime::kEventChannelsBucket);
  ASSERT_THAT(channels, SizeIs(2));
  for (const runtime::Record& channel : channels) {
    const bool is_endpoint_scope = channel.value.find("\"scope\"") != std::string::npos;
    const auto begin = channel.value.find("tcp://");
    runtime::testing::Subscriber subscriber(channel.value.substr(begin, channel.value.find('"', begin) - begin));
    std::vector<std::string> parts;
    llm::BlockHash hash = is_endpoint_scope ? 1000 : 5000;
    while (parts.empty()) {
      publish(stored({}, {hash++}));
      parts = subscriber.receive();
    }
    ASSERT_THAT(parts, SizeIs(4));
    const auto envelope = wire::read_event_frame(as_bytes(parts[3]));
    ASSERT_TRUE(envelope) << envelope.error().message;
    wire::MsgpackReader reader(envelope->payload);
    EXPECT_EQ(reader.peek(), is_endpoint_scope ? wire::Kind::kArray : wire::Kind::kObject);
    Buffer json;
    ASSERT_TRUE(reader.append_json(json));
    EXPECT_THAT(std::string(as_text(json.view())), HasSubstr("\"worker_id\":4660"));
    if (!is_endpoint_scope) EXPECT_EQ(envelope->publisher_id, kWorker);
  }
}

TEST_F(KvEventPublisherTest, EachGenerationGetsItsFormOfAnswer) {
  publish(stored({}, {1, 2}));
  ASSERT_TRUE(events_.start());
  const std::string query = R"({"worker_id":4660,"start_event_id":null,"end_event_id":null})";
  EXPECT_THAT(ask("worker_kv_indexer_query_dp0", query), StartsWith(R"({"data":{"TreeDump":[{"worker_id":4660,)"));
  EXPECT_THAT(ask("worker_kv_indexer_query_dp0", query, {{"x-frontend-send-ts-ns", "1"}}),
              StartsWith(R"({"data":{"TreeDump":{"events":[)"));
  const std::string answer = ask("worker_kv_query_source_", query);
  EXPECT_THAT(answer, HasSubstr(R"("last_event_id":1,"reset_scope":"all")"));
  EXPECT_THAT(answer, HasSubstr(R"("storage_tier":"device")"));
}

TEST_F(KvEventPublisherTest, WrongQueriesAreTold) {
  ASSERT_TRUE(events_.start());
  EXPECT_THAT(ask("worker_kv_query_source_", "no json"), HasSubstr("\"Error\""));
  EXPECT_THAT(ask("worker_kv_query_source_", R"({"worker_id":1})"), HasSubstr("this is worker 4660"));
  EXPECT_THAT(ask("worker_kv_query_source_", R"({"worker_id":4660,"dp_rank":1})"), HasSubstr("rank 0 only"));
  EXPECT_THAT(ask("worker_kv_query_source_", R"({"worker_id":4660,"kind":{"status":{}}})"),
              HasSubstr("only recovery queries"));
}

TEST_F(KvEventPublisherTest, WhoFallsBehindForgetsAndLearnsAnew) {
  std::vector<llm::BlockHash> many(KvEventPublisher::kMaxQueuedBlocks);
  for (size_t i = 0; i < many.size(); ++i) many[i] = i + 1;
  publish(stored({}, std::move(many)));
  publish(stored({}, {77}));  // one too many: nobody takes them out yet
  ASSERT_TRUE(events_.start());
  const std::string query = R"({"worker_id":4660,"start_event_id":1,"end_event_id":null})";
  EXPECT_THAT(ask("worker_kv_query_source_", query), HasSubstr(R"("data":"cleared")"));
  EXPECT_THAT(registry_.exposition(), HasSubstr("dynamo_trtllm_kv_events_dropped_total 2"));
  publish(stored({}, {5}));
  EXPECT_TRUE(eventually(
      [&] { return ask("worker_kv_query_source_", query).find(R"("block_hash":5,)") != std::string::npos; }));
}

}  // namespace
}  // namespace dyn::worker
