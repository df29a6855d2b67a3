#include "app/bench_stream_sink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <ctime>

#include <algorithm>

#include "wire/call_home.h"
#include "wire/frame.h"

namespace dyn::app::bench {
namespace {

constexpr unsigned kMaxPendingStreams = 256;  // requests sent whose first token has not come
constexpr unsigned kStreamsPerLink = 512;     // requests of one request connection
constexpr size_t kScratchBytes = 262'144;
constexpr int kMaxEvents = 512;
constexpr int32_t kAbsurdLatencyUs = 60'000'000;

// What an epoll event is about: kind in the upper half, index in the lower.
enum class EventKind : uint32_t { kListener, kLink, kStream };
uint64_t tag(EventKind kind, size_t index) {
  return (static_cast<uint64_t>(kind) << 32) | index;
}

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

// Edge-triggered: a level-triggered epoll looks at every socket twice, and the sink must not cost what it measures.
Result<void> watch(int epoll, int fd, uint64_t data) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
  event.data.u64 = data;
  if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) return errno_error("epoll_ctl", errno);
  return {};
}

void set_no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

uint64_t own_cpu_ns() {
  timespec cpu{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  return static_cast<uint64_t>(cpu.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(cpu.tv_nsec);
}

}  // namespace

struct Sink::Stream {
  uint32_t tokens = 0;
  uint32_t last_token = 0;
  bool final = false;
  bool ended = false;
};

struct Sink::Connection {
  UniqueFd fd;
  int stream = -1;        // known from the handshake on
  bool accepted = false;  // the prologue has come
  Codec codec = Codec::kJson;
  Buffer carry;  // a message that has come in part
};

struct Sink::RequestLink {
  UniqueFd fd;
  const Target* target = nullptr;
  unsigned unacknowledged = 0;
  Buffer in;
};

Sink::Sink(SinkOptions options) : options_(std::move(options)), streams_(options_.streams), scratch_(kScratchBytes) {
  raise_descriptor_limit();
}

Sink::~Sink() = default;

Result<void> Sink::listen() {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return errno_error("epoll_create1", errno);
  listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener_) return errno_error("socket", errno);
  sockaddr_in address = loopback(0);
  socklen_t length = sizeof address;
  if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) return errno_error("bind", errno);
  if (::listen(listener_.get(), 4096) != 0) return errno_error("listen", errno);
  if (::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return errno_error("getsockname", errno);
  address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  return watch(epoll_.get(), listener_.get(), tag(EventKind::kListener, 0));
}

Result<void> Sink::connect_targets(const std::vector<Target>& targets) {
  targets_ = targets;
  const size_t wanted = (options_.streams + kStreamsPerLink - 1) / kStreamsPerLink;
  for (size_t i = 0; i < std::max(wanted, targets_.size()); ++i) {
    auto link = std::make_unique<RequestLink>();
    link->target = &targets_[i % targets_.size()];
    sockaddr_in address = loopback(link->target->port);
    if (::inet_pton(AF_INET, link->target->host.c_str(), &address.sin_addr) != 1)
      return invalid_argument("'" + link->target->host + "' is no IPv4 address");
    link->fd.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!link->fd || ::connect(link->fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
      return errno_error("connecting to the worker at " + link->target->host, errno);
    set_no_delay(link->fd.get());
    if (auto done = watch(epoll_.get(), link->fd.get(), tag(EventKind::kLink, i)); !done) return done;
    links_.push_back(std::move(link));
  }
  return {};
}

Result<void> Sink::send_requests() {
  while (!links_.empty() && requested_ < options_.streams && requested_ - live_ < kMaxPendingStreams) {
    RequestLink& link = *links_[requested_ % links_.size()];
    Call call;
    call.stream = requested_;
    call.model = options_.model;
    call.prompt_tokens = options_.prompt_tokens;
    call.max_tokens = options_.tokens_per_stream;
    call.call_home = address_;
    Buffer out;
    if (auto done = append_request(out, *link.target, call); !done) return done;
    if (auto done = write_all(link.fd.get(), as_text(out.view())); !done)
      return done.error().with_context("sending a request");
    ++link.unacknowledged;
    ++requested_;
  }
  return {};
}

Result<void> Sink::read_acks(RequestLink& link) {
  const ssize_t got = ::recv(link.fd.get(), scratch_.data(), scratch_.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return {};
  if (got < 0) return errno_error("reading acknowledgements", errno);
  if (got == 0) {
    if (ended_ == options_.streams) return {};
    return Error{Code::kUnavailable, "the worker closed a request connection"};
  }
  link.in.append(Bytes(scratch_.data(), static_cast<size_t>(got)));
  for (;;) {
    std::string_view text;
    const wire::FrameStep step = wire::decode_ack(link.in.view(), text);
    if (step.state == wire::FrameState::kError) return step.error.with_context("acknowledgement");
    if (step.state == wire::FrameState::kNeedMore) return {};
    if (!text.empty()) return Error{Code::kUnavailable, "the worker refused a request: " + std::string(text)};
    if (link.unacknowledged-- == 0) return internal_error("more acknowledgements than requests");
    link.in.consume(step.size);
  }
}

Result<void> Sink::accept_calls() {
  for (;;) {
    const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return {};
      return errno_error("accept", errno);
    }
    auto connection = std::make_unique<Connection>();
    connection->fd.reset(fd);
    set_no_delay(fd);
    if (auto done = watch(epoll_.get(), fd, tag(EventKind::kStream, connections_.size())); !done) return done;
    connections_.push_back(std::move(connection));
  }
}

// `closing`: the worker has shut its side; what is buffered comes first, then the end.
Result<void> Sink::read_stream(Connection& connection, bool closing) {
  ssize_t got = 0;
  do {
    if (!connection.fd) return {};
    got = ::recv(connection.fd.get(), scratch_.data(), scratch_.size(), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return {};
    if (got <= 0) return end_stream(connection);
    if (auto done = take_bytes(connection, Bytes(scratch_.data(), static_cast<size_t>(got))); !done) return done;
  } while (closing || static_cast<size_t>(got) == scratch_.size());  // less: the socket is empty
  return {};
}

Result<void> Sink::take_bytes(Connection& connection, Bytes bytes) {
  bytes_ += bytes.size();
  if (connection.carry.empty()) {
    const auto used = parse(connection, bytes);
    if (!used) return used.error();
    if (*used < bytes.size()) connection.carry.append(bytes.subspan(*used));
    return {};
  }
  connection.carry.append(bytes);
  const auto used = parse(connection, connection.carry.view());
  if (!used) return used.error();
  connection.carry.consume(*used);
  return {};
}

// Handles every complete message at the front; returns the bytes it used.
Result<size_t> Sink::parse(Connection& connection, Bytes bytes) {
  constexpr wire::TwoPartLimits kLimits{.max_header_bytes = 65'536, .max_message_bytes = 4'194'304};
  size_t used = 0;
  while (connection.fd && used < bytes.size()) {
    wire::TwoPart part;
    const wire::FrameStep step = wire::decode_two_part(bytes.subspan(used), kLimits, part);
    if (step.state == wire::FrameState::kNeedMore) break;
    if (step.state == wire::FrameState::kError) return step.error.with_context("response stream");
    used += step.size;
    auto done =
        part.data.empty() ? handle_header(connection, as_text(part.header)) : handle_item(connection, part.data);
    if (!done) return done.error();
  }
  return used;
}

Result<void> Sink::handle_header(Connection& connection, std::string_view header) {
  const wire::TwoPart part{.header = as_bytes(header), .data = {}};
  if (connection.stream < 0) {
    const auto handshake = wire::decode_handshake(part);
    if (!handshake) return handshake.error();
    const auto stream = stream_of_subject(handshake->subject);
    if (!stream) return stream.error();
    if (*stream >= options_.streams) return invalid_argument("handshake for stream " + std::to_string(*stream));
    connection.stream = static_cast<int>(*stream);
    connection.codec = links_.empty() ? options_.codec : links_[*stream % links_.size()]->target->codec;
    return {};
  }
  if (!connection.accepted) {
    const auto prologue = wire::decode_prologue(part);
    if (!prologue) return prologue.error();
    if (prologue->refused) return Error{Code::kUnavailable, "the worker refused a stream: " + prologue->error};
    connection.accepted = true;
    return {};
  }
  if (wire::decode_control(part) != wire::ControlWord::kSentinel)
    return invalid_argument("unexpected control frame " + std::string(header.substr(0, 100)));
  return end_stream(connection);
}

Result<void> Sink::handle_item(Connection& connection, Bytes item) {
  if (!connection.accepted) return invalid_argument("an item before the prologue");
  Stream& stream = streams_[static_cast<size_t>(connection.stream)];
  if (stream.final) return invalid_argument("an item after the final one");
  const ItemView view = scan_item(item, connection.codec);
  if (view.final) {
    stream.final = true;
    return {};
  }
  if (view.token_count == 0) {
    if (as_text(item).find("comment") != std::string_view::npos)
      return Error{Code::kUnavailable, "the worker sent an error item: " + std::string(as_text(item).substr(0, 500))};
    return {};  // the last chunk may hold only reason and usage
  }
  if (stream.tokens == 0) ++live_;
  if (options_.stamped) {
    if (stream.tokens > 0 && stamp_distance_us(view.first_token, stream.last_token) < 0) ++report_.misordered;
    if (recording_) {
      const int32_t latency_us = stamp_distance_us(stamp_now(), view.first_token);
      if (latency_us < 0 || latency_us > kAbsurdLatencyUs) return invalid_argument("token ids are no time stamps");
      report_.latency_us.insert(report_.latency_us.end(), view.token_count, static_cast<uint32_t>(latency_us));
    }
    if (report_.sample_item.empty() && view.token_count == 1 && recording_)
      report_.sample_item.assign(item.begin(), item.end());
  }
  stream.last_token = view.last_token;
  stream.tokens += view.token_count;
  tokens_ += view.token_count;
  return {};
}

// After the sentinel, or when the worker closed before it.
Result<void> Sink::end_stream(Connection& connection) {
  ::shutdown(connection.fd.get(), SHUT_WR);
  connection.fd.reset();
  if (connection.stream < 0) return {};
  Stream& stream = streams_[static_cast<size_t>(connection.stream)];
  if (stream.ended) return invalid_argument("two connections for one stream");
  stream.ended = true;
  ++ended_;
  if (!stream.final) ++report_.unfinished;
  if (phase_ < Phase::kTail) report_.window_cut_short = true;
  return {};
}

Result<void> Sink::open_window() {
  usage_before_ = {};
  if (options_.pid > 0) {
    auto usage = read_process_usage(options_.pid);
    if (!usage) return usage.error();
    usage_before_ = std::move(*usage);
  }
  sink_cpu_ns_ = own_cpu_ns();
  machine_cpu_ns_ = read_machine_cpu_ns();
  window_begin_ = Clock::now();
  report_.tokens = tokens_;
  report_.bytes = bytes_;
  recording_ = true;
  return {};
}

Result<void> Sink::close_window() {
  recording_ = false;
  if (options_.pid > 0) {
    auto usage = read_process_usage(options_.pid);
    if (!usage) return usage.error();
    report_.usage = usage_between(usage_before_, *usage);
  }
  report_.window_s = std::chrono::duration<double>(Clock::now() - window_begin_).count();
  report_.sink_cpu_us = static_cast<double>(own_cpu_ns() - sink_cpu_ns_) / 1e3;
  const double others_us = static_cast<double>(read_machine_cpu_ns() - machine_cpu_ns_) / 1e3 - report_.sink_cpu_us -
                           static_cast<double>(report_.usage.cpu_ns) / 1e3;
  report_.others_cpus = std::max(0.0, others_us / 1e6 / report_.window_s);
  report_.tokens = tokens_ - report_.tokens;
  report_.bytes = bytes_ - report_.bytes;
  return {};
}

// `idle`: nothing arrived for as long as wait_ms() said.
Result<void> Sink::advance(Clock::time_point now, bool idle) {
  const auto in_phase = now - phase_since_;
  const auto enter = [&](Phase phase) {
    phase_ = phase;
    phase_since_ = now;
  };
  // A sender without pauses is cut anywhere.
  const bool cut_here = idle || options_.step < std::chrono::milliseconds(4) || in_phase > std::chrono::seconds(1);
  switch (phase_) {
    case Phase::kRamp:
      if (live_ == options_.streams) {
        report_.ramp_s = std::chrono::duration<double>(in_phase).count();
        enter(Phase::kSettle);
      } else if (in_phase > options_.ramp_limit) {
        return Error{Code::kDeadline, describe_stall()};
      } else {
        return send_requests();
      }
      break;
    case Phase::kSettle:
      if (in_phase >= options_.settle) enter(Phase::kOpening);
      break;
    case Phase::kOpening:
      if (cut_here) {
        if (auto done = open_window(); !done) return done;
        enter(Phase::kWindow);
      }
      break;
    case Phase::kWindow:
      if (in_phase >= options_.window) enter(Phase::kClosing);
      break;
    case Phase::kClosing:
      if (cut_here) {
        if (auto done = close_window(); !done) return done;
        enter(Phase::kTail);
      }
      break;
    case Phase::kTail:
      break;
  }
  return {};
}

int Sink::wait_ms(Clock::time_point now) const {
  using std::chrono::milliseconds;
  const auto left = [&](milliseconds limit) {
    const auto rest = std::chrono::ceil<milliseconds>(limit - (now - phase_since_)).count();
    return static_cast<int>(std::clamp<int64_t>(rest, 0, 1000));
  };
  switch (phase_) {
    case Phase::kSettle:
      return left(options_.settle);
    case Phase::kWindow:
      return left(options_.window);
    case Phase::kOpening:
    case Phase::kClosing:
      return static_cast<int>(std::max<int64_t>(1, std::chrono::floor<milliseconds>(options_.step).count() / 8));
    case Phase::kRamp:
    case Phase::kTail:
      break;
  }
  return 100;
}

std::string Sink::describe_stall() const {
  return "only " + std::to_string(live_) + " of " + std::to_string(options_.streams) +
         " streams have a first token after " + std::to_string(options_.ramp_limit.count()) + " ms (" +
         std::to_string(requested_) + " requests sent, " + std::to_string(connections_.size()) + " calls home)";
}

Result<SinkReport> Sink::run(const std::vector<Target>& targets) {
  if (!targets.empty()) {
    if (auto done = connect_targets(targets); !done) return done.error();
  }
  report_.streams = options_.streams;
  phase_since_ = Clock::now();
  std::vector<epoll_event> events(kMaxEvents);
  auto now = phase_since_;
  while (ended_ < options_.streams || phase_ != Phase::kTail) {
    if (phase_ == Phase::kTail && now - phase_since_ > options_.tail_limit) break;
    const int count = ::epoll_wait(epoll_.get(), events.data(), kMaxEvents, wait_ms(now));
    if (count < 0 && errno != EINTR) return errno_error("epoll_wait", errno);
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      const uint64_t data = event.data.u64;
      const size_t index = data & 0xFFFFFFFF;
      Result<void> done;
      switch (static_cast<EventKind>(data >> 32)) {
        case EventKind::kListener:
          done = accept_calls();
          break;
        case EventKind::kLink:
          done = read_acks(*links_[index]);
          break;
        case EventKind::kStream:
          done = read_stream(*connections_[index], (event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
          break;
      }
      if (!done) return done.error();
    }
    now = Clock::now();
    if (auto done = advance(now, count == 0); !done) return done.error();
  }
  for (const Stream& stream : streams_) {
    if (!stream.ended) ++report_.unfinished;
    report_.total_tokens += stream.tokens;
    if (stream.tokens < options_.tokens_per_stream) report_.lost_tokens += options_.tokens_per_stream - stream.tokens;
    if (stream.tokens > options_.tokens_per_stream) report_.extra_tokens += stream.tokens - options_.tokens_per_stream;
  }
  std::ranges::sort(report_.latency_us);
  return std::move(report_);
}

}  // namespace dyn::app::bench
