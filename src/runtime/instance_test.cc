#include "runtime/instance.h"

#include <gtest/gtest.h>

namespace dyn::runtime {
namespace {

TEST(InstanceRecord, KeyInHexAndValueInDecimal) {
  const EndpointId id{"dynamo", "backend", "generate"};
  const auto record = instance_record(id, {"tcp", "10.0.0.21:40123/f94d9b7a3c1e5f02/generate"}, 0xf94d9b7a3c1e5f02,
                                      {.device_type = "cuda", .codec = "json"});
  EXPECT_EQ(record.bucket, "v1/instances");
  EXPECT_EQ(record.key, "dynamo/backend/generate/f94d9b7a3c1e5f02");
  EXPECT_EQ(record.value,
            R"({"type":"Endpoint","component":"backend","endpoint":"generate","namespace":"dynamo",)"
            R"("instance_id":17964185437947715330,"transport":{"tcp":"10.0.0.21:40123/f94d9b7a3c1e5f02/generate"},)"
            R"("device_type":"cuda","request_plane_codec":"json"})");
  EXPECT_EQ(to_string(id), "dynamo.backend.generate");
}

TEST(InstanceRecord, WhatIsNotKnownIsNotWritten) {
  const auto record = instance_record({"n", "c", "e"}, {"nats_tcp", "n_c.e-1f"}, 0x1f);
  EXPECT_EQ(record.key, "n/c/e/1f");
  EXPECT_EQ(record.value, R"({"type":"Endpoint","component":"c","endpoint":"e","namespace":"n","instance_id":31,)"
                          R"("transport":{"nats_tcp":"n_c.e-1f"}})");
}

}  // namespace
}  // namespace dyn::runtime
