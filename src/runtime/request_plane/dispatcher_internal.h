// Dispatcher: from a request frame's parts to the handler: routes, control message, admission, call-home. What remains
// to a request plane is its transport: how frames arrive and how they are acknowledged.
//
//   Intake intake = dispatcher->take(frame.path, frame.headers, frame.payload);
//   send_ack(intake.ack);                              // at once, before anything else happens
//   dispatcher->run(std::move(intake), loop);          // dials the caller, calls the handler (now or later)
//
// Streams are spread over all loops in turn, whichever connection brought the request, because a caller may use a
// single one. A request that stays on its loop and need not wait is handled in place; otherwise its payload is copied
// once. Ownership: shared by the plane and its requests; registry and loops must outlive it. Thread rules: take() and
// run() on the connection's loop, the rest from the control thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/bytes.h"
#include "base/metrics.h"
#include "net/event_loop.h"
#include "runtime/request_plane/admission.h"
#include "runtime/request_plane/call_home.h"
#include "runtime/request_plane/plane_metrics.h"
#include "runtime/request_plane/request_plane.h"
#include "wire/two_part.h"

namespace dyn::runtime {

class CallHomeStream;
class Request;

struct Endpoint {
  Endpoint(metrics::Registry& registry, EndpointId endpoint_id, uint64_t instance_id, RequestHandler request_handler,
           const metrics::Labels& labels)
      : id(std::move(endpoint_id)), handler(std::move(request_handler)), metrics(registry, id, instance_id, labels) {}

  const EndpointId id;
  const RequestHandler handler;
  EndpointMetrics metrics;
};

struct Intake {
  std::string ack;                   // empty: taken
  std::shared_ptr<Request> request;  // none: the acknowledgement is all there is to say
};

class Dispatcher : public std::enable_shared_from_this<Dispatcher> {
 public:
  // The only response plane there is: what connection_info.transport must say.
  static constexpr std::string_view kResponseTransport = "tcp_server";

  static std::shared_ptr<Dispatcher> create(net::LoopPool& loops, metrics::Registry& registry,
                                            const AdmissionLimits& admission, const CallHomeOptions& call_home,
                                            size_t max_message_bytes);
  Dispatcher(net::LoopPool& loops, metrics::Registry& registry, const AdmissionLimits& admission,
             const CallHomeOptions& call_home, size_t max_message_bytes);

  Result<void> add_route(const std::string& path, std::shared_ptr<Endpoint> endpoint);
  void remove_routes(const EndpointId& id);

  Intake take(std::string_view path, std::string_view headers, Bytes payload);
  void run(Intake intake, net::EventLoop& loop);

  [[nodiscard]] size_t active_streams() const { return active_.load(); }
  bool drain(std::chrono::milliseconds deadline);
  // Refuses what comes and cuts what runs.
  void stop();

  PlaneMetrics& metrics() { return metrics_; }
  metrics::Registry& registry() { return registry_; }

 private:
  friend class Request;

  struct PathHash {
    using is_transparent = void;
    size_t operator()(std::string_view path) const { return std::hash<std::string_view>()(path); }
  };
  using Routes = std::unordered_map<std::string, std::shared_ptr<Endpoint>, PathHash, std::equal_to<>>;

  std::shared_ptr<Endpoint> find_route(std::string_view path) const;
  void leave_request();
  void refresh_gauges();

  net::LoopPool& loops_;
  metrics::Registry& registry_;
  const CallHomeOptions call_home_;
  const wire::TwoPartLimits two_part_limits_;
  PlaneMetrics metrics_;
  Admission admission_;

  mutable std::shared_mutex routes_mutex_;
  Routes routes_;

  std::atomic<bool> stopping_ = false;
  std::atomic<size_t> active_ = 0;
  std::mutex idle_mutex_;
  std::condition_variable idle_;
  std::atomic<bool> draining_ = false;
  // One set a loop, each touched by its loop only.
  std::vector<std::unordered_set<CallHomeStream*>> streams_;
};

}  // namespace dyn::runtime
