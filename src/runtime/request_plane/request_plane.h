// RequestPlane: how requests reach the endpoints of this process.
//
//   auto plane = make_tcp_request_plane(options, loops, metrics);
//   plane->start();
//   auto transport = plane->add_endpoint({"dynamo", "backend", "generate"}, instance_id, handler);
//   // transport == {"tcp", "10.0.0.21:40123/694d9b7a3c1e5f02/generate"}: the instance record's `transport`
//   plane->remove_endpoint(...);    // new frames are answered as unknown; running streams go on
//   plane->drain(deadline);         // waits for the running streams
//   plane->stop();
//
// The plane acknowledges a request at once, applies the admission limits, dials the caller back and only then calls the
// handler, on a net loop. Thread rules: start/add/remove/drain/stop from the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/metrics.h"
#include "base/result.h"
#include "runtime/request_plane/response_stream.h"
#include "wire/control_message.h"

namespace dyn::runtime {

struct EndpointId {
  std::string ns;         // "dynamo"
  std::string component;  // "backend"
  std::string name;       // "generate"

  bool operator==(const EndpointId&) const = default;
};

struct IncomingRequest {
  wire::ControlMessage control;                // id, payload codec, where to call back
  std::map<std::string, std::string> headers;  // of the frame: traceparent, request-id, ...
  Bytes payload;  // the body; valid during the handler call, kReadPadding more bytes readable
  std::chrono::steady_clock::time_point received;
};

// Called on the stream's net loop. Must not block or throw.
using RequestHandler = std::function<void(IncomingRequest request, std::shared_ptr<ResponseStream> stream)>;

struct Transport {
  std::string kind;     // "tcp", "nats_tcp", "http"
  std::string address;  // what callers dial
};

class RequestPlane {
 public:
  virtual ~RequestPlane() = default;
  virtual Result<void> start() = 0;
  // `labels` are added to the endpoint's metrics, e.g. {"model", ...}.
  virtual Result<Transport> add_endpoint(const EndpointId& id, uint64_t instance_id, RequestHandler handler,
                                         const metrics::Labels& labels = {}) = 0;
  virtual void remove_endpoint(const EndpointId& id) = 0;
  // True when no stream is left.
  virtual bool drain(std::chrono::milliseconds deadline) = 0;
  virtual void stop() = 0;
  [[nodiscard]] virtual size_t active_streams() const = 0;
};

}  // namespace dyn::runtime
