// CallHomeStream: the response stream of a request whose caller listens on TCP, which is every caller of the TCP and
// the NATS request plane. One socket of its own, dialled back to the caller.
//
//   auto stream = CallHomeStream::create(loop, options, control, std::move(account));
//   stream->dial();                                    // items may be written from now on
//   handler(request, CallHomeStream::handle(stream));  // the owner's end
//
// Life: connecting -> open -> closed. The owner ends it (finish, refuse, abandon), or the caller does (kill, FIN, RST),
// whichever comes first.
//
// Writing: bytes collect in one buffer and leave by one non-blocking send(2) per flush(), straight from the caller of
// flush(); only when the socket is full is the loop asked to wait. In steady state nothing is allocated.
// Ownership: its pending operations keep it alive. Thread rules: everything on its loop, except handle()'s release.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "base/buffer.h"
#include "net/event_loop.h"
#include "runtime/request_plane/call_home.h"
#include "runtime/request_plane/response_stream.h"
#include "wire/control_message.h"
#include "wire/two_part.h"

namespace dyn::runtime {

enum class StreamFailure : uint8_t {
  kNone,
  kConnect,  // the caller could not be dialled
  kRefused,  // the handler refused the request
  kWrite,    // the connection broke while items were written
  kFinal,    // the connection broke before the final frame had left
};

struct StreamSummary {
  uint64_t item_bytes = 0;   // of the items, without framing
  uint64_t total_bytes = 0;  // sent on the socket
  bool cancelled = false;    // the caller went away or asked to stop before the owner had ended
  StreamFailure failure = StreamFailure::kNone;
};

// Who keeps the books of a stream. Called on its loop, each once (the first one perhaps never) and in this order.
class StreamAccount {
 public:
  virtual ~StreamAccount() = default;
  virtual void on_first_item() = 0;
  virtual void on_released() = 0;                               // nothing the owner still does can reach the caller
  virtual void on_delivered(const StreamSummary& summary) = 0;  // every byte is sent, or given up
  virtual void on_closed() = 0;
};

class CallHomeStream final : public ResponseStream, public std::enable_shared_from_this<CallHomeStream> {
 public:
  static std::shared_ptr<CallHomeStream> create(net::EventLoop& loop, const CallHomeOptions& options,
                                                const wire::ControlMessage& control,
                                                std::shared_ptr<StreamAccount> account);
  // What the owner holds. When its last copy goes while the stream has no end, the stream is abandoned: a handler that
  // forgets a request must not leave the caller waiting.
  static std::shared_ptr<ResponseStream> handle(const std::shared_ptr<CallHomeStream>& stream);

  CallHomeStream(net::EventLoop& loop, const CallHomeOptions& options, const wire::ControlMessage& control,
                 std::shared_ptr<StreamAccount> account);
  ~CallHomeStream() override;

  void dial();
  // Closes at once; the owner is told kGone if it has not ended the stream.
  void cut();

  [[nodiscard]] net::EventLoop& loop() const override { return loop_; }
  void set_observer(Observer* observer) override;
  void accept() override;
  void refuse(std::string_view text) override;
  Buffer& begin_item() override;
  void end_item() override;
  void flush() override;
  void finish() override;
  void abandon() override;
  [[nodiscard]] bool cancelled() const override { return state_ == State::kClosed && !ended_; }
  [[nodiscard]] size_t buffered_bytes() const override { return out_.size(); }

 private:
  enum class State : uint8_t { kConnecting, kOpen, kClosed };

  [[nodiscard]] bool writable() const { return state_ != State::kClosed && !ended_; }

  void connect();
  void on_connect(const boost::system::error_code& error);
  void on_connect_timeout();
  void arm_read();
  void on_readable(const boost::system::error_code& error);
  void on_control_bytes(Bytes bytes);
  void on_peer_closed();
  void append_prologue();
  void drop_open_item();
  void arm_write();
  void on_too_much_buffered();
  void end(bool half_close);
  void on_sent_all();
  void on_stalled();
  // Nothing more can reach the caller: closes, tells the owner and the account.
  void fail(CancelKind kind, StreamFailure failure);
  void close();
  void arm_timer(std::chrono::milliseconds after, void (CallHomeStream::*action)());
  void disarm_timer();
  void report(CancelKind kind);
  void post_reports();
  void deliver_reports();
  void on_handle_released();
  void settle_released();
  void settle_delivered();

  net::EventLoop& loop_;
  const CallHomeOptions options_;
  const std::string request_id_;  // for the log
  const wire::ConnectionInfo peer_;
  const wire::PayloadCodec codec_;

  // Hot: touched for every item.
  Buffer out_;
  size_t item_mark_ = 0;
  int fd_ = -1;
  State state_ = State::kConnecting;
  bool prologue_sent_ = false;
  bool first_item_seen_ = false;
  bool item_open_ = false;
  bool write_armed_ = false;
  bool ended_ = false;       // by the owner
  bool half_close_ = false;  // after the last byte: the stream has no final frame
  bool too_slow_ = false;
  bool released_ = false;
  bool delivered_ = false;
  size_t cut_off_bytes_ = 0;  // once too_slow_ and an item later
  StreamSummary summary_;

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  uint64_t timer_generation_ = 0;
  std::chrono::steady_clock::time_point port_retry_until_;
  Buffer in_;  // an incomplete control frame

  Observer* observer_ = nullptr;
  uint8_t reported_ = 0;  // sets of CancelKind: each is reported once
  uint8_t pending_ = 0;
  bool reports_posted_ = false;
  std::shared_ptr<StreamAccount> account_;
};

}  // namespace dyn::runtime
