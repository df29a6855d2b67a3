#include "net/local_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <optional>

namespace dyn::net {
namespace {

std::string to_literal(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address->sa_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof text);
  } else if (address->sa_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text, sizeof text);
  }
  return text;
}

// Connecting a UDP socket sends nothing, but makes the kernel choose the source address of the route there.
std::optional<std::string> source_address_towards(const sockaddr* remote, socklen_t length) {
  const int fd = ::socket(remote->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return std::nullopt;
  std::optional<std::string> found;
  sockaddr_storage local{};
  socklen_t local_length = sizeof local;
  auto* local_address = reinterpret_cast<sockaddr*>(&local);
  if (::connect(fd, remote, length) == 0 && ::getsockname(fd, local_address, &local_length) == 0) {
    std::string literal = to_literal(local_address);
    if (!literal.empty() && !is_wildcard(literal)) found = std::move(literal);
  }
  ::close(fd);
  return found;
}

constexpr uint16_t kDiscardPort = 9;

std::optional<std::string> routable_ipv4() {
  sockaddr_in remote{};
  remote.sin_family = AF_INET;
  remote.sin_port = htons(kDiscardPort);
  ::inet_pton(AF_INET, "192.0.2.1", &remote.sin_addr);  // TEST-NET-1: reached by the default route, if there is one
  return source_address_towards(reinterpret_cast<const sockaddr*>(&remote), sizeof remote);
}

std::optional<std::string> routable_ipv6() {
  sockaddr_in6 remote{};
  remote.sin6_family = AF_INET6;
  remote.sin6_port = htons(kDiscardPort);
  ::inet_pton(AF_INET6, "2001:db8::1", &remote.sin6_addr);  // the documentation prefix
  return source_address_towards(reinterpret_cast<const sockaddr*>(&remote), sizeof remote);
}

}  // namespace

std::string local_address() {
  if (auto found = routable_ipv4()) return *found;
  if (auto found = routable_ipv6()) return *found;
  return "127.0.0.1";
}

Result<std::string> resolve_host(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int failure = ::getaddrinfo(host.c_str(), nullptr, &hints, &found); failure != 0) {
    return Error{Code::kInvalidArgument, "cannot resolve '" + host + "': " + ::gai_strerror(failure)};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    std::string literal = to_literal(entry->ai_addr);
    if (!literal.empty()) return literal;
  }
  return Error{Code::kInvalidArgument, "'" + host + "' has neither an IPv4 nor an IPv6 address"};
}

std::string host_port(const std::string& ip_literal, uint16_t port) {
  const bool bracket = ip_literal.find(':') != std::string::npos;
  return (bracket ? "[" + ip_literal + "]" : ip_literal) + ":" + std::to_string(port);
}

bool is_wildcard(const std::string& ip_literal) {
  return ip_literal == "0.0.0.0" || ip_literal == "::";
}

}  // namespace dyn::net
