#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <chrono>

#include "base/log.h"
#include "runtime/request_plane/tcp_connection_internal.h"
#include "wire/padding.h"

namespace dyn::runtime {
namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

constexpr std::string_view kLog = "request_plane";
constexpr size_t kReadBytes = 16 * 1024;
constexpr size_t kKeptBytes = 64 * 1024;
// A caller that sends on without reading its acknowledgements is not read from until it does.
constexpr size_t kMostAckBytes = 64 * 1024;
// Then other sockets of the loop get their turn: tokens must not wait behind a burst of requests.
constexpr unsigned kFramesPerTurn = 16;
constexpr std::chrono::seconds kDiscardTime{10};

}  // namespace

TcpConnection::TcpConnection(net::EventLoop& loop, tcp::socket socket, std::shared_ptr<Dispatcher> dispatcher,
                             const wire::RequestFrameLimits& limits, OnClosed on_closed)
    : loop_(loop),
      socket_(std::move(socket)),
      discard_timer_(loop.context()),
      dispatcher_(std::move(dispatcher)),
      limits_(limits),
      on_closed_(std::move(on_closed)),
      missing_bytes_(kReadBytes) {}

void TcpConnection::start() {
  boost::system::error_code error;
  socket_.non_blocking(true, error);
  if (!error) socket_.set_option(tcp::no_delay(true), error);
  // Nothing else would ever tell that the host of an idle caller has vanished.
  if (!error) socket_.set_option(tcp::socket::keep_alive(true), error);
  if (error) {
    close();
    return;
  }
  arm_read();
}

void TcpConnection::close() {
  if (closed_) return;
  closed_ = true;
  const auto self = shared_from_this();
  boost::system::error_code ignored;
  discard_timer_.cancel();
  socket_.close(ignored);
  on_closed_(*this);
}

void TcpConnection::arm_read() {
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const boost::system::error_code& error) {
    if (self->closed_) return;
    if (error) {
      self->close();
    } else {
      self->on_readable();
    }
  });
}

void TcpConnection::on_readable() {
  if (!receive()) return;
  if (reading_ == Reading::kDiscard) {
    in_.clear();
    arm_read();
    return;
  }
  process_frames();
}

// False: nothing has come, and what is to happen then is arranged.
bool TcpConnection::receive() {
  // At most what is there already once more: memory follows what has arrived, not what a length field claims.
  const size_t want = std::clamp(missing_bytes_, kReadBytes, std::max(kReadBytes, in_.size()));
  in_.reserve(want + wire::kReadPadding);
  const ssize_t count = ::recv(socket_.native_handle(), in_.extend(want), want, MSG_DONTWAIT);
  in_.shrink(want - static_cast<size_t>(std::max<ssize_t>(count, 0)));
  if (count > 0) {
    dispatcher_->metrics().bytes_received.increment(static_cast<double>(count));
    return true;
  }
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
    arm_read();
  } else {
    close();
  }
  return false;
}

void TcpConnection::process_frames() {
  for (unsigned frames = 0; !closed_; ++frames) {
    if (acks_.size() > kMostAckBytes) return;  // goes on when they are sent
    if (frames == kFramesPerTurn) {
      asio::post(loop_.context(), [self = shared_from_this()] { self->process_frames(); });
      return;
    }
    wire::RequestFrame frame;
    const wire::FrameStep step = wire::decode_request_frame(in_.view(), limits_, frame);
    if (step.state == wire::FrameState::kError) {
      on_bad_frame(step.error);
      return;
    }
    if (step.state == wire::FrameState::kNeedMore) {
      missing_bytes_ = step.size - in_.size();
      if (in_.empty() && in_.capacity() > kKeptBytes) in_.trim(kKeptBytes);
      arm_read();
      return;
    }
    take_frame(frame);
    in_.consume(step.size);
  }
}

void TcpConnection::take_frame(const wire::RequestFrame& frame) {
  Intake intake = dispatcher_->take(frame.path, frame.headers, frame.payload);
  wire::encode_ack(acks_, intake.ack);
  send_acks();
  dispatcher_->run(std::move(intake), loop_);
}

void TcpConnection::on_bad_frame(const Error& error) {
  DYN_WARN(kLog, "request connection closed: {}", error.message);
  dispatcher_->metrics().transport_errors.increment();
  // Closing with unread bytes would reset the connection, and the reset may overtake the acknowledgement.
  reading_ = Reading::kDiscard;
  in_.clear();
  missing_bytes_ = kReadBytes;
  wire::encode_ack(acks_, "Read error: " + error.message);
  discard_timer_.expires_after(kDiscardTime);
  discard_timer_.async_wait([self = shared_from_this()](const boost::system::error_code& failure) {
    if (!failure) self->close();
  });
  send_acks();
  if (!closed_) arm_read();
}

void TcpConnection::send_acks() {
  if (write_armed_ || closed_) return;
  const ssize_t count = ::send(socket_.native_handle(), acks_.data(), acks_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (count < 0 && errno != EAGAIN && errno != EINTR) {
    // The caller is gone. Its requests are not: each has its own connection, which tells.
    asio::post(loop_.context(), [self = shared_from_this()] { self->close(); });
    acks_.clear();
    return;
  }
  acks_.consume(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  if (acks_.empty()) {
    if (reading_ == Reading::kDiscard) ::shutdown(socket_.native_handle(), SHUT_WR);
  } else {
    arm_write();
  }
}

void TcpConnection::arm_write() {
  write_armed_ = true;
  socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](const boost::system::error_code&) {
    self->write_armed_ = false;
    if (self->closed_) return;
    const bool held_back = self->acks_.size() > kMostAckBytes;
    self->send_acks();
    if (held_back && self->acks_.size() <= kMostAckBytes && self->reading_ == Reading::kFrames) self->process_frames();
  });
}

}  // namespace dyn::runtime
