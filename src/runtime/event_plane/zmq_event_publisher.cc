#include <fmt/format.h>
#include <zmq.h>

#include <array>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/ids.h"
#include "base/log.h"
#include "net/local_address.h"
#include "runtime/event_plane/event_plane.h"
#include "wire/event_envelope.h"

namespace dyn::runtime {
namespace {

constexpr char kTarget[] = "event_plane";
constexpr int kSendHighWaterMark = 100'000;  // messages a subscriber, as the official publishers

// One context, and with it one I/O thread, for all publishers of the process; it lives as long as one of them.
std::shared_ptr<void> shared_context() {
  static std::weak_ptr<void> current;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto context = current.lock();
  if (!context) {
    context = {zmq_ctx_new(), [](void* ctx) {
                 if (ctx != nullptr) zmq_ctx_term(ctx);
               }};
    current = context;
  }
  return context;
}

uint64_t unix_ms() {
  using std::chrono::milliseconds;
  return static_cast<uint64_t>(
      std::chrono::duration_cast<milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
}

class ZmqEventPublisher final : public EventPublisher {
 public:
  explicit ZmqEventPublisher(uint64_t publisher_id) : publisher_id_(publisher_id), context_(shared_context()) {}

  ~ZmqEventPublisher() override {
    if (socket_ != nullptr) zmq_close(socket_);
  }

  Result<void> open(const std::string& host) {
    auto address = host.empty() ? Result<std::string>(net::local_address()) : net::resolve_host(host);
    if (!address) return address.error().with_context("event plane");
    socket_ = context_ ? zmq_socket(context_.get(), ZMQ_PUB) : nullptr;
    if (socket_ == nullptr) return failed("cannot make a socket");
    const std::array<std::pair<int, int>, 4> settings = {{
        {ZMQ_SNDHWM, kSendHighWaterMark},
        {ZMQ_SNDTIMEO, 0},
        {ZMQ_LINGER, 0},
        {ZMQ_IPV6, address->find(':') != std::string::npos ? 1 : 0},
    }};
    for (const auto& [option, value] : settings) {
      if (zmq_setsockopt(socket_, option, &value, sizeof value) != 0) return failed("cannot configure the socket");
    }
    if (zmq_bind(socket_, ("tcp://" + bracketed(*address) + ":*").c_str()) != 0) {
      return failed(fmt::format("cannot listen on {}", *address));
    }
    std::array<char, 256> bound{};
    size_t size = bound.size();
    if (zmq_getsockopt(socket_, ZMQ_LAST_ENDPOINT, bound.data(), &size) != 0) return failed("cannot read its address");
    const std::string endpoint(bound.data());
    const std::string port = endpoint.substr(endpoint.rfind(':') + 1);
    const std::string reachable = net::is_wildcard(*address) ? net::local_address() : *address;
    transport_ = {"Zmq", "tcp://" + bracketed(reachable) + ":" + port};
    DYN_DEBUG(kTarget, "publisher {:x} on {}", publisher_id_, transport_.value);
    return {};
  }

  [[nodiscard]] uint64_t publisher_id() const override { return publisher_id_; }
  [[nodiscard]] const wire::EventTransport& transport() const override { return transport_; }

  bool publish(std::string_view topic, Bytes payload) override {
    const std::lock_guard lock(mutex_);
    const uint64_t number = next_sequence(topic);
    std::array<std::byte, 8> id;
    std::array<std::byte, 8> sequence;
    store_be(id.data(), publisher_id_);
    store_be(sequence.data(), number);
    frame_.clear();
    wire::append_event_frame(frame_, {.publisher_id = publisher_id_,
                                      .sequence = number,
                                      .published_at_ms = unix_ms(),
                                      .topic = topic,
                                      .payload = payload});
    return send(as_bytes(topic), ZMQ_SNDMORE) && send(id, ZMQ_SNDMORE) && send(sequence, ZMQ_SNDMORE) &&
           send(frame_.view(), 0);
  }

 private:
  static std::string bracketed(const std::string& address) {
    return address.find(':') == std::string::npos ? address : '[' + address + ']';
  }
  static Error failed(const std::string& what) {
    return {Code::kUnavailable, fmt::format("event plane: {}: {}", what, zmq_strerror(zmq_errno()))};
  }
  // Counts from 0 for every topic.
  uint64_t next_sequence(std::string_view topic) {
    for (auto& [name, next] : sequences_) {
      if (name == topic) return next++;
    }
    sequences_.emplace_back(topic, 1);
    return 0;
  }
  bool send(Bytes part, int flags) { return zmq_send(socket_, part.data(), part.size(), flags | ZMQ_DONTWAIT) >= 0; }

  const uint64_t publisher_id_;
  const std::shared_ptr<void> context_;
  void* socket_ = nullptr;
  wire::EventTransport transport_;

  std::mutex mutex_;  // a message's parts stay together
  std::vector<std::pair<std::string, uint64_t>> sequences_;
  Buffer frame_;
};

}  // namespace

Result<std::shared_ptr<EventPublisher>> make_zmq_event_publisher(const ZmqPublisherOptions& options) {
  auto publisher = std::make_shared<ZmqEventPublisher>(options.publisher_id);
  if (auto opened = publisher->open(options.host); !opened) return opened.error();
  return std::shared_ptr<EventPublisher>(std::move(publisher));
}

Record event_channel_record(const wire::EventScope& scope, std::string_view topic, const EventPublisher& publisher) {
  return {kEventChannelsBucket, wire::event_channel_key(scope, topic, publisher.publisher_id()),
          wire::encode_event_channel(scope, topic, publisher.publisher_id(), publisher.transport())};
}

uint64_t random_publisher_id() {
  return random_u64() >> 11;
}

}  // namespace dyn::runtime
