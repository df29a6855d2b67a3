#include "worker/kv_event_publisher.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <variant>

#include "base/ids.h"
#include "base/log.h"
#include "base/threads.h"
#include "net/event_loop.h"
#include "wire/msgpack_writer.h"
#include "worker/payload_codec.h"

namespace dyn::worker {
namespace {

constexpr char kTarget[] = "kv_events";
constexpr char kTopic[] = "kv-events";

// Of one message in endpoint scope: the official publisher's limits.
constexpr size_t kMaxEventsPerMessage = 128;
constexpr size_t kMaxBlocksPerMessage = 8192;

// Only frontends since 1.1 send it: they share an endpoint with 1.0, but not the form of the answer.
constexpr char kSinceDynamo11[] = "x-frontend-send-ts-ns";

size_t num_blocks(const llm::KvEvent& event) {
  if (const auto* stored = std::get_if<llm::KvBlocksStored>(&event)) return stored->blocks.size();
  if (const auto* removed = std::get_if<llm::KvBlocksRemoved>(&event)) return removed->blocks.size();
  return 1;
}

size_t num_blocks(const llm::RouterEvent& event) {
  if (const auto* stored = std::get_if<llm::RouterStored>(&event.data)) return stored->blocks.size();
  if (const auto* removed = std::get_if<llm::KvBlocksRemoved>(&event.data)) return removed->blocks.size();
  return 1;
}

}  // namespace

KvEventPublisher::KvEventPublisher(KvEventPublisherOptions options, EventSockets sockets, runtime::Discovery& discovery,
                                   runtime::RequestPlane& plane, metrics::Registry& registry)
    : options_(std::move(options)),
      discovery_(discovery),
      plane_(plane),
      component_{.scope = {options_.endpoint.ns, options_.endpoint.component, {}},
                 .form = llm::RouterEventForm::kComponent,
                 .publisher = std::move(sockets.component)},
      endpoint_{.scope = {options_.endpoint.ns, options_.endpoint.component, options_.endpoint.name},
                .form = llm::RouterEventForm::kEndpoint,
                .publisher = std::move(sockets.endpoint)},
      published_(registry.counter("dynamo_trtllm_kv_events_published_total", "KV events published to routers",
                                  options_.labels)),
      dropped_(registry.counter("dynamo_trtllm_kv_events_dropped_total",
                                "KV events dropped because the publisher was too far behind", options_.labels)),
      unsent_(registry.counter("dynamo_trtllm_kv_event_messages_unsent_total",
                               "KV event messages that the event plane did not take", options_.labels)),
      queries_(registry.counter("dynamo_trtllm_kv_event_queries_total", "Recovery queries of routers answered",
                                options_.labels)),
      known_blocks_(registry.gauge("dynamo_trtllm_kv_event_blocks", "KV cache blocks that routers were told of",
                                   options_.labels)),
      log_({.worker_id = options_.worker_id, .dp_rank = 0}) {}

KvEventPublisher::~KvEventPublisher() {
  close();
}

void KvEventPublisher::on_events(std::span<const llm::KvEvent> events) noexcept {
  if (events.empty()) return;
  size_t dropped = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const llm::KvEvent& event : events) {
      if (lost_ || queued_blocks_ >= kMaxQueuedBlocks) {
        // What comes after a loss is useless until routers were told to start anew.
        dropped += queue_.size() + 1;
        queue_.clear();
        queued_blocks_ = 0;
        lost_ = true;
        continue;
      }
      queued_blocks_ += num_blocks(event);
      queue_.push_back(event);
    }
  }
  if (dropped > 0) dropped_.increment(static_cast<double>(dropped));
  wake_.notify_one();
}

Result<void> KvEventPublisher::put(runtime::Record record) {
  if (auto done = discovery_.put(record); !done) return done.error().with_context("publishing " + record.key);
  records_.push_back(std::move(record));
  return {};
}

Result<runtime::Transport> KvEventPublisher::add_recovery_endpoint(const std::string& name, bool is_endpoint_scope) {
  const runtime::EndpointId id{options_.endpoint.ns, options_.endpoint.component, name};
  auto transport = plane_.add_endpoint(
      id, options_.worker_id,
      [this, is_endpoint_scope](runtime::IncomingRequest request, std::shared_ptr<runtime::ResponseStream> stream) {
        take_query(std::move(request), std::move(stream), is_endpoint_scope);
      });
  if (!transport) return transport.error().with_context("recovery endpoint of KV events");
  recovery_endpoints_.push_back(id);
  auto done = put(runtime::instance_record(id, *transport, options_.worker_id, options_.traits));
  if (!done) return done.error();
  return transport;
}

// Routers follow a worker from the moment its source is known, so that comes last.
Result<void> KvEventPublisher::start() {
  for (const Publication* publication : {&component_, &endpoint_}) {
    auto done = put(runtime::event_channel_record(publication->scope, kTopic, *publication->publisher));
    if (!done) return done;
  }
  thread_ = std::thread([this] { run(); });

  for (const char* name : {"worker_kv_indexer_query", "worker_kv_indexer_query_dp0"}) {  // 0.9; 1.0 ... 1.3
    if (auto added = add_recovery_endpoint(name, false); !added) return added.error();
  }
  const uint64_t publisher_id = endpoint_.publisher->publisher_id();
  const std::string name = "worker_kv_query_source_" + to_hex(publisher_id);
  const auto transport = add_recovery_endpoint(name, true);
  if (!transport) return transport.error();
  const wire::EventSource source{.publisher_id = publisher_id,
                                 .worker_id = options_.worker_id,
                                 .dp_rank = 0,
                                 .recovery = {.ns = options_.endpoint.ns,
                                              .component = options_.endpoint.component,
                                              .endpoint = name,
                                              .instance_id = options_.worker_id,
                                              .transport_kind = transport->kind,
                                              .transport_address = transport->address,
                                              .device_type = options_.traits.device_type,
                                              .request_plane_codec = options_.traits.codec}};
  if (auto done = put({runtime::kEventSourcesBucket, wire::event_source_key(endpoint_.scope, kTopic, publisher_id),
                       wire::encode_event_source(endpoint_.scope, kTopic, source)});
      !done) {
    return done;
  }
  DYN_INFO(kTarget, "KV events on {} (1.4 and later) and {} (0.9 to 1.3)", endpoint_.publisher->transport().value,
           component_.publisher->transport().value);
  return {};
}

void KvEventPublisher::close() {
  for (auto record = records_.rbegin(); record != records_.rend(); ++record) {
    if (auto removed = discovery_.remove(record->bucket, record->key); !removed) {
      DYN_WARN(kTarget, "record {}/{} could not be removed: {}", record->bucket, record->key, removed.error().message);
    }
  }
  records_.clear();
  for (const auto& id : recovery_endpoints_) plane_.remove_endpoint(id);
  recovery_endpoints_.clear();
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void KvEventPublisher::take_query(runtime::IncomingRequest request, std::shared_ptr<runtime::ResponseStream> stream,
                                  bool is_endpoint_scope) {
  Query query;
  query.codec = to_codec(request.control.payload_codec);
  query.form = is_endpoint_scope                          ? KvAnswerForm::kStructReset
               : request.headers.contains(kSinceDynamo11) ? KvAnswerForm::kStruct
                                                          : KvAnswerForm::kList;
  auto decoded = decode_kv_query(request.payload, query.codec);
  std::string wrong;
  if (!decoded) {
    wrong = decoded.error().message;
  } else if (decoded->worker_id.value_or(options_.worker_id) != options_.worker_id) {
    wrong = "this is worker " + std::to_string(options_.worker_id);
  } else if (decoded->dp_rank.value_or(0) != 0) {
    wrong = "this worker has rank 0 only";
  } else if (!decoded->is_recovery) {
    wrong = "only recovery queries are supported";
  }
  if (!wrong.empty()) {
    encode_kv_query_error(stream->begin_item(), query.codec, wrong);
    stream->end_item();
    stream->finish();
    return;
  }
  query.query = *decoded;
  query.stream = std::move(stream);
  {
    const std::lock_guard lock(mutex_);
    query_queue_.push_back(std::move(query));
  }
  wake_.notify_one();
}

void KvEventPublisher::run() {
  set_thread_name("kv events");
  std::vector<llm::KvEvent> events;
  std::vector<Query> queries;
  std::vector<llm::RouterEvent> out;
  for (;;) {
    bool lost = false;
    bool stopping = false;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || lost_ || !queue_.empty() || !query_queue_.empty(); });
      std::swap(events, queue_);
      std::swap(queries, query_queue_);
      queued_blocks_ = 0;
      lost = std::exchange(lost_, false);
      stopping = stopping_;
    }
    out.clear();
    if (lost) {
      log_.lose(out);
      DYN_WARN(kTarget, "KV events were dropped: routers forget this worker's blocks and learn them anew");
    }
    for (const auto& event : events) log_.apply(event, out);
    events.clear();
    // The log is ahead of the wire: an answer holds whatever was published before it.
    publish(out);
    for (const Query& query : queries) answer(query);
    queries.clear();
    known_blocks_.set(static_cast<double>(log_.num_blocks()));
    if (stopping) return;
  }
}

void KvEventPublisher::publish(const std::vector<llm::RouterEvent>& events) {
  if (events.empty()) return;
  for (const auto& event : events) {
    payload_.clear();
    llm::encode_router_event(payload_, event, component_.form);
    if (!component_.publisher->publish(kTopic, payload_.view())) unsent_.increment();
  }
  publish_batches(endpoint_, events);
  published_.increment(static_cast<double>(events.size()));
}

void KvEventPublisher::publish_batches(Publication& publication, std::span<const llm::RouterEvent> events) {
  while (!events.empty()) {
    size_t count = 0;
    size_t blocks = 0;
    while (count < std::min(events.size(), kMaxEventsPerMessage)) {
      blocks += num_blocks(events[count]);
      if (count > 0 && blocks > kMaxBlocksPerMessage) break;
      ++count;
    }
    payload_.clear();
    wire::pack_array(payload_, count);
    for (const auto& event : events.first(count)) llm::encode_router_event(payload_, event, publication.form);
    if (!publication.publisher->publish(kTopic, payload_.view())) unsent_.increment();
    events = events.subspan(count);
  }
}

void KvEventPublisher::answer(const Query& query) {
  auto item = std::make_shared<Buffer>();
  encode_kv_answer(*item, query.codec, log_.answer(query.query.start_event_id, query.query.end_event_id), query.form);
  queries_.increment();
  query.stream->loop().post([stream = query.stream, item] {
    stream->begin_item().append(item->view());
    stream->end_item();
    stream->finish();
  });
}

}  // namespace dyn::worker
