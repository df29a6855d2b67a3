#include <algorithm>
#include <charconv>

#include "base/log.h"
#include "runtime/request_plane/dispatcher_internal.h"
#include "runtime/request_plane/request_internal.h"
#include "wire/two_part.h"

namespace dyn::runtime {
namespace {

constexpr std::string_view kLog = "request_plane";

// What a peer wrote, fit for a log line and an acknowledgement.
std::string printable(std::string_view text) {
  constexpr size_t kMost = 128;
  std::string out(text.substr(0, kMost));
  std::ranges::replace_if(out, [](char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

// "quic" of "quic-response", "tcp" of "tcp_server".
std::string response_plane_name(std::string_view transport) {
  return printable(transport.substr(0, transport.find_first_of("-_")));
}

void observe_network_transit(metrics::Histogram& histogram, const std::map<std::string, std::string>& headers) {
  const auto header = headers.find("x-frontend-send-ts-ns");
  if (header == headers.end()) return;
  const std::string& text = header->second;
  int64_t sent_ns = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), sent_ns).ec != std::errc()) return;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  if (sent_ns > 0 && sent_ns <= now_ns) histogram.observe(static_cast<double>(now_ns - sent_ns) * 1e-9);
}

}  // namespace

std::shared_ptr<Dispatcher> Dispatcher::create(net::LoopPool& loops, metrics::Registry& registry,
                                               const AdmissionLimits& admission, const CallHomeOptions& call_home,
                                               size_t max_message_bytes) {
  auto dispatcher = std::make_shared<Dispatcher>(loops, registry, admission, call_home, max_message_bytes);
  registry.on_collect([weak = std::weak_ptr(dispatcher)] {
    if (const auto alive = weak.lock()) alive->refresh_gauges();
  });
  return dispatcher;
}

Dispatcher::Dispatcher(net::LoopPool& loops, metrics::Registry& registry, const AdmissionLimits& admission,
                       const CallHomeOptions& call_home, size_t max_message_bytes)
    : loops_(loops),
      registry_(registry),
      call_home_(call_home),
      two_part_limits_{.max_header_bytes = wire::kMaxControlMessageBytes, .max_message_bytes = max_message_bytes},
      metrics_(registry),
      admission_(admission),
      streams_(loops.size()) {
  metrics_.queue_capacity.set(static_cast<double>(admission.queued));
  metrics_.task_capacity.set(static_cast<double>(admission.running));
}

void Dispatcher::refresh_gauges() {
  const auto running = static_cast<double>(admission_.running());
  const auto queued = static_cast<double>(admission_.queued());
  metrics_.active_tasks.set(running);
  metrics_.engine_requests.set(running);
  metrics_.queue_depth.set(queued);
  metrics_.queued_requests.set(queued);
}

Result<void> Dispatcher::add_route(const std::string& path, std::shared_ptr<Endpoint> endpoint) {
  std::unique_lock lock(routes_mutex_);
  if (!routes_.emplace(path, std::move(endpoint)).second) {
    return Error{Code::kAlreadyExists, "the route " + path + " is served already"};
  }
  return {};
}

void Dispatcher::remove_routes(const EndpointId& id) {
  std::unique_lock lock(routes_mutex_);
  std::erase_if(routes_, [&](const auto& route) { return route.second->id == id; });
}

std::shared_ptr<Endpoint> Dispatcher::find_route(std::string_view path) const {
  std::shared_lock lock(routes_mutex_);
  const auto found = routes_.find(path);
  return found == routes_.end() ? nullptr : found->second;
}

Intake Dispatcher::take(std::string_view path, std::string_view headers, Bytes payload) {
  const auto received = std::chrono::steady_clock::now();
  std::shared_ptr<Endpoint> endpoint = find_route(path);
  const std::string unknown_ack = endpoint ? "" : "Server unavailable: unknown endpoint " + printable(path);

  // What cannot call home cannot be told on the stream either; callers of 1.3 and newer at least read the text above.
  const auto drop = [&](ErrorType type, std::string_view why) {
    DYN_WARN(kLog, "request for {} dropped: {}", printable(path), why);
    if (endpoint) endpoint->metrics.error(type).increment();
    return Intake{unknown_ack, nullptr};
  };
  const auto parts = wire::decode_whole_two_part(payload, two_part_limits_);
  if (!parts) return drop(ErrorType::kInvalidMessage, parts.error().message);
  auto control = wire::decode_control_message(parts->header);  // checks context and stream type, too
  if (!control) return drop(ErrorType::kDeserialization, control.error().message);

  const wire::ConnectionInfo& peer = control->connection;
  if (peer.transport != kResponseTransport) {
    const std::string requested = response_plane_name(peer.transport);
    drop(ErrorType::kInvalidMessage, "the caller wants its response by " + requested);
    return {"Server unavailable: response plane mismatch: frontend requested " + requested + ", worker configured tcp",
            nullptr};
  }

  auto kind = Request::Kind::kServe;
  if (!endpoint) {
    if (control->names_codec) {
      DYN_WARN(kLog, "request {}: unknown endpoint {}", printable(control->id), printable(path));
      return {unknown_ack, nullptr};
    }
    kind = Request::Kind::kUnknownRoute;
  } else if (control->request_type == "many_in") {
    kind = Request::Kind::kBidirectional;
  }

  IncomingRequest incoming{.control = std::move(*control),
                           .headers = wire::decode_frame_headers(headers),
                           .payload = parts->data,
                           .received = received};
  observe_network_transit(metrics_.network_transit, incoming.headers);
  active_.fetch_add(1);  // before the acknowledgement: a drain must not miss what the caller knows to be taken
  return {"", std::make_shared<Request>(shared_from_this(), std::move(endpoint), kind, std::move(incoming),
                                        payload.size())};
}

void Dispatcher::run(Intake intake, net::EventLoop& loop) {
  if (!intake.request) return;
  net::EventLoop& home = loops_.next();
  if (&home == &loop) {
    intake.request->begin(home);
    return;
  }
  intake.request->keep_payload();
  home.post([request = std::move(intake.request), &home] { request->begin(home); });
}

void Dispatcher::leave_request() {
  if (active_.fetch_sub(1) != 1 || !draining_.load()) return;
  const std::lock_guard lock(idle_mutex_);
  idle_.notify_all();
}

bool Dispatcher::drain(std::chrono::milliseconds deadline) {
  std::unique_lock lock(idle_mutex_);
  draining_.store(true);
  const bool idle = idle_.wait_for(lock, deadline, [&] { return active_.load() == 0; });
  draining_.store(false);
  return idle;
}

void Dispatcher::stop() {
  stopping_.store(true);
  for (unsigned i = 0; i < loops_.size(); ++i) {
    loops_.at(i).run_sync([&] {
      std::vector<std::shared_ptr<CallHomeStream>> open;
      for (CallHomeStream* stream : streams_[i]) open.push_back(stream->shared_from_this());
      for (const auto& stream : open) stream->cut();
    });
  }
}

}  // namespace dyn::runtime
