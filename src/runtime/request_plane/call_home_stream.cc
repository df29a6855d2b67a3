#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "net/local_address.h"
#include "runtime/request_plane/call_home_stream_internal.h"
#include "runtime/request_plane/stream_items.h"
#include "wire/call_home.h"

namespace dyn::runtime {
namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

constexpr std::string_view kLog = "request_plane";
constexpr size_t kKeptBufferBytes = 64 * 1024;
// Control frames are 30 bytes; unknown ones are skipped if they are not longer than this.
constexpr wire::TwoPartLimits kControlLimits = {.max_header_bytes = 16 * 1024, .max_message_bytes = 16 * 1024};

constexpr uint8_t bit(CancelKind kind) {
  return static_cast<uint8_t>(1U << static_cast<unsigned>(kind));
}

}  // namespace

std::string_view to_string(CancelKind kind) {
  switch (kind) {
    case CancelKind::kStop:
      return "stop";
    case CancelKind::kKill:
      return "kill";
    case CancelKind::kGone:
      return "gone";
    case CancelKind::kTooSlow:
      return "too_slow";
  }
  return "unknown";
}

std::shared_ptr<CallHomeStream> CallHomeStream::create(net::EventLoop& loop, const CallHomeOptions& options,
                                                       const wire::ControlMessage& control,
                                                       std::shared_ptr<StreamAccount> account) {
  return std::make_shared<CallHomeStream>(loop, options, control, std::move(account));
}

std::shared_ptr<ResponseStream> CallHomeStream::handle(const std::shared_ptr<CallHomeStream>& stream) {
  return {stream.get(), [stream](ResponseStream*) {
            if (stream->loop_.in_loop_thread()) {
              stream->on_handle_released();
            } else {
              stream->loop_.post([stream] { stream->on_handle_released(); });
            }
          }};
}

CallHomeStream::CallHomeStream(net::EventLoop& loop, const CallHomeOptions& options,
                               const wire::ControlMessage& control, std::shared_ptr<StreamAccount> account)
    : loop_(loop),
      options_(options),
      request_id_(control.id),
      peer_(control.connection),
      codec_(control.payload_codec),
      socket_(loop.context()),
      timer_(loop.context()),
      account_(std::move(account)) {}

CallHomeStream::~CallHomeStream() = default;

// ---- connecting

void CallHomeStream::dial() {
  wire::encode_handshake(out_, peer_.subject, peer_.stream_type);
  port_retry_until_ = std::chrono::steady_clock::now() + options_.port_retry_limit;
  connect();
}

void CallHomeStream::connect() {
  boost::system::error_code error;
  const asio::ip::address address = asio::ip::make_address(peer_.host, error);
  const tcp::endpoint endpoint(address, peer_.port);
  if (!error) socket_.open(endpoint.protocol(), error);
  if (!error) socket_.set_option(tcp::no_delay(true), error);
  if (!error) socket_.set_option(tcp::socket::keep_alive(true), error);
  if (!error) socket_.non_blocking(true, error);
  if (error) {
    on_connect(error);
    return;
  }
  arm_timer(options_.connect_timeout, &CallHomeStream::on_connect_timeout);
  socket_.async_connect(
      endpoint, [self = shared_from_this()](const boost::system::error_code& result) { self->on_connect(result); });
}

void CallHomeStream::on_connect_timeout() {
  on_connect(asio::error::timed_out);
}

void CallHomeStream::on_connect(const boost::system::error_code& error) {
  if (state_ != State::kConnecting) return;
  if (!error) {
    disarm_timer();
    state_ = State::kOpen;
    fd_ = socket_.native_handle();
    arm_read();
    flush();
    if (state_ == State::kOpen && ended_ && !out_.empty()) arm_timer(options_.stall_limit, &CallHomeStream::on_stalled);
    return;
  }
  if (error == boost::system::errc::address_not_available && std::chrono::steady_clock::now() < port_retry_until_) {
    boost::system::error_code ignored;
    socket_.close(ignored);
    arm_timer(options_.port_retry_interval, &CallHomeStream::connect);
    return;
  }
  DYN_WARN(kLog, "request {}: cannot call back to {}: {}", request_id_, net::host_port(peer_.host, peer_.port),
           error.message());
  fail(CancelKind::kGone, StreamFailure::kConnect);
}

// ---- what the caller sends

void CallHomeStream::arm_read() {
  socket_.async_wait(tcp::socket::wait_read,
                     [self = shared_from_this()](const boost::system::error_code& error) { self->on_readable(error); });
}

void CallHomeStream::on_readable(const boost::system::error_code& error) {
  if (state_ == State::kClosed) return;
  if (error) {
    on_peer_closed();
    return;
  }
  std::byte bytes[4096];
  const ssize_t count = ::recv(fd_, bytes, sizeof bytes, MSG_DONTWAIT);
  if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) {
    on_peer_closed();
    return;
  }
  if (count > 0) on_control_bytes({bytes, static_cast<size_t>(count)});
  if (state_ != State::kClosed) arm_read();
}

void CallHomeStream::on_control_bytes(Bytes bytes) {
  in_.append(bytes);
  while (state_ != State::kClosed) {
    wire::TwoPart frame;
    const wire::FrameStep step = wire::decode_two_part(in_.view(), kControlLimits, frame);
    if (step.state == wire::FrameState::kNeedMore) return;
    if (step.state == wire::FrameState::kError) {
      DYN_WARN(kLog, "request {}: the caller sent no control frame: {}", request_id_, step.error.message);
      on_peer_closed();
      return;
    }
    switch (wire::decode_control(frame)) {
      case wire::ControlWord::kStop:
        if (!ended_) {
          summary_.cancelled = true;
          report(CancelKind::kStop);
        }
        break;
      case wire::ControlWord::kKill:
        // Callers also send it right after they have read the final frame: then it means nothing.
        if (!ended_) {
          fail(CancelKind::kKill, StreamFailure::kNone);
        } else if (!delivered_) {
          close();
        }
        break;
      case wire::ControlWord::kSentinel:
      case wire::ControlWord::kUnknown:
        break;
    }
    in_.consume(step.size);
  }
}

void CallHomeStream::on_peer_closed() {
  if (!ended_) {
    fail(CancelKind::kGone, StreamFailure::kNone);
  } else if (!delivered_) {
    fail(CancelKind::kGone, StreamFailure::kFinal);
  } else {
    close();
  }
}

// ---- what the owner does

void CallHomeStream::set_observer(Observer* observer) {
  observer_ = observer;
  if (observer_ != nullptr && pending_ != 0) post_reports();
}

void CallHomeStream::accept() {
  if (!writable() || prologue_sent_) return;
  append_prologue();
  flush();
}

void CallHomeStream::append_prologue() {
  if (prologue_sent_) return;
  prologue_sent_ = true;
  wire::encode_prologue(out_);
}

void CallHomeStream::refuse(std::string_view text) {
  if (!writable()) return;
  if (prologue_sent_) {
    DYN_ERROR(kLog, "request {}: refused after it was accepted: {}", request_id_, text);
    abandon();
    return;
  }
  prologue_sent_ = true;
  summary_.failure = StreamFailure::kRefused;
  wire::encode_prologue(out_, text);
  wire::encode_control(out_, wire::ControlWord::kSentinel);
  end(/*half_close=*/false);
}

Buffer& CallHomeStream::begin_item() {
  if (writable()) [[likely]] {
    if (!first_item_seen_) [[unlikely]] {
      first_item_seen_ = true;
      append_prologue();
      account_->on_first_item();
    }
    if (out_.size() > options_.max_buffered_bytes) [[unlikely]]
      on_too_much_buffered();
  }
  item_mark_ = wire::begin_two_part_data(out_);
  item_open_ = true;
  return out_;
}

void CallHomeStream::end_item() {
  if (!item_open_) return;
  item_open_ = false;
  const size_t item_bytes = out_.size() - item_mark_ - wire::kTwoPartPrefixBytes;
  if (writable() && item_bytes > 0) [[likely]] {
    wire::end_two_part_data(out_, item_mark_);
    summary_.item_bytes += item_bytes;
    return;
  }
  // Nobody reads it, or it is empty: a frame of two empty parts must not be sent.
  drop_open_item();
  flush();
}

void CallHomeStream::drop_open_item() {
  out_.shrink(out_.size() - item_mark_);
  item_open_ = false;
}

void CallHomeStream::flush() {
  if (state_ != State::kOpen || write_armed_ || item_open_) return;
  if (out_.empty()) {
    if (ended_ && !delivered_) on_sent_all();
    return;
  }
  const ssize_t count = ::send(fd_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (count == static_cast<ssize_t>(out_.size())) [[likely]] {
    summary_.total_bytes += static_cast<uint64_t>(count);
    out_.clear();
    if (out_.capacity() > kKeptBufferBytes) [[unlikely]]
      out_.trim(kKeptBufferBytes);
    if (ended_) [[unlikely]]
      on_sent_all();
    return;
  }
  if (count < 0 && errno != EAGAIN && errno != EINTR) {
    fail(CancelKind::kGone, ended_ ? StreamFailure::kFinal : StreamFailure::kWrite);
    return;
  }
  if (count > 0) {
    summary_.total_bytes += static_cast<uint64_t>(count);
    out_.consume(static_cast<size_t>(count));
    if (ended_) arm_timer(options_.stall_limit, &CallHomeStream::on_stalled);
  }
  arm_write();
}

void CallHomeStream::arm_write() {
  write_armed_ = true;
  socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](const boost::system::error_code&) {
    self->write_armed_ = false;
    self->flush();  // an error shows in send()
  });
}

void CallHomeStream::on_too_much_buffered() {
  flush();
  if (!writable() || out_.size() <= options_.max_buffered_bytes) return;
  if (!too_slow_) {
    too_slow_ = true;
    report(CancelKind::kTooSlow);
  } else if (cut_off_bytes_ == 0) {  // the item during which it was reported does not count
    cut_off_bytes_ = out_.size() + options_.last_words_bytes;
  } else if (out_.size() > cut_off_bytes_) {
    DYN_WARN(kLog, "request {}: the caller reads too slowly, {} bytes wait: cut off", request_id_, out_.size());
    // An owner that has not heard of the slow reader yet is told that, not that the caller is gone.
    fail((pending_ & bit(CancelKind::kTooSlow)) != 0 ? CancelKind::kTooSlow : CancelKind::kGone, StreamFailure::kWrite);
  }
}

void CallHomeStream::finish() {
  if (!writable()) {
    pending_ = 0;
    return;
  }
  if (item_open_) drop_open_item();
  append_prologue();
  append_final_frame(out_, codec_);
  wire::encode_control(out_, wire::ControlWord::kSentinel);
  end(/*half_close=*/false);
}

void CallHomeStream::abandon() {
  if (!writable()) {
    pending_ = 0;
    return;
  }
  if (item_open_) drop_open_item();
  end(/*half_close=*/true);
}

void CallHomeStream::end(bool half_close) {
  ended_ = true;
  half_close_ = half_close;
  pending_ = 0;
  settle_released();
  flush();
  if (state_ == State::kOpen && !out_.empty()) arm_timer(options_.stall_limit, &CallHomeStream::on_stalled);
}

// ---- closing

void CallHomeStream::on_sent_all() {
  settle_delivered();
  if (half_close_) ::shutdown(fd_, SHUT_WR);
  arm_timer(options_.close_wait, &CallHomeStream::close);
}

void CallHomeStream::on_stalled() {
  DYN_WARN(kLog, "request {}: the caller reads nothing any more, {} bytes are lost", request_id_, out_.size());
  fail(CancelKind::kGone, StreamFailure::kFinal);
}

void CallHomeStream::cut() {
  if (state_ == State::kClosed) return;
  if (ended_ && delivered_) {
    close();
  } else {
    fail(CancelKind::kGone, StreamFailure::kNone);
  }
}

void CallHomeStream::fail(CancelKind kind, StreamFailure failure) {
  if (state_ == State::kClosed) return;
  if (!ended_) {
    summary_.cancelled = true;
    report(kind);
  }
  if (summary_.failure == StreamFailure::kNone) summary_.failure = failure;
  close();
}

void CallHomeStream::close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  disarm_timer();
  boost::system::error_code ignored;
  socket_.close(ignored);
  fd_ = -1;
  if (!item_open_) {
    out_.clear();
    out_.trim(0);
  }
  in_.clear();
  settle_released();
  settle_delivered();
  const auto account = std::exchange(account_, nullptr);
  account->on_closed();
}

void CallHomeStream::settle_released() {
  if (std::exchange(released_, true)) return;
  account_->on_released();
}

void CallHomeStream::settle_delivered() {
  if (std::exchange(delivered_, true)) return;
  account_->on_delivered(summary_);
}

void CallHomeStream::on_handle_released() {
  observer_ = nullptr;
  if (!writable()) return;
  DYN_ERROR(kLog, "request {}: dropped by its handler without an end", request_id_);
  abandon();
}

// ---- reports to the owner, never from inside one of its calls

void CallHomeStream::report(CancelKind kind) {
  if ((reported_ & bit(kind)) != 0) return;
  reported_ |= bit(kind);
  pending_ |= bit(kind);
  if (observer_ != nullptr) post_reports();
}

void CallHomeStream::post_reports() {
  if (std::exchange(reports_posted_, true)) return;
  asio::post(loop_.context(), [self = shared_from_this()] { self->deliver_reports(); });
}

void CallHomeStream::deliver_reports() {
  reports_posted_ = false;
  // The most final one first: after it the others say nothing new.
  for (const CancelKind kind : {CancelKind::kKill, CancelKind::kGone, CancelKind::kStop, CancelKind::kTooSlow}) {
    if (observer_ == nullptr || (pending_ & bit(kind)) == 0) continue;
    pending_ &= static_cast<uint8_t>(~bit(kind));
    if (kind == CancelKind::kKill || kind == CancelKind::kGone) pending_ = 0;
    observer_->on_cancel(kind);
  }
}

// ---- timer: one purpose at a time

void CallHomeStream::arm_timer(std::chrono::milliseconds after, void (CallHomeStream::*action)()) {
  const uint64_t generation = ++timer_generation_;
  timer_.expires_after(after);
  timer_.async_wait([self = shared_from_this(), generation, action](const boost::system::error_code& error) {
    // A timer that has expired cannot be cancelled any more, but it can be out of date.
    if (!error && generation == self->timer_generation_ && self->state_ != State::kClosed) (self.get()->*action)();
  });
}

void CallHomeStream::disarm_timer() {
  ++timer_generation_;
  timer_.cancel();
}

}  // namespace dyn::runtime
