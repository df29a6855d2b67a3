#include "runtime/request_plane/test_frontend.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "base/ids.h"
#include "wire/frame.h"
#include "wire/two_part.h"

namespace dyn::runtime::testing {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::string_view kJsonFinal = R"({"complete_final":true})";
constexpr std::string_view kMsgpackFinal =
    "\x81\xae"
    "complete_final\xc3";
constexpr size_t kPrefix = wire::kTwoPartPrefixBytes;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + errno_text(errno));
}

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

SocketAddress socket_address(const std::string& host, uint16_t port) {
  SocketAddress address;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  if (::inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address.length = sizeof *v4;
  } else if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    address.length = sizeof *v6;
  } else {
    throw std::runtime_error("no IP literal: " + host);
  }
  return address;
}

UniqueFd make_socket(const SocketAddress& address) {
  UniqueFd socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) fail("socket");
  return socket;
}

milliseconds left(Clock::time_point end) {
  return std::max(milliseconds(0), std::chrono::duration_cast<milliseconds>(end - Clock::now()));
}

bool wait_for(int fd, short events, milliseconds timeout) {
  pollfd entry{fd, events, 0};
  for (;;) {
    const int count = ::poll(&entry, 1, static_cast<int>(timeout.count()));
    if (count > 0) return true;
    if (count == 0) return false;
    if (errno != EINTR) fail("poll");
  }
}

// Bytes read into `in`; 0 at the end, -1 for a reset.
ssize_t receive_into(int fd, Buffer& in) {
  constexpr size_t kChunk = 64 * 1024;
  for (;;) {
    const ssize_t count = ::recv(fd, in.extend(kChunk), kChunk, 0);
    const int error = errno;
    in.shrink(kChunk - static_cast<size_t>(std::max<ssize_t>(count, 0)));
    if (count >= 0) return count;
    if (error == EINTR) continue;
    if (error == ECONNRESET || error == EPIPE) return -1;
    errno = error;
    fail("recv");
  }
}

// False when the peer has closed.
bool send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno == ECONNRESET || errno == EPIPE) return false;
      fail("send");
    }
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

}  // namespace

// ---- StrictStreamReader. Written without the product's decoders: a mistake there must not hide here.

StrictStreamReader::Event StrictStreamReader::violation(std::string what) {
  violated_ = true;
  text_ = std::move(what);
  return Event::kViolation;
}

StrictStreamReader::Event StrictStreamReader::next() {
  if (violated_) return Event::kViolation;
  in_.consume(std::exchange(to_consume_, 0));
  if (in_.size() < kPrefix) return Event::kNeedMore;
  const auto header_bytes = load_be<uint64_t>(in_.data());
  const auto data_bytes = load_be<uint64_t>(in_.data() + 8);
  if (load_be<uint64_t>(in_.data() + 16) != 0) return violation("a checksum other than 0");
  constexpr uint64_t kMost = uint64_t{1} << 32;
  if (header_bytes > kMost || data_bytes > kMost) return violation("a frame of more than 4 GiB");
  if ((header_bytes == 0) == (data_bytes == 0)) return violation("a frame with both parts or none");
  if (in_.size() - kPrefix < header_bytes + data_bytes) return Event::kNeedMore;
  to_consume_ = kPrefix + header_bytes + data_bytes;
  return on_frame({in_.data() + kPrefix, header_bytes}, {in_.data() + kPrefix + header_bytes, data_bytes});
}

StrictStreamReader::Event StrictStreamReader::on_frame(Bytes header, Bytes data) {
  const std::string_view control = as_text(header);
  switch (expect_) {
    case Expect::kHandshake: {
      constexpr std::string_view kFront = R"({"subject":")";
      constexpr std::string_view kBack = R"(","stream_type":"response"})";
      if (!control.starts_with(kFront) || !control.ends_with(kBack))
        return violation("no handshake but " + std::string(control));
      text_ = control.substr(kFront.size(), control.size() - kFront.size() - kBack.size());
      expect_ = Expect::kPrologue;
      return Event::kHandshake;
    }
    case Expect::kPrologue: {
      if (control == R"({"error":null})") {
        expect_ = Expect::kItemOrFinal;
        return Event::kAccepted;
      }
      constexpr std::string_view kFront = R"({"error":")";
      constexpr std::string_view kBack = R"("})";
      if (!control.starts_with(kFront) || !control.ends_with(kBack))
        return violation("no prologue but " + std::string(control));
      text_ = control.substr(kFront.size(), control.size() - kFront.size() - kBack.size());
      expect_ = Expect::kSentinel;
      return Event::kRefused;
    }
    case Expect::kItemOrFinal:
      if (data.empty()) return violation("a control frame among the items: " + std::string(control));
      if (as_text(data) == kJsonFinal || as_text(data) == kMsgpackFinal) {
        expect_ = Expect::kSentinel;
        return Event::kFinal;
      }
      item_ = data;
      return Event::kItem;
    case Expect::kSentinel:
      if (control != R"("sentinel")") return violation("something else instead of the sentinel");
      expect_ = Expect::kNothing;
      return Event::kSentinel;
    case Expect::kNothing:
      break;
  }
  return violation("a frame behind the sentinel");
}

// ---- CallHome

CallHome::CallHome(UniqueFd socket, StrictStreamReader reader, std::string subject)
    : socket_(std::move(socket)), reader_(std::move(reader)), subject_(std::move(subject)) {}

bool CallHome::receive(milliseconds timeout) {
  if (end_ != End::kOpen || !wait_for(socket_.get(), POLLIN, timeout)) return false;
  const ssize_t count = receive_into(socket_.get(), reader_.input());
  if (count == 0) end_ = End::kEof;
  if (count < 0) end_ = End::kReset;
  return count > 0;
}

StrictStreamReader::Event CallHome::next(milliseconds timeout) {
  const auto end = Clock::now() + timeout;
  for (;;) {
    const auto event = reader_.next();
    if (event != StrictStreamReader::Event::kNeedMore || !receive(left(end))) return event;
  }
}

CallHome::Outcome CallHome::read(bool to_end, milliseconds timeout) {
  using Event = StrictStreamReader::Event;
  const auto deadline = Clock::now() + timeout;
  Outcome outcome;
  for (;;) {
    const Event event = next(left(deadline));
    switch (event) {
      case Event::kHandshake:
        break;
      case Event::kAccepted:
        outcome.accepted = true;
        break;
      case Event::kRefused:
        outcome.refused = text();
        break;
      case Event::kItem:
        outcome.items.push_back(item());
        break;
      case Event::kFinal:
        outcome.final = true;
        break;
      case Event::kSentinel:
        outcome.sentinel = true;
        if (!to_end) return outcome;
        shutdown_write();
        break;
      case Event::kViolation:
        outcome.violation = text();
        return outcome;
      case Event::kNeedMore:
        outcome.end = end_;
        if (end_ == End::kOpen) throw TestTimeout("the response stream " + subject_ + " does not end");
        return outcome;
    }
  }
}

CallHome::Outcome CallHome::read_to_sentinel(milliseconds timeout) {
  return read(false, timeout);
}
CallHome::Outcome CallHome::read_to_end(milliseconds timeout) {
  return read(true, timeout);
}

bool CallHome::closes_silently(milliseconds timeout) {
  return next(timeout) == StrictStreamReader::Event::kNeedMore && end_ != End::kOpen;
}

void CallHome::send(wire::ControlWord word) {
  Buffer out;
  wire::encode_control(out, word);
  send_bytes(as_text(out.view()));
}

void CallHome::send_bytes(std::string_view bytes) {
  send_all(socket_.get(), bytes);
}
void CallHome::shutdown_write() {
  ::shutdown(socket_.get(), SHUT_WR);
}
void CallHome::close() {
  socket_.reset();
}

void CallHome::reset() {
  const linger hard{1, 0};
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  socket_.reset();
}

// ---- TestFrontend

TestFrontend::TestFrontend(std::string host) : host_(std::move(host)) {
  SocketAddress address = socket_address(host_, 0);
  listener_ = make_socket(address);
  if (::bind(listener_.get(), address.get(), address.length) != 0) fail("bind " + host_);
  if (::listen(listener_.get(), 4096) != 0) fail("listen");
  if (::getsockname(listener_.get(), address.get(), &address.length) != 0) fail("getsockname");
  // The port lies at the same place in both address forms.
  port_ = ntohs(reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port);
}

TestCall TestFrontend::make_call(const CallOptions& options) const {
  TestCall call;
  call.id = options.id.empty() ? random_uuid() : options.id;
  call.subject = random_uuid();
  call.headers = options.headers;
  wire::ControlMessage control;
  control.id = call.id;
  control.request_type = options.request_type;
  control.response_type = "many_out";
  control.names_codec = options.codec.has_value();
  control.payload_codec = options.codec.value_or(wire::PayloadCodec::kJson);
  control.connection = {.transport = options.transport,
                        .host = options.host.empty() ? host_ : options.host,
                        .port = options.port == 0 ? port_ : options.port,
                        .subject = call.subject,
                        .context = options.context.empty() ? call.id : options.context,
                        .stream_type = options.stream_type};
  Buffer header;
  wire::encode_control_message(header, control);
  Buffer payload;
  wire::encode_two_part(payload, header.view(), as_bytes(options.body));
  call.payload = as_text(payload.view());
  return call;
}

std::optional<CallHome> TestFrontend::accept_any(milliseconds timeout) {
  const auto end = Clock::now() + timeout;
  if (!wait_for(listener_.get(), POLLIN, timeout)) return std::nullopt;
  UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket) fail("accept");
  const int one = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  StrictStreamReader reader;
  for (;;) {
    const auto event = reader.next();
    if (event == StrictStreamReader::Event::kHandshake) {
      std::string subject = reader.text();
      return CallHome(std::move(socket), std::move(reader), std::move(subject));
    }
    if (event == StrictStreamReader::Event::kViolation) throw std::runtime_error("call-home: " + reader.text());
    if (!wait_for(socket.get(), POLLIN, left(end))) throw TestTimeout("a worker called home and sends no handshake");
    // A worker may have cancelled what it has dialled for.
    if (receive_into(socket.get(), reader.input()) <= 0) return CallHome(std::move(socket), std::move(reader), "");
  }
}

CallHome TestFrontend::accept(const std::string& subject, milliseconds timeout) {
  const auto end = Clock::now() + timeout;
  for (;;) {
    if (auto known = waiting_.extract(subject)) return std::move(known.mapped());
    auto home = accept_any(left(end));
    if (!home) throw TestTimeout("no worker calls home for " + subject);
    waiting_.insert_or_assign(home->subject(), std::move(*home));
  }
}

bool TestFrontend::nobody_calls(milliseconds time) {
  return waiting_.empty() && !accept_any(time).has_value();
}

// ---- TcpCaller

TcpCaller::TcpCaller(const std::string& transport_address) {
  const size_t slash = transport_address.find('/');
  const size_t colon = transport_address.rfind(':', slash);
  if (slash == std::string::npos || colon == std::string::npos)
    throw std::runtime_error("no address: " + transport_address);
  std::string host = transport_address.substr(0, colon);
  if (host.starts_with('[')) host = host.substr(1, host.size() - 2);
  path_ = transport_address.substr(slash + 1);
  SocketAddress address =
      socket_address(host, static_cast<uint16_t>(std::stoul(transport_address.substr(colon + 1, slash - colon - 1))));
  socket_ = make_socket(address);
  if (::connect(socket_.get(), address.get(), address.length) != 0) fail("connect " + transport_address);
  const int one = 1;
  ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

std::string TcpCaller::frame(const TestCall& call) const {
  Buffer out;
  auto encoded = wire::encode_request_frame(out, path_, call.headers, as_bytes(call.payload));
  if (!encoded) throw std::runtime_error(encoded.error().message);
  return std::string(as_text(out.view()));
}

std::string TcpCaller::call(const TestCall& call) {
  send(frame(call));
  auto ack = read_ack();
  if (!ack) throw std::runtime_error("the worker closed the request connection");
  return *ack;
}

void TcpCaller::send(std::string_view bytes) {
  if (!try_send(bytes)) throw std::runtime_error("the worker closed the request connection");
}

bool TcpCaller::try_send(std::string_view bytes) {
  return send_all(socket_.get(), bytes);
}

std::optional<std::string> TcpCaller::read_ack(milliseconds timeout) {
  const auto end = Clock::now() + timeout;
  for (;;) {
    std::string_view text;
    const wire::FrameStep step = wire::decode_ack(in_.view(), text);
    if (step.state == wire::FrameState::kError) throw std::runtime_error(step.error.message);
    if (step.state == wire::FrameState::kFrame) {
      std::string ack(text);
      in_.consume(step.size);
      return ack;
    }
    if (!wait_for(socket_.get(), POLLIN, left(end))) throw TestTimeout("no acknowledgement");
    if (receive_into(socket_.get(), in_) <= 0) return std::nullopt;
  }
}

bool TcpCaller::closed_by_peer(milliseconds timeout) {
  return in_.empty() && wait_for(socket_.get(), POLLIN, timeout) && receive_into(socket_.get(), in_) <= 0;
}

}  // namespace dyn::runtime::testing
