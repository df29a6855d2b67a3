// KvEventPublisher: tells KV routers which blocks the engine's KV cache holds, over ZMQ, and answers those that missed
// something.
//
//   KvEventPublisher events({.endpoint = endpoint, .worker_id = id}, {component, own}, discovery, plane, registry);
//   dispatcher.set_on_kv_events([&](auto span) { events.on_events(span); });   // before the engine starts
//   events.start();           // sockets, records, recovery endpoints: before the model is registered
//   ...
//   events.close();           // records and endpoints go, in the order routers expect
//
// Two publications of the same numbered events run side by side, with a socket, a record and a recovery endpoint each:
// in component scope for routers of 0.9 ... 1.3, in endpoint scope for 1.4 and later. The engine thread only moves its
// events into a queue; hashing, bookkeeping, sending and the answers to queries are done by one thread of its own. When
// that thread falls more than kMaxQueuedBlocks behind, events are dropped and counted, and routers are told to forget
// what they know of this worker and learn anew. Ownership: discovery, plane and registry outlive it. Thread rules:
// on_events() on the engine thread; the rest from the control thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/metrics.h"
#include "base/result.h"
#include "llm/router_event.h"
#include "runtime/discovery/discovery.h"
#include "runtime/event_plane/event_plane.h"
#include "runtime/instance.h"
#include "runtime/request_plane/request_plane.h"
#include "worker/kv_event_log.h"
#include "worker/kv_query.h"

namespace dyn::worker {

struct KvEventPublisherOptions {
  runtime::EndpointId endpoint;  // that serves the model: "dynamo.backend.generate"
  uint64_t worker_id = 0;        // its instance id
  runtime::InstanceTraits traits;
  metrics::Labels labels;
};

// The sockets of a worker's publications. Readers up to 1.3 know a worker by its instance id and connect to one socket
// of it, whatever the topic; later ones want a socket and an id of its own for each topic.
struct EventSockets {
  std::shared_ptr<runtime::EventPublisher> component;  // publisher id: the worker's instance id
  std::shared_ptr<runtime::EventPublisher> endpoint;   // a random one
};

class KvEventPublisher {
 public:
  static constexpr size_t kMaxQueuedBlocks = 1u << 20;

  KvEventPublisher(KvEventPublisherOptions options, EventSockets sockets, runtime::Discovery& discovery,
                   runtime::RequestPlane& plane, metrics::Registry& registry);
  ~KvEventPublisher();
  KvEventPublisher(const KvEventPublisher&) = delete;
  KvEventPublisher& operator=(const KvEventPublisher&) = delete;

  void on_events(std::span<const llm::KvEvent> events) noexcept;

  Result<void> start();
  // Idempotent; also done by the destructor. Events that wait are published before.
  void close();

 private:
  struct Query {
    KvQuery query;
    llm::Codec codec = llm::Codec::kJson;
    KvAnswerForm form = KvAnswerForm::kList;
    std::shared_ptr<runtime::ResponseStream> stream;
  };

  // One of the two publications.
  struct Publication {
    wire::EventScope scope;
    llm::RouterEventForm form = llm::RouterEventForm::kComponent;
    std::shared_ptr<runtime::EventPublisher> publisher;
  };

  Result<runtime::Transport> add_recovery_endpoint(const std::string& name, bool is_endpoint_scope);
  Result<void> put(runtime::Record record);
  void take_query(runtime::IncomingRequest request, std::shared_ptr<runtime::ResponseStream> stream,
                  bool is_endpoint_scope);

  void run();
  void publish(const std::vector<llm::RouterEvent>& events);
  void publish_batches(Publication& publication, std::span<const llm::RouterEvent> events);
  void answer(const Query& query);

  const KvEventPublisherOptions options_;
  runtime::Discovery& discovery_;
  runtime::RequestPlane& plane_;
  Publication component_;
  Publication endpoint_;
  std::vector<runtime::Record> records_;  // in the order of publishing
  std::vector<runtime::EndpointId> recovery_endpoints_;

  metrics::Counter& published_;
  metrics::Counter& dropped_;
  metrics::Counter& unsent_;
  metrics::Counter& queries_;
  metrics::Gauge& known_blocks_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<llm::KvEvent> queue_;  // guarded by mutex_, as are the next four
  std::vector<Query> query_queue_;
  size_t queued_blocks_ = 0;
  bool lost_ = false;  // events were dropped before those in the queue
  bool stopping_ = false;

  KvEventLog log_;  // publisher thread only
  Buffer payload_;
  std::thread thread_;
};

}  // namespace dyn::worker
