// The caller's side of the request and response planes, for tests and benchmarks: sends request frames, listens for
// call-homes, and checks every byte a worker sends against the protocol.
//
//   TestFrontend frontend;                                       // listens on 127.0.0.1
//   TcpCaller caller(transport.address);                         // "127.0.0.1:40123/694d9b7a/generate"
//   const TestCall call = frontend.make_call({.body = "{}"});
//   EXPECT_EQ(caller.call(call), "");                            // the acknowledgement
//   CallHome home = frontend.accept(call.subject);
//   CallHome::Outcome outcome = home.read_to_end();              // items, final frame, sentinel, violations
//   home.send(wire::ControlWord::kKill);
//
// StrictStreamReader has no socket: a benchmark may feed thousands of them from one epoll loop. Everything that waits
// has a limit and throws TestTimeout beyond it; violations of the protocol are values. Ownership: plain values that own
// their sockets. Thread rules: one thread at a time each.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/posix.h"
#include "wire/call_home.h"
#include "wire/control_message.h"

namespace dyn::runtime::testing {

inline constexpr std::chrono::milliseconds kTestTimeout{20'000};

struct TestTimeout : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Takes a response connection's bytes apart and holds them against the protocol: handshake, prologue, items, exactly
// one final frame, exactly one sentinel, nothing behind it; header-only and data-only frames where they belong,
// checksum 0.
class StrictStreamReader {
 public:
  enum class Event : uint8_t { kNeedMore, kHandshake, kAccepted, kRefused, kItem, kFinal, kSentinel, kViolation };

  Buffer& input() { return in_; }  // append what has arrived
  Event next();                    // after kViolation always kViolation

  // Of the latest event: the item's bytes (until the next call), the subject, the refusal, or what is wrong.
  [[nodiscard]] Bytes item() const { return item_; }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  enum class Expect : uint8_t { kHandshake, kPrologue, kItemOrFinal, kSentinel, kNothing };

  Event on_frame(Bytes header, Bytes data);
  Event violation(std::string what);

  Buffer in_;
  Expect expect_ = Expect::kHandshake;
  size_t to_consume_ = 0;
  Bytes item_;
  std::string text_;
  bool violated_ = false;
};

struct CallOptions {
  std::string id;                                                       // empty: a random UUID
  std::string body = "{}";                                              // the request's data
  std::optional<wire::PayloadCodec> codec = wire::PayloadCodec::kJson;  // none: a caller older than 1.3
  std::string request_type = "single_in";
  std::string transport = "tcp_server";
  std::string stream_type = "response";
  std::string context;  // empty: the id, as it must be
  std::string host;     // empty: where the frontend listens
  uint16_t port = 0;    // 0: where the frontend listens
  std::map<std::string, std::string> headers = {{"x-unknown", "value"}};
};

struct TestCall {
  std::string id;
  std::string subject;
  std::map<std::string, std::string> headers;
  std::string payload;  // the two-part message
};

// One accepted response connection.
class CallHome {
 public:
  enum class End : uint8_t { kOpen, kEof, kReset };
  struct Outcome {
    std::vector<std::string> items;
    bool accepted = false;
    std::optional<std::string> refused;
    bool final = false;
    bool sentinel = false;
    End end = End::kOpen;
    std::string violation;  // empty: none

    // Prologue, items, final frame, sentinel.
    [[nodiscard]] bool complete() const { return accepted && final && sentinel && violation.empty(); }
  };

  // Takes a connection whose handshake has been read.
  CallHome(UniqueFd socket, StrictStreamReader reader, std::string subject);

  [[nodiscard]] const std::string& subject() const { return subject_; }

  // The next event; nothing when the connection ended or (kNeedMore) nothing came in time.
  StrictStreamReader::Event next(std::chrono::milliseconds timeout = kTestTimeout);
  [[nodiscard]] std::string item() const { return std::string(as_text(reader_.item())); }
  [[nodiscard]] const std::string& text() const { return reader_.text(); }
  [[nodiscard]] End end() const { return end_; }

  // Reads until the sentinel, the end of the connection, or a violation.
  Outcome read_to_sentinel(std::chrono::milliseconds timeout = kTestTimeout);
  // As official callers: after the sentinel closes its own direction, then expects the worker to close too.
  Outcome read_to_end(std::chrono::milliseconds timeout = kTestTimeout);
  // True when the worker closes (or resets) without sending another byte.
  bool closes_silently(std::chrono::milliseconds timeout = kTestTimeout);

  void send(wire::ControlWord word);
  void send_bytes(std::string_view bytes);
  void shutdown_write();
  void close();
  void reset();  // RST instead of FIN

 private:
  bool receive(std::chrono::milliseconds timeout);
  Outcome read(bool to_end, std::chrono::milliseconds timeout);

  UniqueFd socket_;
  StrictStreamReader reader_;
  std::string subject_;
  End end_ = End::kOpen;
};

class TestFrontend {
 public:
  explicit TestFrontend(std::string host = "127.0.0.1");

  [[nodiscard]] const std::string& host() const { return host_; }
  [[nodiscard]] uint16_t port() const { return port_; }
  [[nodiscard]] int listener() const { return listener_.get(); }

  [[nodiscard]] TestCall make_call(const CallOptions& options = {}) const;

  // The response connection of `subject`, its handshake read. Others that call meanwhile are kept for their turn.
  CallHome accept(const std::string& subject, std::chrono::milliseconds timeout = kTestTimeout);
  // True when nobody called (for any subject that was not accepted yet) within the time.
  bool nobody_calls(std::chrono::milliseconds time);

 private:
  std::optional<CallHome> accept_any(std::chrono::milliseconds timeout);

  std::string host_;
  uint16_t port_ = 0;
  UniqueFd listener_;
  std::map<std::string, CallHome> waiting_;
};

// One request connection.
class TcpCaller {
 public:
  // "ip:port/path", "[ip]:port/path": what an instance record has.
  explicit TcpCaller(const std::string& transport_address);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string frame(const TestCall& call) const;

  std::string call(const TestCall& call);  // sends and reads the acknowledgement
  void send(std::string_view bytes);
  // Sends as much as the worker takes; false when it has closed.
  bool try_send(std::string_view bytes);
  // Nothing when the worker closed.
  std::optional<std::string> read_ack(std::chrono::milliseconds timeout = kTestTimeout);
  bool closed_by_peer(std::chrono::milliseconds timeout = kTestTimeout);

  // Another path for the calls that follow.
  void set_path(std::string path) { path_ = std::move(path); }

 private:
  std::string path_;
  UniqueFd socket_;
  Buffer in_;
};

}  // namespace dyn::runtime::testing
