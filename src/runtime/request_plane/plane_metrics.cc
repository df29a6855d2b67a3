#include "runtime/request_plane/plane_metrics.h"

#include <string>
#include <vector>

#include "base/ids.h"

namespace dyn::runtime {
namespace {

const std::vector<double> kDurationBuckets = {.005, .01, .025, .05, .1, .25, .5,  1,  2.5,
                                              5,    10,  20,   30,  60, 120, 300, 600};
const std::vector<double> kPermitWaitBuckets = {.0001, .001, .01, .05, .1, .5, 1, 5, 10, 30, 60};
const std::vector<double> kTransitBuckets = {.0001, .0005, .001, .005, .01, .05, .1, .5, 1};
const std::vector<double> kFirstResponseBuckets = {.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60};

metrics::Labels endpoint_labels(const EndpointId& id, uint64_t instance_id, metrics::Labels labels) {
  labels["dynamo_namespace"] = id.ns;
  labels["dynamo_component"] = id.component;
  labels["dynamo_endpoint"] = id.name;
  labels["worker_id"] = to_hex(instance_id);
  return labels;
}

}  // namespace

std::string_view to_string(ErrorType type) {
  switch (type) {
    case ErrorType::kDeserialization:
      return "deserialization";
    case ErrorType::kInvalidMessage:
      return "invalid_message";
    case ErrorType::kResponseStream:
      return "response_stream";
    case ErrorType::kGenerate:
      return "generate";
    case ErrorType::kPublishResponse:
      return "publish_response";
    case ErrorType::kPublishFinal:
      return "publish_final";
  }
  return "unknown";
}

EndpointMetrics::EndpointMetrics(metrics::Registry& registry, const EndpointId& id, uint64_t instance_id,
                                 const metrics::Labels& extra)
    : requests(registry.counter("dynamo_component_requests_total", "Total number of requests processed by work handler",
                                endpoint_labels(id, instance_id, extra))),
      duration(registry.histogram("dynamo_component_request_duration_seconds",
                                  "Time spent processing requests by work handler", kDurationBuckets,
                                  endpoint_labels(id, instance_id, extra))),
      inflight(registry.gauge("dynamo_component_inflight_requests",
                              "Number of requests currently being processed by work handler",
                              endpoint_labels(id, instance_id, extra))),
      request_bytes(registry.counter("dynamo_component_request_bytes_total",
                                     "Total number of bytes received in requests by work handler",
                                     endpoint_labels(id, instance_id, extra))),
      response_bytes(registry.counter("dynamo_component_response_bytes_total",
                                      "Total number of bytes sent in responses by work handler",
                                      endpoint_labels(id, instance_id, extra))),
      cancellations(registry.counter("dynamo_component_cancellation_total",
                                     "Total number of requests cancelled by work handler",
                                     endpoint_labels(id, instance_id, extra))),
      errors{} {
  for (size_t i = 0; i < kErrorTypes; ++i) {
    metrics::Labels labels = endpoint_labels(id, instance_id, extra);
    labels["error_type"] = std::string(to_string(static_cast<ErrorType>(i)));
    errors[i] =
        &registry.counter("dynamo_component_errors_total", "Total number of errors in work handler processing", labels);
  }
}

PlaneMetrics::PlaneMetrics(metrics::Registry& registry)
    : queue_depth(registry.gauge("dynamo_work_handler_queue_depth", "Requests that wait for a slot")),
      queue_capacity(registry.gauge("dynamo_work_handler_queue_capacity", "Requests that may wait for a slot")),
      active_tasks(registry.gauge("dynamo_work_handler_pool_active_tasks", "Slots in use")),
      task_capacity(registry.gauge("dynamo_work_handler_pool_capacity", "Slots for running requests")),
      enqueue_rejected(registry.counter("dynamo_work_handler_enqueue_rejected_total",
                                        "Requests refused because slots and queue were full")),
      permit_wait(registry.histogram("dynamo_work_handler_permit_wait_seconds",
                                     "Time from a request's arrival to its slot", kPermitWaitBuckets)),
      network_transit(registry.histogram("dynamo_work_handler_network_transit_seconds",
                                         "Time from the caller's send to the arrival, by the two hosts' clocks",
                                         kTransitBuckets)),
      time_to_first_response(registry.histogram("dynamo_work_handler_time_to_first_response_seconds",
                                                "Time from a request's arrival to its first response item",
                                                kFirstResponseBuckets)),
      rejections(registry.counter("dynamo_rejection_request_total", "Requests refused for lack of capacity")),
      engine_requests(registry.gauge("dynamo_engine_request", "Requests handed to the engine")),
      queued_requests(registry.gauge("dynamo_request_queue", "Requests that wait for the engine")),
      bytes_sent(registry.counter("dynamo_transport_tcp_bytes_sent_total", "Bytes sent on response connections")),
      bytes_received(
          registry.counter("dynamo_transport_tcp_bytes_received_total", "Bytes received on request connections")),
      transport_errors(registry.counter("dynamo_transport_tcp_errors_total",
                                        "Request connections closed because of bytes that are no frame")),
      accept_backoffs(registry.counter("dynamo_transport_tcp_accept_backoff_total",
                                       "Pauses in accepting connections for want of descriptors or memory")) {}

}  // namespace dyn::runtime
