#include <cstring>
#include <exception>
#include <utility>

#include "base/log.h"
#include "runtime/request_plane/request_internal.h"
#include "runtime/request_plane/stream_items.h"
#include "wire/padding.h"

namespace dyn::runtime {
namespace {

constexpr std::string_view kLog = "request_plane";

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void end_with_error(CallHomeStream& stream, wire::PayloadCodec codec, const ErrorItem& error) {
  append_error_item(stream.begin_item(), codec, error);
  stream.end_item();
  stream.finish();
}

}  // namespace

Request::Request(std::shared_ptr<Dispatcher> dispatcher, std::shared_ptr<Endpoint> endpoint, Kind kind,
                 IncomingRequest incoming, size_t frame_bytes)
    : dispatcher_(std::move(dispatcher)),
      endpoint_(std::move(endpoint)),
      kind_(kind),
      frame_bytes_(frame_bytes),
      received_(incoming.received),
      incoming_(std::move(incoming)) {}

void Request::keep_payload() {
  const Bytes source = incoming_.payload;
  if (source.empty() || source.data() == payload_.data()) return;
  payload_.resize(source.size() + wire::kReadPadding);
  std::memcpy(payload_.data(), source.data(), source.size());
  incoming_.payload = Bytes(payload_).first(source.size());
}

void Request::begin(net::EventLoop& loop) {
  if (dispatcher_->stopping_.load()) {
    dispatcher_->leave_request();
    return;
  }
  loop_ = &loop;
  if (endpoint_) {
    endpoint_->metrics.requests.increment();
    endpoint_->metrics.request_bytes.increment(static_cast<double>(frame_bytes_));
    endpoint_->metrics.inflight.add(1);
  }
  // A local copy: whatever ends the stream also takes it from the member.
  const auto stream = CallHomeStream::create(loop, dispatcher_->call_home_, incoming_.control, shared_from_this());
  stream_ = stream;
  registered_ = stream.get();
  dispatcher_->streams_[loop.index()].insert(registered_);
  stream->dial();
  if (released_) return;
  switch (kind_) {
    case Kind::kServe:
      admit();
      break;
    case Kind::kUnknownRoute:
      end_with_error(*stream, incoming_.control.payload_codec, kEngineShutdown);
      break;
    case Kind::kBidirectional:
      stream->refuse("bidirectional requests (many_in) are not supported by this worker");
      break;
  }
}

void Request::admit() {
  switch (dispatcher_->admission_.enter(shared_from_this(), incoming_.payload.size())) {
    case Admission::Verdict::kRun:
      has_slot_ = true;
      serve();
      break;
    case Admission::Verdict::kQueued:
      waiting_ = true;
      keep_payload();
      stream_->set_observer(this);
      break;
    case Admission::Verdict::kFull: {
      dispatcher_->metrics_.enqueue_rejected.increment();
      dispatcher_->metrics_.rejections.increment();
      const auto stream = stream_;
      end_with_error(*stream, incoming_.control.payload_codec, kWorkerAtCapacity);
      break;
    }
  }
}

void Request::serve() {
  dispatcher_->metrics_.permit_wait.observe(seconds_since(received_));
  const auto stream = std::exchange(stream_, nullptr);
  try {
    endpoint_->handler(std::move(incoming_), CallHomeStream::handle(stream));
  } catch (const std::exception& failure) {
    // Its handle is gone with it, so the stream has been abandoned.
    DYN_ERROR(kLog, "the handler of {} threw: {}", endpoint_->id.name, failure.what());
  }
  payload_ = {};
}

void Request::on_slot() {
  loop_->post([self = shared_from_this()] { self->on_slot_in_loop(); });
}

void Request::on_slot_in_loop() {
  waiting_ = false;
  if (released_) {  // cancelled on the way from the queue to here
    dispatcher_->admission_.release();
    return;
  }
  has_slot_ = true;
  stream_->set_observer(nullptr);
  serve();
}

// Only while it waits. After kill and the like the stream has told on_released() already.
void Request::on_cancel(CancelKind kind) {
  if (kind != CancelKind::kStop) return;
  const auto stream = stream_;
  if (stream) stream->finish();
}

void Request::on_first_item() {
  dispatcher_->metrics_.time_to_first_response.observe(seconds_since(received_));
}

void Request::on_released() {
  released_ = true;
  if (std::exchange(has_slot_, false)) dispatcher_->admission_.release();
  if (waiting_) {
    stream_->set_observer(nullptr);
    if (dispatcher_->admission_.leave_queue(this)) waiting_ = false;
  }
}

void Request::on_delivered(const StreamSummary& summary) {
  dispatcher_->metrics_.bytes_sent.increment(static_cast<double>(summary.total_bytes));
  if (endpoint_) {
    EndpointMetrics& metrics = endpoint_->metrics;
    metrics.inflight.add(-1);
    metrics.duration.observe(seconds_since(received_));
    metrics.response_bytes.increment(static_cast<double>(summary.item_bytes));
    if (summary.cancelled) metrics.cancellations.increment();
    switch (summary.failure) {
      case StreamFailure::kNone:
        break;
      case StreamFailure::kConnect:
        metrics.error(ErrorType::kResponseStream).increment();
        break;
      case StreamFailure::kRefused:
        metrics.error(ErrorType::kGenerate).increment();
        break;
      case StreamFailure::kWrite:
        metrics.error(ErrorType::kPublishResponse).increment();
        break;
      case StreamFailure::kFinal:
        metrics.error(ErrorType::kPublishFinal).increment();
        break;
    }
  }
  dispatcher_->leave_request();
}

void Request::on_closed() {
  dispatcher_->streams_[loop_->index()].erase(registered_);
  stream_.reset();
}

}  // namespace dyn::runtime
