// ResponseStream: the worker's side of one response: a connection dialled back to the caller ("call home"), on which
// prologue, items, final frame and sentinel are written and stop/kill are read.
//
//   stream->set_observer(this);
//   Buffer& out = stream->begin_item();
//   encode_chunk(out, ...);                     // the whole item, {"data":...,"complete_final":false}
//   stream->end_item();
//   ...
//   stream->finish();                           // complete-final, sentinel, close after the caller's FIN
//
// Writes never block: what the socket does not take is kept in the stream's buffer, up to `max_buffered_bytes`. Beyond
// it the stream reports kTooSlow once; its owner ends it, with an error item if it likes (there is room for its last
// words; who goes on writing is cut off). Items may be written before the connection stands.
// Ownership: shared by its handler and the plane. The last copy of the handler's pointer to go before the stream has an
// end abandons it. Thread rules: confined to its net loop (`loop()`); the pointer may be dropped on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/buffer.h"
#include "base/result.h"

namespace dyn::net {
class EventLoop;
}

namespace dyn::runtime {

// Why a stream wants no more items.
enum class CancelKind : uint8_t {
  kStop,     // the caller asked to end soon: send what there is, then finish()
  kKill,     // the caller no longer reads: write nothing
  kGone,     // connection refused, reset or closed by the peer: like kKill
  kTooSlow,  // more than max_buffered_bytes wait for a slow reader
};
std::string_view to_string(CancelKind kind);

class ResponseStream {
 public:
  // Called on the stream's loop, at most once for each kind; never from inside a call into the stream, and no more once
  // the owner has ended it (finish, refuse, abandon).
  class Observer {
   public:
    virtual ~Observer() = default;
    virtual void on_cancel(CancelKind kind) = 0;
  };

  virtual ~ResponseStream() = default;

  [[nodiscard]] virtual net::EventLoop& loop() const = 0;

  // Must be reset (nullptr) before the observer dies. A cancel that happened earlier is reported soon after this call.
  virtual void set_observer(Observer* observer) = 0;

  // Sends the prologue {"error":null}: the request is accepted. Implied by the first begin_item().
  virtual void accept() = 0;
  // Sends the prologue {"error":text} and ends the stream. Only for trouble of this worker, which newer callers answer
  // by trying another one; what is wrong with the request itself is an error item.
  virtual void refuse(std::string_view text) = 0;

  // Appends one item frame. Between the two calls the buffer belongs to the caller, who appends the item's bytes.
  // end_item() leaves the frame in the buffer; flush() sends. Both are no-ops on a cancelled stream.
  virtual Buffer& begin_item() = 0;
  virtual void end_item() = 0;
  virtual void flush() = 0;

  // Complete-final frame and sentinel, flushed; then waits for the caller's FIN (bounded) and closes by itself.
  virtual void finish() = 0;
  // Closes without the final frame, after what is buffered: the caller takes the worker for dead and migrates.
  virtual void abandon() = 0;

  // Nothing that is written reaches the caller any more (after kKill and kGone; not after kStop and kTooSlow).
  [[nodiscard]] virtual bool cancelled() const = 0;
  [[nodiscard]] virtual size_t buffered_bytes() const = 0;
};

}  // namespace dyn::runtime
