#include "app/bench_stream_senders.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <ctime>

#include <charconv>
#include <cstdio>
#include <exception>
#include <vector>

#include "base/buffer.h"
#include "llm/output.h"
#include "wire/call_home.h"
#include "wire/two_part.h"

namespace dyn::app::bench {
namespace {

int poll_in(int fd, std::chrono::milliseconds limit) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, static_cast<int>(limit.count()));
}

Result<UniqueFd> connect_loopback(uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  if (!fd || ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return errno_error("connecting to the sink", errno);
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

uint16_t port_of(const std::string& address) {
  uint16_t port = 0;
  const size_t colon = address.rfind(':');
  if (colon != std::string::npos) std::from_chars(address.data() + colon + 1, address.data() + address.size(), port);
  return port;
}

int fail(const char* who, const Error& error) {
  std::fprintf(stderr, "%s: %s\n", who, error.message.c_str());
  return 1;
}

}  // namespace

void pin_to_side(Side side) {
  static const cpu_set_t all = [] {  // before the first pinning
    cpu_set_t set;
    CPU_ZERO(&set);
    ::sched_getaffinity(0, sizeof set, &set);
    return set;
  }();
  if (CPU_COUNT(&all) < 2) return;
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(last, &all)) --last;
  cpu_set_t chosen = all;
  if (side == Side::kSender) {
    CPU_CLR(last, &chosen);
  } else {
    CPU_ZERO(&chosen);
    CPU_SET(last, &chosen);
  }
  ::sched_setaffinity(0, sizeof chosen, &chosen);
}

Result<Child> Child::start(const std::function<int(int control)>& body) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return errno_error("socketpair", errno);
  UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  std::fflush(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return errno_error("fork", errno);
  if (pid > 0) return Child(pid, std::move(ours));

  ours.reset();
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  int status = 1;
  try {
    status = body(theirs.get());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench child: %s\n", error.what());
  }
  std::fflush(nullptr);
  ::_exit(status);  // the parent's destructors and exit handlers are not ours to run
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), control_(std::move(other.control_)), pending_(std::move(other.pending_)) {}

Child::~Child() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

Result<std::string> Child::read_line(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  for (;;) {
    if (const size_t newline = pending_.find('\n'); newline != std::string::npos) {
      std::string line = pending_.substr(0, newline);
      pending_.erase(0, newline + 1);
      return line;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0 || poll_in(control_.get(), left) <= 0)
      return Error{Code::kUnavailable, "the process under test says nothing"};
    char bytes[512];
    const ssize_t got = ::read(control_.get(), bytes, sizeof bytes);
    if (got <= 0) return Error{Code::kUnavailable, "the process under test has ended"};
    pending_.append(bytes, static_cast<size_t>(got));
  }
}

Result<void> Child::finish(std::chrono::milliseconds limit) {
  ::shutdown(control_.get(), SHUT_RDWR);
  control_.reset();
  const auto end = std::chrono::steady_clock::now() + limit;
  int status = 0;
  pid_t done = 0;
  while ((done = ::waitpid(pid_, &status, WNOHANG)) == 0 && std::chrono::steady_clock::now() < end) ::usleep(5000);
  if (done == 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, &status, 0);
  }
  pid_ = -1;
  if (done == 0) return Error{Code::kDeadline, "the process under test did not end"};
  if (WIFSIGNALED(status))
    return internal_error("the process under test died by signal " + std::to_string(WTERMSIG(status)));
  if (WEXITSTATUS(status) != 0)
    return internal_error("the process under test ended with status " + std::to_string(WEXITSTATUS(status)));
  return {};
}

int run_bare_sender(const SenderConfig& config, const std::string& sink_address, const FrameTemplate& frame) {
  constexpr char kWho[] = "bare sender";
  if (config.pin) pin_to_side(Side::kSender);
  std::vector<UniqueFd> sockets;
  Buffer out;
  for (unsigned i = 0; i < config.streams; ++i) {
    auto fd = connect_loopback(port_of(sink_address));
    if (!fd) return fail(kWho, fd.error());
    out.clear();
    wire::encode_handshake(out, subject_of(i), "response");
    wire::encode_prologue(out);
    if (auto done = write_all(fd->get(), as_text(out.view())); !done) return fail(kWho, done.error());
    sockets.push_back(std::move(*fd));
  }

  std::vector<std::byte> bytes(frame.max_bytes());
  timespec next{};
  ::clock_gettime(CLOCK_MONOTONIC, &next);
  for (uint32_t step = 0; step < config.tokens_per_stream; ++step) {
    const auto later = next.tv_nsec + config.step.count();
    next.tv_sec += static_cast<time_t>(later / 1'000'000'000);
    next.tv_nsec = static_cast<long>(later % 1'000'000'000);
    ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, nullptr);
    const size_t size = frame.render(bytes.data(), stamp_now());
    for (const UniqueFd& socket : sockets) {
      if (::send(socket.get(), bytes.data(), size, MSG_NOSIGNAL) != static_cast<ssize_t>(size))
        return fail(kWho, errno_error("send", errno));
    }
  }

  out.clear();
  const size_t mark = wire::begin_two_part_data(out);
  llm::encode_complete_final(out, frame.codec() == Codec::kJson ? llm::Codec::kJson : llm::Codec::kMsgpack);
  wire::end_two_part_data(out, mark);
  wire::encode_control(out, wire::ControlWord::kSentinel);
  for (const UniqueFd& socket : sockets) {
    if (auto done = write_all(socket.get(), as_text(out.view())); !done) return fail(kWho, done.error());
  }
  // The sink half-closes a stream when it has read the sentinel.
  for (const UniqueFd& socket : sockets) {
    char byte = 0;
    while (::recv(socket.get(), &byte, 1, 0) > 0) {
    }
  }
  return 0;
}

}  // namespace dyn::app::bench
