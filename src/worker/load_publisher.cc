#include "worker/load_publisher.h"

#include <utility>

#include "base/log.h"
#include "base/threads.h"
#include "wire/msgpack_writer.h"

namespace dyn::worker {
namespace {

constexpr char kTarget[] = "load";
constexpr char kTopic[] = "kv_metrics";

}  // namespace

void encode_active_load(Buffer& out, uint64_t worker_id, uint64_t used_blocks, llm::RouterEventForm form) {
  const bool is_endpoint_form = form == llm::RouterEventForm::kEndpoint;
  wire::pack_map(out, is_endpoint_form ? 5 : 4);
  wire::pack_str(out, "worker_id");
  wire::pack_uint(out, worker_id);
  wire::pack_str(out, "dp_rank");
  wire::pack_uint(out, 0);
  wire::pack_str(out, "active_decode_blocks");
  if (is_endpoint_form) {
    wire::pack_nil(out);
  } else {
    wire::pack_uint(out, used_blocks);
  }
  wire::pack_str(out, "active_prefill_tokens");
  wire::pack_nil(out);
  if (!is_endpoint_form) return;
  wire::pack_str(out, "kv_used_blocks");
  wire::pack_uint(out, used_blocks);
}

LoadPublisher::LoadPublisher(LoadPublisherOptions options, EventSockets sockets, runtime::Discovery& discovery,
                             const engine::Engine& engine)
    : options_(std::move(options)), sockets_(std::move(sockets)), discovery_(discovery), engine_(engine) {}

LoadPublisher::~LoadPublisher() {
  close();
}

Result<void> LoadPublisher::start() {
  const wire::EventScope namespace_scope{.ns = options_.endpoint.ns, .component = {}, .endpoint = {}};
  const wire::EventScope endpoint_scope{
      .ns = options_.endpoint.ns, .component = options_.endpoint.component, .endpoint = options_.endpoint.name};
  for (auto& record : {runtime::event_channel_record(namespace_scope, kTopic, *sockets_.component),
                       runtime::event_channel_record(endpoint_scope, kTopic, *sockets_.endpoint)}) {
    if (auto done = discovery_.put(record); !done) return done.error().with_context("publishing " + record.key);
    records_.push_back(record);
  }
  thread_ = std::thread([this] { run(); });
  return {};
}

void LoadPublisher::close() {
  for (const auto& record : records_) {
    if (auto removed = discovery_.remove(record.bucket, record.key); !removed) {
      DYN_WARN(kTarget, "record {}/{} could not be removed: {}", record.bucket, record.key, removed.error().message);
    }
  }
  records_.clear();
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void LoadPublisher::run() {
  set_thread_name("load");
  std::optional<uint64_t> published;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kInterval, [this] { return stopping_; })) {
    const uint64_t used = engine_.stats().kv_blocks_used;
    if (used == published) continue;
    publish(used);
    published = used;
  }
}

void LoadPublisher::publish(uint64_t used_blocks) {
  for (const auto form : {llm::RouterEventForm::kComponent, llm::RouterEventForm::kEndpoint}) {
    payload_.clear();
    encode_active_load(payload_, options_.worker_id, used_blocks, form);
    const auto& socket = form == llm::RouterEventForm::kComponent ? sockets_.component : sockets_.endpoint;
    socket->publish(kTopic, payload_.view());
  }
}

}  // namespace dyn::worker
