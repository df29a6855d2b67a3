// LoadPublisher: tells frontends how much of the KV cache is in use, for those that turn requests away from busy
// workers (--active-decode-blocks-threshold).
//
//   LoadPublisher load({.endpoint = endpoint, .worker_id = id}, {component, own}, discovery, engine);
//   load.start();
//   ...
//   load.close();
//
// Looks every kInterval and publishes what has changed, in namespace scope for frontends of 0.9 ... 1.3 and in endpoint
// scope for 1.4 and later (ActiveLoad of lib/llm/src/kv_router/protocols.rs, lib/kv-router/src/protocols.rs).
// Ownership: discovery and engine outlive it. Thread rules: control thread; has a thread of its own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/result.h"
#include "engine/engine.h"
#include "runtime/discovery/discovery.h"
#include "runtime/request_plane/request_plane.h"
#include "worker/kv_event_publisher.h"

namespace dyn::worker {

// One message about rank 0, msgpack. The two forms name the used blocks differently.
void encode_active_load(Buffer& out, uint64_t worker_id, uint64_t used_blocks, llm::RouterEventForm form);

struct LoadPublisherOptions {
  runtime::EndpointId endpoint;
  uint64_t worker_id = 0;
};

class LoadPublisher {
 public:
  static constexpr std::chrono::milliseconds kInterval{50};

  LoadPublisher(LoadPublisherOptions options, EventSockets sockets, runtime::Discovery& discovery,
                const engine::Engine& engine);
  ~LoadPublisher();
  LoadPublisher(const LoadPublisher&) = delete;
  LoadPublisher& operator=(const LoadPublisher&) = delete;

  Result<void> start();
  void close();  // idempotent; also done by the destructor

 private:
  void run();
  void publish(uint64_t used_blocks);

  const LoadPublisherOptions options_;
  const EventSockets sockets_;
  runtime::Discovery& discovery_;
  const engine::Engine& engine_;
  std::vector<runtime::Record> records_;
  Buffer payload_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace dyn::worker
