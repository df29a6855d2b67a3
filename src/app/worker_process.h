// WorkerProcess: the parts of one serving process, in the order in which they depend on each other.
//
//   WorkerProcess process(config);
//   if (auto started = process.start(); !started) return report(started.error());
//   if (auto published = process.publish(); !published) ...
//   auto outcome = runtime::run_until_terminated(signals, process.shutdown());
//
// start() opens ports and loads the model, but registers nothing. Ownership: owns everything. Thread rules: one control
// thread; start() may run on another thread as long as nothing else is called meanwhile.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "app/options/worker_config.h"
#include "base/metrics.h"
#include "base/result.h"
#include "engine/engine.h"
#include "net/event_loop.h"
#include "runtime/discovery/discovery.h"
#include "runtime/health.h"
#include "runtime/lifecycle.h"
#include "runtime/request_plane/request_plane.h"
#include "runtime/status/canary.h"
#include "runtime/status/status_server.h"
#include "worker/dispatcher.h"
#include "worker/handler.h"
#include "worker/kv_event_publisher.h"
#include "worker/load_publisher.h"
#include "worker/registration.h"

namespace dyn::app {

class WorkerProcess {
 public:
  explicit WorkerProcess(const WorkerConfig& config);
  ~WorkerProcess();
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  // Called on the engine thread when the engine cannot go on.
  void set_on_engine_dead(std::function<void(const Error&)> callback) { on_engine_dead_ = std::move(callback); }

  Result<void> start();
  Result<void> publish();
  // The steps of an orderly end; valid while this object lives.
  runtime::Shutdown& shutdown() { return *shutdown_; }

 private:
  Result<void> open_ports();
  Result<void> load_engine();
  Result<worker::EventSockets> open_event_sockets(const std::shared_ptr<runtime::EventPublisher>& component) const;
  Result<void> make_publishers();
  [[nodiscard]] llm::ModelCard make_card() const;
  [[nodiscard]] runtime::InstanceTraits instance_traits() const;
  [[nodiscard]] runtime::ShutdownActions shutdown_actions();
  void start_canary();

  const WorkerConfig config_;
  const runtime::EndpointId endpoint_;
  std::function<void(const Error&)> on_engine_dead_;

  metrics::Registry registry_;
  runtime::Health health_;
  net::LoopPool net_loops_;
  net::LoopPool status_loop_;
  std::unique_ptr<runtime::Discovery> discovery_;
  std::unique_ptr<runtime::StatusServer> status_;
  std::unique_ptr<runtime::RequestPlane> plane_;
  llm::ModelFiles files_;
  std::unique_ptr<worker::Dispatcher> dispatcher_;
  std::unique_ptr<worker::KvEventPublisher> kv_events_;  // empty: not published
  std::unique_ptr<worker::LoadPublisher> load_;          // empty: not published
  std::unique_ptr<engine::Engine> engine_;
  const char* device_type_ = "cpu";
  llm::TokenId bos_ = 1;
  std::unique_ptr<worker::RequestHandler> handler_;
  std::optional<runtime::Canary> canary_;
  std::shared_ptr<runtime::Canary::Watch> watch_;
  std::atomic<runtime::Canary::Watch*> active_watch_ = nullptr;  // watch_, as the engine thread sees it
  std::optional<worker::ModelRegistration> registration_;
  std::unique_ptr<runtime::Shutdown> shutdown_;
};

}  // namespace dyn::app
