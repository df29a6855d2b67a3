// Help for tests only: an HTTP server on the loopback interface that does exactly what a script says, right or wrong.
//
//   ScriptedServer server([](ScriptedServer::Peer& peer) {
//     while (peer.read_request()) peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
//   });
//   connect_to(server.port());
//
// The script runs once a connection, on a thread of its own; the connection closes when it returns. Ownership: the
// destructor cuts all connections and joins the threads. Thread rules: a Peer is its script's alone; the rest from
// any thread.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <charconv>
#include <functional>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/posix.h"

namespace dyn::net {

class ScriptedServer {
 public:
  class Peer {
   public:
    Peer(int socket, unsigned number) : socket_(socket), number_(number) {}

    // Connections are counted from 0.
    [[nodiscard]] unsigned number() const { return number_; }
    // Head and body of the next request; nothing when the client has closed.
    std::optional<std::string> read_request() {
      size_t head = std::string::npos;
      while ((head = input_.find("\r\n\r\n")) == std::string::npos) {
        if (!receive()) return std::nullopt;
      }
      size_t length = head + 4;
      constexpr std::string_view kLength = "Content-Length: ";
      if (const size_t at = input_.find(kLength); at < head) {
        size_t body = 0;
        std::from_chars(input_.data() + at + kLength.size(), input_.data() + head, body);
        length += body;
      }
      while (input_.size() < length) {
        if (!receive()) return std::nullopt;
      }
      std::string request = input_.substr(0, length);
      input_.erase(0, length);
      return request;
    }
    bool send(std::string_view bytes) const {
      while (!bytes.empty()) {
        const ssize_t put = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (put <= 0) return false;
        bytes.remove_prefix(static_cast<size_t>(put));
      }
      return true;
    }
    bool send_chunk(std::string_view bytes) const {
      char size[24] = {};
      const auto end = std::to_chars(size, size + sizeof size, bytes.size(), 16);
      return send(std::string(size, end.ptr) + "\r\n" + std::string(bytes) + "\r\n");
    }
    // Returns when the client has closed, or the server ends.
    void wait_closed() {
      while (receive()) input_.clear();
    }

   private:
    bool receive() {
      char bytes[4096];
      const ssize_t got = ::recv(socket_, bytes, sizeof bytes, 0);
      if (got > 0) input_.append(bytes, static_cast<size_t>(got));
      return got > 0;
    }

    int socket_;
    unsigned number_;
    std::string input_;
  };
  using Script = std::function<void(Peer&)>;

  explicit ScriptedServer(Script script)
      : script_(std::move(script)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        ::listen(listener_.get(), 128) != 0 ||
        ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      throw std::runtime_error("no loopback port");
    }
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept_all(); });
  }
  ~ScriptedServer() {
    stopping_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);
    acceptor_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const Connection& connection : connections_) ::shutdown(connection.socket.get(), SHUT_RDWR);
    }
    for (Connection& connection : connections_) connection.thread.join();
  }
  ScriptedServer(const ScriptedServer&) = delete;
  ScriptedServer& operator=(const ScriptedServer&) = delete;

  [[nodiscard]] uint16_t port() const { return port_; }
  [[nodiscard]] std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  [[nodiscard]] size_t connections() const {
    const std::lock_guard lock(mutex_);
    return connections_.size();
  }
  // For scripts that wait: the server is going.
  [[nodiscard]] bool stopping() const { return stopping_; }

 private:
  struct Connection {
    UniqueFd socket;  // closed with the server, so that its number is not given to another meanwhile
    std::thread thread;
  };

  void accept_all() {
    for (unsigned number = 0;; ++number) {
      UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!socket || stopping_) return;
      const int raw = socket.get();
      const int on = 1;
      ::setsockopt(raw, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      const std::lock_guard lock(mutex_);
      connections_.push_back({std::move(socket), std::thread([this, raw, number] {
                                Peer peer(raw, number);
                                script_(peer);
                                ::shutdown(raw, SHUT_RDWR);
                              })});
    }
  }

  const Script script_;
  UniqueFd listener_;
  uint16_t port_ = 0;
  std::atomic<bool> stopping_ = false;
  mutable std::mutex mutex_;
  std::vector<Connection> connections_;
  std::thread acceptor_;
};

}  // namespace dyn::net
