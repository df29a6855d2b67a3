#include "wire/event_records.h"

#include <gtest/gtest.h>

// The expected texts are records that the official publishers of Dynamo 1.0.2 and 1.5.1 wrote.
namespace dyn::wire {
namespace {

TEST(EventRecords, ComponentScopeIsThatOfDynamo10) {
  const EventScope scope{.ns = "dynamo", .component = "tensorrt_llm", .endpoint = {}};
  EXPECT_EQ(encode_file_name(event_channel_key(scope, "kv-events", 0x503596263c559497)),
            "dynamo%2Ftensorrt%5Fllm%2Fkv%2Devents%2F503596263c559497");
  EXPECT_EQ(
      encode_event_channel(scope, "kv-events", 5779690787765064855, {"Zmq", "tcp://192.0.2.2:46509"}),
      R"({"type":"EventChannel","namespace":"dynamo","component":"tensorrt_llm","topic":"kv-events",)"
      R"("instance_id":5779690787765064855,"transport":{"kind":"Zmq","config":{"endpoint":"tcp://192.0.2.2:46509"}}})");
}

TEST(EventRecords, EndpointScopeIsThatOfDynamo15) {
  const EventScope scope{.ns = "dynamo", .component = "tensorrt_llm", .endpoint = "generate"};
  constexpr uint64_t kPublisher = 8672353768874330;
  EXPECT_EQ(encode_file_name(event_channel_key(scope, "kv-events", kPublisher)),
            "namespace%2Fdynamo%2Fcomponent%2Ftensorrt%5Fllm%2Fendpoint%2Fgenerate%2Ftopic%2Fkv%2Devents%2F"
            "1ecf75b5c2a15a");
  EXPECT_EQ(event_source_key(scope, "kv-events", kPublisher), event_channel_key(scope, "kv-events", kPublisher));
  EXPECT_EQ(encode_event_channel(scope, "kv-events", kPublisher, {"Zmq", "tcp://192.0.2.2:39135"}),
            R"({"type":"EventChannel","scope":{"kind":"endpoint","endpoint":{"namespace":"dynamo",)"
            R"("component":"tensorrt_llm","name":"generate"}},"topic":"kv-events","instance_id":8672353768874330,)"
            R"("transport":{"kind":"Zmq","config":{"endpoint":"tcp://192.0.2.2:39135"}}})");

  const EventSource source{
      .publisher_id = kPublisher,
      .worker_id = 6030365813852983546,
      .dp_rank = 0,
      .recovery = {.ns = "dynamo",
                   .component = "tensorrt_llm",
                   .endpoint = "worker_kv_query_source_1ecf75b5c2a15a",
                   .instance_id = 6030365813852983546,
                   .transport_kind = "tcp",
                   .transport_address = "192.0.2.2:37871/53b029c1e85dd0fa/worker_kv_query_source_1ecf75b5c2a15a",
                   .device_type = "cuda",
                   .request_plane_codec = "msgpack"}};
  EXPECT_EQ(
      encode_event_source(scope, "kv-events", source),
      R"({"type":"EventSource","scope":{"kind":"endpoint","endpoint":{"namespace":"dynamo","component":"tensorrt_llm",)"
      R"("name":"generate"}},"topic":"kv-events","publisher_id":8672353768874330,"metadata":{"kv_state_endpoint":)"
      R"({"namespace":"dynamo","component":"tensorrt_llm","name":"generate"},"worker":{"worker_id":6030365813852983546,)"
      R"("dp_rank":0},"publisher_id":8672353768874330,"recovery_target":{"component":"tensorrt_llm",)"
      R"("endpoint":"worker_kv_query_source_1ecf75b5c2a15a","namespace":"dynamo","instance_id":6030365813852983546,)"
      R"("transport":{"tcp":"192.0.2.2:37871/53b029c1e85dd0fa/worker_kv_query_source_1ecf75b5c2a15a"},)"
      R"("device_type":"cuda","request_plane_codec":"msgpack"}}})");
}

TEST(EventRecords, SegmentsOfTheNewKeysAreEscaped) {
  const EventScope scope{.ns = "a.b", .component = "c/d", .endpoint = "generate"};
  EXPECT_EQ(event_channel_key(scope, "kv-events", 1),
            "namespace/a%2Eb/component/c%2Fd/endpoint/generate/topic/kv-events/1");
}

}  // namespace
}  // namespace dyn::wire
