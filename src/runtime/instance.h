// The instance record of an endpoint, as it is put into discovery once the endpoint's route answers.
//
//   auto transport = plane->add_endpoint(id, discovery->instance_id(), handler);
//   discovery->put(instance_record(id, *transport, discovery->instance_id(), {.codec = "json"}));
//
// Thread rules: plain functions. Facts: lib/runtime/src/component.rs of Dynamo 0.8 ... 1.6.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/discovery/discovery.h"
#include "runtime/request_plane/request_plane.h"

namespace dyn::runtime {

struct InstanceTraits {
  std::string device_type;  // "cpu", "cuda"; empty: not written
  std::string codec;        // "json", "msgpack": what callers from 1.4 on may send; empty: not written, they send JSON
};

Record instance_record(const EndpointId& endpoint, const Transport& transport, uint64_t instance_id,
                       const InstanceTraits& traits = {});

// "dynamo.backend.generate", for people and logs.
std::string to_string(const EndpointId& id);

}  // namespace dyn::runtime
