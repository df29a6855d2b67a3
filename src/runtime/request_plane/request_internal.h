// Request: the life of one request between its frame and its handler, and its books until the response is gone.
//
//   auto request = std::make_shared<Request>(dispatcher, endpoint, Request::Kind::kServe, std::move(incoming));
//   request->begin(loop);       // dials; then handler, queue or refusal
//
// Ownership: the admission queue while it waits, then its stream. Thread rules: made on the connection's loop, begun on
// the stream's loop and confined to it from then on; only on_slot() comes from other threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "net/event_loop.h"
#include "runtime/request_plane/admission.h"
#include "runtime/request_plane/call_home_stream_internal.h"
#include "runtime/request_plane/dispatcher_internal.h"
#include "runtime/request_plane/request_plane.h"

namespace dyn::runtime {

class Request final : public StreamAccount,
                      public ResponseStream::Observer,
                      public Admission::Waiter,
                      public std::enable_shared_from_this<Request> {
 public:
  enum class Kind : uint8_t {
    kServe,
    kUnknownRoute,   // of a caller that does not read acknowledgements: told on the response stream
    kBidirectional,  // many_in: not served
  };

  // `endpoint` may be missing for kUnknownRoute only. `frame_bytes`: what the request's two-part message took.
  Request(std::shared_ptr<Dispatcher> dispatcher, std::shared_ptr<Endpoint> endpoint, Kind kind,
          IncomingRequest incoming, size_t frame_bytes);

  // Until then the payload is a view of the connection's memory.
  void keep_payload();
  void begin(net::EventLoop& loop);

 private:
  void admit();
  void serve();
  void on_slot_in_loop();

  void on_slot() override;
  void on_cancel(CancelKind kind) override;
  void on_first_item() override;
  void on_released() override;
  void on_delivered(const StreamSummary& summary) override;
  void on_closed() override;

  const std::shared_ptr<Dispatcher> dispatcher_;
  const std::shared_ptr<Endpoint> endpoint_;
  const Kind kind_;
  const size_t frame_bytes_;
  const std::chrono::steady_clock::time_point received_;
  IncomingRequest incoming_;
  std::vector<std::byte> payload_;  // with wire::kReadPadding bytes behind it

  net::EventLoop* loop_ = nullptr;
  CallHomeStream* registered_ = nullptr;    // in the dispatcher's set
  std::shared_ptr<CallHomeStream> stream_;  // until the handler has it
  bool waiting_ = false;
  bool has_slot_ = false;
  bool released_ = false;
};

}  // namespace dyn::runtime
