// TcpConnection: one caller's request connection. Reads frames, acknowledges each at once and in order, hands them on.
//
//   auto connection = std::make_shared<TcpConnection>(loop, std::move(socket), dispatcher, limits, on_closed);
//   connection->start();
//
// Memory: an idle connection keeps at most kKeptBytes; the buffer grows with what has arrived, never with what a length
// field claims, up to the frame limit (doubling, so at most twice that). Ownership: its pending operations keep it
// alive; close() ends them. Thread rules: its loop only.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>

#include "base/buffer.h"
#include "net/event_loop.h"
#include "runtime/request_plane/dispatcher_internal.h"
#include "wire/frame.h"

namespace dyn::runtime {

class TcpConnection final : public std::enable_shared_from_this<TcpConnection> {
 public:
  using OnClosed = std::function<void(TcpConnection&)>;

  TcpConnection(net::EventLoop& loop, boost::asio::ip::tcp::socket socket, std::shared_ptr<Dispatcher> dispatcher,
                const wire::RequestFrameLimits& limits, OnClosed on_closed);

  void start();
  void close();

 private:
  enum class Reading : uint8_t {
    kFrames,
    kDiscard,  // after a bad frame: until the caller has read the acknowledgement and closed
  };

  void arm_read();
  void on_readable();
  bool receive();
  void process_frames();
  void take_frame(const wire::RequestFrame& frame);
  void on_bad_frame(const Error& error);
  void send_acks();
  void arm_write();

  net::EventLoop& loop_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer discard_timer_;
  const std::shared_ptr<Dispatcher> dispatcher_;
  const wire::RequestFrameLimits limits_;
  OnClosed on_closed_;

  Buffer in_;
  Buffer acks_;
  size_t missing_bytes_;  // of the frame at the front of in_, as far as is known
  Reading reading_ = Reading::kFrames;
  bool write_armed_ = false;
  bool closed_ = false;
};

}  // namespace dyn::runtime
