// StatusServer: the system status server of a Dynamo process: /health, /live, /metrics, /metadata and /engine/*.
//
//   StatusServer status({.port = 9090}, loop, health, registry);
//   status.add_engine_route("control/sleep", [](const std::string& json, EngineReply reply) { ...; reply("{}"); });
//   if (auto started = status.start(); !started) return started;
//
// Every answer has the content type text/plain, as Dynamo's have. A negative port means no server: start() then does
// nothing. Ownership: loop, health and registry outlive the server. Thread rules: start() and stop() from the control
// thread; add_engine_route() from any; handlers run on the loop and must not block it: what takes time replies later,
// from any thread.
// Facts: lib/runtime/src/{system_status_server,config}.rs of Dynamo 0.8 ... 1.6.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "base/result.h"
#include "net/http_server.h"
#include "runtime/health.h"

namespace dyn::runtime {

struct StatusServerOptions {
  int port = -1;                        // DYN_SYSTEM_PORT; negative: off, 0: any free one
  std::string host = "0.0.0.0";         // DYN_SYSTEM_HOST
  std::string health_path = "/health";  // DYN_SYSTEM_HEALTH_PATH
  std::string live_path = "/live";      // DYN_SYSTEM_LIVE_PATH
};

// JSON, or an error, which is told as a 500. Calls after the first do nothing.
using EngineReply = std::function<void(Result<std::string> json)>;
// `json`: the body, checked to be JSON; "{}" when there was none.
using EngineRoute = std::function<void(const std::string& json, EngineReply reply)>;

class StatusServer {
 public:
  StatusServer(StatusServerOptions options, net::EventLoop& loop, const Health& health, metrics::Registry& registry);
  ~StatusServer();
  StatusServer(const StatusServer&) = delete;
  StatusServer& operator=(const StatusServer&) = delete;

  // Serves /engine/{path} with any method. Both forms of a name that changed between the releases ("sleep",
  // "control/sleep") are the caller's to add. A route of the same path is replaced.
  void add_engine_route(const std::string& path, EngineRoute route);

  // Text in Prometheus' form behind the registry's, such as an engine's own. Before start().
  void add_metrics_text(std::function<std::string()> source);
  // The body of /metadata (Kubernetes discovery only). Before start(); without it the route is a 404.
  void set_metadata(std::function<std::string()> source);
  // Further routes (/v1/loras, /v1/metadata/*). Before start().
  [[nodiscard]] net::HttpServer& http() { return http_; }

  [[nodiscard]] bool enabled() const { return options_.port >= 0; }
  Result<void> start();
  // What start() bound; 0 when switched off.
  [[nodiscard]] uint16_t port() const { return http_.port(); }
  // No handler runs once it returns. Idempotent; also done by the destructor.
  void stop();

 private:
  [[nodiscard]] net::HttpResponse health_response() const;
  [[nodiscard]] net::HttpResponse metrics_response() const;
  [[nodiscard]] net::HttpResponse metadata_response() const;
  void serve_engine(const net::HttpRequest& request, const net::HttpReply& reply);

  const StatusServerOptions options_;
  const Health& health_;
  metrics::Registry& registry_;
  metrics::Gauge& uptime_seconds_;
  std::vector<std::function<std::string()>> metrics_texts_;
  std::function<std::string()> metadata_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const EngineRoute>> engine_routes_;  // guarded by mutex_
  net::HttpServer http_;
};

}  // namespace dyn::runtime
