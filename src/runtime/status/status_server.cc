#include "runtime/status/status_server.h"

#include <algorithm>
#include <exception>
#include <string_view>
#include <utility>

#include "base/buffer.h"
#include "base/log.h"
#include "wire/json_reader.h"
#include "wire/json_writer.h"

namespace dyn::runtime {
namespace {

constexpr char kLog[] = "status";
constexpr std::string_view kEnginePrefix = "/engine/";
constexpr char kNotFound[] = "Route not found";

net::HttpResponse text(unsigned status, std::string body) {
  net::HttpResponse response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

net::HttpResponse engine_error(unsigned status, std::string_view error, std::string_view message) {
  Buffer out;
  wire::JsonWriter json(out);
  json.begin_object();
  json.member("error", error);
  json.member("message", message);
  json.end_object();
  return text(status, std::string(as_text(out.view())));
}

Result<void> check_json(const std::string& body) {
  wire::JsonReader reader(as_bytes(body));
  (void)reader.skip();
  return reader.finish();
}

}  // namespace

StatusServer::StatusServer(StatusServerOptions options, net::EventLoop& loop, const Health& health,
                           metrics::Registry& registry)
    : options_(std::move(options)),
      health_(health),
      registry_(registry),
      uptime_seconds_(
          registry.gauge("dynamo_component_uptime_seconds", "Total uptime of the DistributedRuntime in seconds")),
      http_(loop, {.host = options_.host, .port = static_cast<uint16_t>(std::max(options_.port, 0))}) {}

StatusServer::~StatusServer() {
  stop();
}

void StatusServer::add_engine_route(const std::string& path, EngineRoute route) {
  const std::lock_guard lock(mutex_);
  engine_routes_[path] = std::make_shared<const EngineRoute>(std::move(route));
}

void StatusServer::add_metrics_text(std::function<std::string()> source) {
  metrics_texts_.push_back(std::move(source));
}

void StatusServer::set_metadata(std::function<std::string()> source) {
  metadata_ = std::move(source);
}

Result<void> StatusServer::start() {
  if (!enabled()) return {};
  http_.route("GET", options_.health_path, [this](const net::HttpRequest&) { return health_response(); });
  if (options_.live_path != options_.health_path) {
    http_.route("GET", options_.live_path, [this](const net::HttpRequest&) { return health_response(); });
  }
  http_.route("GET", "/metrics", [this](const net::HttpRequest&) { return metrics_response(); });
  http_.route("GET", "/metadata", [this](const net::HttpRequest&) { return metadata_response(); });
  http_.route_async(
      "*", std::string(kEnginePrefix) + "*",
      [this](const net::HttpRequest& request, const net::HttpReply& reply) { serve_engine(request, reply); });
  http_.set_fallback([](const net::HttpRequest&) { return text(404, kNotFound); });
  if (auto started = http_.start(); !started) {
    return started.error().with_context("the system status server (DYN_SYSTEM_HOST, DYN_SYSTEM_PORT)");
  }
  return {};
}

void StatusServer::stop() {
  http_.stop();
}

net::HttpResponse StatusServer::health_response() const {
  auto report = health_.report();
  return text(report.ready ? 200 : 503, std::move(report.json));
}

net::HttpResponse StatusServer::metrics_response() const {
  try {
    uptime_seconds_.set(std::chrono::duration<double>(health_.uptime()).count());
    std::string page = registry_.exposition();
    for (const auto& source : metrics_texts_) page += source();
    return text(200, std::move(page));
  } catch (const std::exception& failure) {
    DYN_ERROR(kLog, "cannot write the metrics: {}", failure.what());
    return text(500, "Failed to get metrics");
  }
}

net::HttpResponse StatusServer::metadata_response() const {
  if (!metadata_) return text(404, "Discovery metadata not available");
  return text(200, metadata_());
}

void StatusServer::serve_engine(const net::HttpRequest& request, const net::HttpReply& reply) {
  const std::string path = request.path.substr(kEnginePrefix.size());
  if (path.empty()) {
    reply(text(404, kNotFound));
    return;
  }
  std::shared_ptr<const EngineRoute> route;
  {
    const std::lock_guard lock(mutex_);
    if (const auto at = engine_routes_.find(path); at != engine_routes_.end()) route = at->second;
  }
  const std::string body = request.body.empty() ? "{}" : request.body;
  // Dynamo looks at the body first: bad JSON is a 400 on any path.
  if (const auto checked = check_json(body); !checked) {
    reply(engine_error(400, "Invalid JSON", checked.error().message));
    return;
  }
  if (!route) {
    reply(engine_error(404, "Route not found", "Route /engine/" + path + " not found"));
    return;
  }
  try {
    (*route)(body, [reply](const Result<std::string>& json) {
      reply(json ? text(200, *json) : engine_error(500, "Handler error", json.error().message));
    });
  } catch (const std::exception& failure) {
    reply(engine_error(500, "Handler error", failure.what()));
  }
}

}  // namespace dyn::runtime
