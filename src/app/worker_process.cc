#include "app/worker_process.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "app/make_engine.h"
#include "base/log.h"
#include "runtime/discovery/file_discovery.h"
#include "runtime/discovery/mem_discovery.h"
#include "runtime/request_plane/tcp_request_plane.h"
#include "worker/engine_metrics.h"
#include "worker/probe.h"

namespace dyn::app {

namespace {

using std::chrono::milliseconds;

constexpr char kTarget[] = "serve";

// The streams that a drain limit left are told to move on; this long they have to take the message.
constexpr milliseconds kLastWords{2'000};

milliseconds to_ms(double seconds) {
  return milliseconds(std::llround(std::max(0.0, seconds) * 1000));
}

runtime::TcpOptions tcp_options(const WorkerConfig& config) {
  runtime::TcpOptions options;
  options.host = config.tcp_host;
  options.port = config.tcp_port;
  options.max_message_bytes = config.tcp_max_message_bytes;
  options.listen_backlog = config.tcp_listen_backlog;
  if (config.engine_request_limit) options.admission.running = *config.engine_request_limit;
  options.admission.queued = config.max_queue_size;
  options.call_home.max_buffered_bytes = config.response_buffer_bytes;
  return options;
}

}  // namespace

WorkerProcess::WorkerProcess(const WorkerConfig& config)
    : config_(config),
      endpoint_{config.ns, config.component, config.endpoint_name},
      health_({.starting_ready = config.starting_ready,
               .deciding_endpoints = config.health_endpoints,
               .canary_enabled = config.health_check_enabled}),
      net_loops_(config.net_threads, "net"),
      status_loop_(1, "status") {}

WorkerProcess::~WorkerProcess() {
  if (canary_) canary_->stop();
  if (plane_) plane_->stop();
  if (load_) load_->close();
  if (engine_) engine_->stop();
  if (kv_events_) kv_events_->close();
  if (status_) status_->stop();
  net_loops_.stop();
  status_loop_.stop();
}

Result<void> WorkerProcess::start() {
  auto files = find_card_files(config_);
  if (!files) return files.error();
  files_ = std::move(*files);
  if (auto opened = open_ports(); !opened) return opened;
  if (auto loaded = load_engine(); !loaded) return loaded;
  runtime::ShutdownOptions options;
  options.grace_period = to_ms(config_.grace_period_secs);
  options.drain_limit = to_ms(config_.drain_timeout_secs);
  shutdown_ = std::make_unique<runtime::Shutdown>(runtime::graceful_steps(options, shutdown_actions()));
  return {};
}

// Everything that may be taken by somebody else, before minutes are spent on a model.
Result<void> WorkerProcess::open_ports() {
  if (config_.discovery == DiscoveryKind::kFile) {
    auto discovery = runtime::make_file_discovery({.root = config_.file_kv_dir});
    if (!discovery) return discovery.error();
    discovery_ = std::move(*discovery);
  } else {
    discovery_ = runtime::make_mem_discovery();
  }

  status_loop_.start();
  runtime::StatusServerOptions status;
  status.port = config_.system_port ? *config_.system_port : -1;
  status.host = config_.system_host;
  status.health_path = config_.health_path;
  status.live_path = config_.live_path;
  status_ = std::make_unique<runtime::StatusServer>(status, status_loop_.at(0), health_, registry_);
  if (auto started = status_->start(); !started) return started;
  if (status_->enabled()) DYN_INFO(kTarget, "system status server on {}:{}", config_.system_host, status_->port());

  net_loops_.start();
  plane_ = runtime::make_tcp_request_plane(tcp_options(config_), net_loops_, registry_);
  return plane_->start();
}

Result<void> WorkerProcess::load_engine() {
  auto made = make_engine(config_, files_);
  if (!made) return made.error();
  engine_ = std::move(made->engine);
  device_type_ = made->device_type;
  bos_ = made->bos;
  dispatcher_ = std::make_unique<worker::Dispatcher>(net_loops_);
  dispatcher_->set_engine(engine_.get());
  dispatcher_->set_on_fatal([this](const Error& error) {
    health_.shut_down();
    if (on_engine_dead_) on_engine_dead_(error);
  });
  dispatcher_->set_on_output([this] {
    if (auto* watch = active_watch_.load(std::memory_order_relaxed)) watch->activity();
  });
  if (auto ready = make_publishers(); !ready) return ready;
  if (auto started = engine_->start(*dispatcher_); !started) return started;

  const auto begin = std::chrono::steady_clock::now();
  if (auto answered = worker::run_probe(*engine_, *dispatcher_, {.bos = bos_}); !answered) {
    return answered.error().with_context("warm-up request");
  }
  const auto caps = engine_->caps();
  DYN_INFO(kTarget,
           "engine '{}' is warm ({} ms): {} KV blocks of {} tokens, {} sequences, {} tokens a step, context {}",
           caps.name, std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - begin).count(),
           caps.total_kv_blocks, caps.kv_block_size, caps.max_batch_size, caps.max_num_tokens, caps.max_seq_len);
  worker::export_engine_metrics(registry_, *engine_, *dispatcher_, {{"model", config_.served_model_name}});

  auto handler = worker::HandlerFactory::with_built_in_roles().create(
      worker::Role::kAggregated,
      {*engine_, *dispatcher_, worker::RequestPolicy(caps, {.served_model_names = {config_.served_model_name}})});
  if (!handler) return handler.error();
  handler_ = std::move(*handler);
  return {};
}

Result<worker::EventSockets> WorkerProcess::open_event_sockets(
    const std::shared_ptr<runtime::EventPublisher>& component) const {
  auto own =
      runtime::make_zmq_event_publisher({.publisher_id = runtime::random_publisher_id(), .host = config_.tcp_host});
  if (!own) return own.error();
  return worker::EventSockets{component, std::move(*own)};
}

// Sockets that are asked for are opened now: what may be taken is found out before anything is registered.
Result<void> WorkerProcess::make_publishers() {
  if (!config_.publish_kv_events && !config_.publish_metrics) return {};
  const uint64_t worker_id = discovery_->instance_id();
  auto component = runtime::make_zmq_event_publisher({.publisher_id = worker_id, .host = config_.tcp_host});
  if (!component) return component.error();
  if (config_.publish_kv_events) {
    auto sockets = open_event_sockets(*component);
    if (!sockets) return sockets.error();
    kv_events_ = std::make_unique<worker::KvEventPublisher>(
        worker::KvEventPublisherOptions{.endpoint = endpoint_,
                                        .worker_id = worker_id,
                                        .traits = instance_traits(),
                                        .labels = {{"model", config_.served_model_name}}},
        std::move(*sockets), *discovery_, *plane_, registry_);
    dispatcher_->set_on_kv_events(
        [events = kv_events_.get()](std::span<const llm::KvEvent> of_step) { events->on_events(of_step); });
  }
  if (config_.publish_metrics) {
    auto sockets = open_event_sockets(*component);
    if (!sockets) return sockets.error();
    load_ = std::make_unique<worker::LoadPublisher>(
        worker::LoadPublisherOptions{.endpoint = endpoint_, .worker_id = worker_id}, std::move(*sockets), *discovery_,
        *engine_);
  }
  return {};
}

llm::ModelCard WorkerProcess::make_card() const {
  const auto caps = engine_->caps();
  llm::ModelCard card;
  card.display_name = config_.served_model_name;
  card.files = files_;
  card.context_length = caps.max_seq_len;
  card.kv_cache_block_size = caps.kv_block_size;
  card.migration_limit = config_.migration_limit;
  if (config_.endpoint_types_given) {
    card.model_type = config_.serve_chat && config_.serve_completions ? "Chat | Completions"
                      : config_.serve_chat                            ? "Chat"
                                                                      : "Completions";
  }
  card.runtime.total_kv_blocks = caps.total_kv_blocks;
  card.runtime.max_num_seqs = caps.max_batch_size;
  card.runtime.max_num_batched_tokens = caps.max_num_tokens;
  card.runtime.tool_call_parser = config_.tool_call_parser;
  card.runtime.reasoning_parser = config_.reasoning_parser;
  card.runtime.exclude_tools_when_tool_choice_none = config_.exclude_tools_when_tool_choice_none;
  // True obliges the worker to publish KV events and to answer recovery queries.
  card.runtime.enable_local_indexer = config_.publish_kv_events;
  return card;
}

runtime::InstanceTraits WorkerProcess::instance_traits() const {
  return {.device_type = device_type_, .codec = config_.msgpack_codec ? "msgpack" : "json"};
}

Result<void> WorkerProcess::publish() {
  auto transport = plane_->add_endpoint(
      endpoint_, discovery_->instance_id(),
      [handler = handler_.get()](runtime::IncomingRequest request, std::shared_ptr<runtime::ResponseStream> stream) {
        handler->handle(std::move(request), std::move(stream));
      },
      {{"model", config_.served_model_name}});
  if (!transport) return transport.error();
  health_.add_endpoint(endpoint_.name, /*has_canary=*/true);

  // Routers look for the source of a worker's events as soon as they know the worker.
  if (kv_events_) {
    if (auto started = kv_events_->start(); !started) return started;
  }
  if (load_) {
    if (auto started = load_->start(); !started) return started;
  }
  registration_.emplace(*discovery_, worker::ServedModel{.card = make_card(), .traits = instance_traits()});
  if (auto published = registration_->publish(endpoint_, *transport); !published) return published;
  start_canary();
  DYN_INFO(kTarget, "serving '{}' as dyn://{}", config_.served_model_name, runtime::to_string(endpoint_));
  return {};
}

void WorkerProcess::start_canary() {
  canary_.emplace(runtime::CanaryOptions{.enabled = config_.health_check_enabled,
                                         .wait = to_ms(config_.health_check_wait_secs),
                                         .timeout = to_ms(config_.health_check_timeout_secs)},
                  health_);
  watch_ = canary_->watch(endpoint_.name, [this](runtime::Canary::Done done) {
    worker::start_probe(*engine_, *dispatcher_, {.bos = bos_}, std::move(done));
  });
  active_watch_.store(watch_.get());
}

runtime::ShutdownActions WorkerProcess::shutdown_actions() {
  runtime::ShutdownActions actions;
  actions.become_not_ready = [this] {
    health_.shut_down();
    if (canary_) canary_->stop();
  };
  actions.delete_instances = [this] {
    if (registration_) registration_->withdraw_instance();
  };
  actions.delete_cards = [this] {
    if (registration_) registration_->withdraw_card();
  };
  actions.stop_accepting = [this] { plane_->remove_endpoint(endpoint_); };
  actions.drain = [this](milliseconds limit) { return plane_->drain(limit); };
  actions.end_streams = [this] {
    dispatcher_->abandon_all();
    plane_->drain(kLastWords);
  };
  actions.close_stores = [this] {
    if (load_) load_->close();
    if (kv_events_) kv_events_->close();
    discovery_->close();
  };
  return actions;
}

}  // namespace dyn::app
