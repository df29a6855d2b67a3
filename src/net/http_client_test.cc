#include "net/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "net/event_loop.h"
#include "net/scripted_server.h"

namespace dyn::net {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Peer = ScriptedServer::Peer;

TEST(HttpUrl, IsReadOrRefusedWithItsReason) {
  const auto url = parse_http_url("http://host:8000/v1/");
  ASSERT_TRUE(url.ok());
  EXPECT_EQ(url.value().host, "host");
  EXPECT_EQ(url.value().port, 8000);
  EXPECT_EQ(url.value().path, "/v1");
  EXPECT_EQ(parse_http_url("http://h")->port, 80);
  EXPECT_EQ(parse_http_url("http://h/")->path, "");
  EXPECT_EQ(parse_http_url("http://[::1]:81")->host, "::1");
  EXPECT_EQ(parse_http_url("http://[::1]:81")->port, 81);
  EXPECT_THAT(parse_http_url("https://h").error().message, HasSubstr("TLS"));
  for (const char* wrong : {"", "h:80", "http://", "http://:80", "http://h:", "http://h:0", "http://h:65536",
                            "http://h:8x", "http://[::1", "http://[::1]8", "http://u@h", "http://h/?q", "http://h x"}) {
    EXPECT_FALSE(parse_http_url(wrong).ok()) << wrong;
  }
}

struct Answer {
  unsigned status = 0;
  std::string content_type;
  std::string body;
  size_t parts = 0;
  Result<void> done;
};

class HttpClientTest : public ::testing::Test {
 protected:
  HttpClientTest() { loop_.start(); }
  ~HttpClientTest() override {
    loop_.run_sync([this] { client_.reset(); });
    loop_.stop();
  }

  void connect_to(uint16_t port, HttpClientOptions options = {}) {
    loop_.run_sync([&] {
      client_ = std::make_unique<HttpClient>(
          loop_, HttpEndpoint{.ip = "127.0.0.1", .port = port, .host_header = "test"}, options);
    });
  }
  // Starts an exchange; the answer comes when it has ended.
  std::future<Answer> start(HttpClientRequest request = {}) {
    auto answer = std::make_shared<Answer>();
    auto promise = std::make_shared<std::promise<Answer>>();
    loop_.run_sync([&] {
      client_->send(std::move(request), {.on_head =
                                             [answer](const HttpHead& head) {
                                               answer->status = head.status;
                                               answer->content_type = head.content_type;
                                             },
                                         .on_body =
                                             [this, answer](std::string_view part) {
                                               answer->body += part;
                                               ++answer->parts;
                                               ++parts_seen_;
                                             },
                                         .on_end =
                                             [answer, promise](const Result<void>& done) {
                                               answer->done = done;
                                               promise->set_value(std::move(*answer));
                                             }});
    });
    return promise->get_future();
  }
  Answer exchange(HttpClientRequest request = {}) { return start(std::move(request)).get(); }
  // What one answer, sent as it is before the connection closes, comes to.
  Answer answer_of(std::string bytes, HttpClientOptions options = {}) {
    const ScriptedServer server([bytes](Peer& peer) {
      peer.read_request();
      peer.send(bytes);
    });
    connect_to(server.port(), options);
    return exchange();
  }

  EventLoop loop_{0, "client-test"};
  std::unique_ptr<HttpClient> client_;
  std::atomic<size_t> parts_seen_ = 0;
};

TEST_F(HttpClientTest, SendsARequestAndKeepsTheConnection) {
  std::vector<std::string> requests;
  ScriptedServer server([&](Peer& peer) {
    while (const auto request = peer.read_request()) {
      requests.push_back(*request);
      peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 2\r\n\r\nok");
    }
  });
  connect_to(server.port());
  for (int i = 0; i < 3; ++i) {
    const Answer answer = exchange({.method = "POST", .target = "/a?b", .headers = {{"X-Y", "z"}}, .body = "body"});
    ASSERT_TRUE(answer.done.ok()) << answer.done.error().message;
    EXPECT_EQ(answer.status, 200U);
    EXPECT_EQ(answer.content_type, "text/x");
    EXPECT_EQ(answer.body, "ok");
  }
  EXPECT_EQ(server.connections(), 1U);
  EXPECT_EQ(requests.at(2), "POST /a?b HTTP/1.1\r\nHost: test\r\nX-Y: z\r\nContent-Length: 4\r\n\r\nbody");
}

TEST_F(HttpClientTest, StreamsArriveAsTheyAreSent) {
  ScriptedServer server([&](Peer& peer) {
    while (peer.read_request()) {
      peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
      for (size_t i = 1; i <= 3; ++i) {
        peer.send_chunk("part" + std::to_string(i));
        while (parts_seen_ < i && !server.stopping()) std::this_thread::sleep_for(1ms);
      }
      peer.send_chunk("");
      parts_seen_ = 0;
    }
  });
  connect_to(server.port());
  for (int i = 0; i < 2; ++i) {
    const Answer answer = exchange();
    ASSERT_TRUE(answer.done.ok());
    EXPECT_EQ(answer.body, "part1part2part3");
    EXPECT_EQ(answer.parts, 3U);
  }
  EXPECT_EQ(server.connections(), 1U);
}

TEST_F(HttpClientTest, AnswersOfEveryForm) {
  EXPECT_EQ(answer_of("HTTP/1.0 200 OK\r\n\r\nuntil the end").body, "until the end");
  EXPECT_EQ(answer_of("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx").status,
            404U);
  EXPECT_TRUE(answer_of("HTTP/1.1 204 No Content\r\n\r\n").done.ok());
  const std::string big(1 << 20, 'b');
  EXPECT_EQ(answer_of("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n" + big).body, big);
}

TEST_F(HttpClientTest, BrokenAnswersAreErrorsByKind) {
  for (const char* broken : {"", "HTTP/1.1 200 OK\r\nContent", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
                             "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"}) {
    const Answer answer = answer_of(broken);
    ASSERT_FALSE(answer.done.ok()) << broken;
    EXPECT_EQ(answer.done.error().code, Code::kUnavailable) << answer.done.error().message;
    EXPECT_THAT(answer.done.error().message, HasSubstr("closed by the server"));
  }
  for (const char* broken :
       {"SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    const Answer answer = answer_of(broken);
    ASSERT_FALSE(answer.done.ok()) << broken;
    EXPECT_EQ(answer.done.error().code, Code::kInvalidArgument) << answer.done.error().message;
  }
  const Answer long_head =
      answer_of("HTTP/1.1 200 OK\r\nX: " + std::string(100'000, 'x') + "\r\n\r\n", {.max_header_bytes = 1024});
  ASSERT_FALSE(long_head.done.ok());
  EXPECT_EQ(long_head.done.error().code, Code::kInvalidArgument);
}

TEST_F(HttpClientTest, NobodyListens) {
  uint16_t port = 0;
  {
    const ScriptedServer gone([](Peer&) {});
    port = gone.port();
  }
  connect_to(port);
  const Answer answer = exchange();
  ASSERT_FALSE(answer.done.ok());
  EXPECT_EQ(answer.done.error().code, Code::kUnavailable);
  EXPECT_THAT(answer.done.error().message, StartsWith("cannot connect"));
}

TEST_F(HttpClientTest, SilenceEndsAtTheTimeLimit) {
  for (const char* sent : {"", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"}) {
    ScriptedServer server([sent](Peer& peer) {
      peer.read_request();
      peer.send(sent);
      peer.wait_closed();
    });
    connect_to(server.port(), {.timeout = 50ms});
    const Answer answer = exchange();
    ASSERT_FALSE(answer.done.ok());
    EXPECT_EQ(answer.done.error().code, Code::kDeadline);
  }
}

TEST_F(HttpClientTest, CancelClosesTheConnection) {
  std::promise<void> closed;
  ScriptedServer server([&](Peer& peer) {
    peer.read_request();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx");
    peer.wait_closed();
    if (peer.number() == 0) closed.set_value();
  });
  connect_to(server.port());
  auto answer = start();
  while (parts_seen_ == 0) std::this_thread::sleep_for(1ms);
  loop_.run_sync([&] {
    client_->cancel();
    client_->cancel();
  });
  EXPECT_EQ(answer.get().done.error().code, Code::kCancelled);
  closed.get_future().get();
  loop_.run_sync([&] { client_->cancel(); });  // nothing runs
  auto again = start();
  while (parts_seen_ == 1) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(server.connections(), 2U);
  loop_.run_sync([&] { client_->cancel(); });
  EXPECT_FALSE(again.get().done.ok());
}

TEST_F(HttpClientTest, AKeptConnectionThatWasClosedIsReplaced) {
  ScriptedServer server([&](Peer& peer) {
    peer.read_request();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  });
  connect_to(server.port());
  for (unsigned i = 1; i <= 3; ++i) {
    const Answer answer = exchange();
    ASSERT_TRUE(answer.done.ok()) << answer.done.error().message;
    EXPECT_EQ(server.connections(), i);
  }
}

TEST_F(HttpClientTest, OnEndMaySendAgain) {
  ScriptedServer server([&](Peer& peer) {
    while (peer.read_request()) peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  });
  connect_to(server.port());
  std::promise<void> enough;
  int left = 20;
  std::function<void(const Result<void>&)> next = [&](const Result<void>& done) {
    EXPECT_TRUE(done.ok());
    if (--left == 0) return enough.set_value();
    client_->send({}, {.on_end = next});
  };
  loop_.run_sync([&] { client_->send({}, {.on_end = next}); });
  enough.get_future().get();
  EXPECT_EQ(server.connections(), 1U);
}

TEST_F(HttpClientTest, ADestroyedClientCallsNobody) {
  ScriptedServer server([](Peer& peer) { peer.wait_closed(); });
  connect_to(server.port());
  auto answer = start();
  loop_.run_sync([&] { client_.reset(); });
  loop_.run_sync([] {});
  EXPECT_THROW(answer.get(), std::future_error);  // the handlers went without a call
}

}  // namespace
}  // namespace dyn::net
