// For tests: a subscriber of KV events made of libzmq alone, as routers are.
//
//   testing::Subscriber subscriber(publisher->transport().value);
//   std::vector<std::string> parts = subscriber.receive();      // topic, publisher id, sequence, frame
//
// It sees nothing before its subscription has reached the publisher, and nobody says when that is: publish until
// something comes. Thread rules: one thread.
#pragma once

#include <gtest/gtest.h>
#include <zmq.h>

#include <array>
#include <string>
#include <vector>

namespace dyn::runtime::testing {

class Subscriber {
 public:
  explicit Subscriber(const std::string& endpoint) : context_(zmq_ctx_new()), socket_(zmq_socket(context_, ZMQ_SUB)) {
    const int timeout_ms = 50;
    zmq_setsockopt(socket_, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_setsockopt(socket_, ZMQ_SUBSCRIBE, "kv-events", 9);
    EXPECT_EQ(zmq_connect(socket_, endpoint.c_str()), 0) << endpoint;
  }
  ~Subscriber() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }

  // The parts of the next message; empty: none came.
  std::vector<std::string> receive() {
    std::vector<std::string> parts;
    for (;;) {
      std::array<char, 4096> buffer{};
      const int size = zmq_recv(socket_, buffer.data(), buffer.size(), 0);
      if (size < 0) return {};
      parts.emplace_back(buffer.data(), static_cast<size_t>(size));
      int more = 0;
      size_t length = sizeof more;
      zmq_getsockopt(socket_, ZMQ_RCVMORE, &more, &length);
      if (more == 0) return parts;
    }
  }

 private:
  void* context_;
  void* socket_;
};

}  // namespace dyn::runtime::testing
