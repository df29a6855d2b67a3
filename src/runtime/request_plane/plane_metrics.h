// The request plane's metrics: one set for each endpoint, and one for the process.
//
//   PlaneMetrics plane(registry);
//   EndpointMetrics endpoint(registry, id, instance_id, {{"model", "tiny"}});
//   endpoint.requests.increment();
//
// Names, help texts and buckets are those of Dynamo 1.5 (lib/runtime/src/metrics/prometheus_names.rs, of which the
// older releases have a part); every error type exists from the start, so that a rate over it is defined. Ownership:
// handles of the registry, which must outlive them. Thread rules: safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/metrics.h"
#include "runtime/request_plane/request_plane.h"

namespace dyn::runtime {

enum class ErrorType : uint8_t {
  kDeserialization,
  kInvalidMessage,
  kResponseStream,
  kGenerate,
  kPublishResponse,
  kPublishFinal,
};
inline constexpr size_t kErrorTypes = 6;
std::string_view to_string(ErrorType type);

struct EndpointMetrics {
  EndpointMetrics(metrics::Registry& registry, const EndpointId& id, uint64_t instance_id,
                  const metrics::Labels& labels);

  metrics::Counter& error(ErrorType type) { return *errors[static_cast<size_t>(type)]; }

  metrics::Counter& requests;
  metrics::Histogram& duration;
  metrics::Gauge& inflight;
  metrics::Counter& request_bytes;
  metrics::Counter& response_bytes;
  metrics::Counter& cancellations;
  std::array<metrics::Counter*, kErrorTypes> errors;
};

struct PlaneMetrics {
  explicit PlaneMetrics(metrics::Registry& registry);

  metrics::Gauge& queue_depth;
  metrics::Gauge& queue_capacity;
  metrics::Gauge& active_tasks;
  metrics::Gauge& task_capacity;
  metrics::Counter& enqueue_rejected;
  metrics::Histogram& permit_wait;
  metrics::Histogram& network_transit;
  metrics::Histogram& time_to_first_response;
  metrics::Counter& rejections;
  metrics::Gauge& engine_requests;
  metrics::Gauge& queued_requests;
  metrics::Counter& bytes_sent;
  metrics::Counter& bytes_received;
  metrics::Counter& transport_errors;
  metrics::Counter& accept_backoffs;
};

}  // namespace dyn::runtime
