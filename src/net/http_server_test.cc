#include "net/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "base/posix.h"
#include "base/test_support.h"
#include "net/event_loop.h"

namespace dyn::net {
namespace {

using std::chrono::milliseconds;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A peer that sends exactly the bytes it is told to.
class Peer {
 public:
  explicit Peer(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  [[nodiscard]] bool connected() const { return connected_; }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t put = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (put <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(put));
    }
    return true;
  }
  void shutdown_send() { ::shutdown(socket_.get(), SHUT_WR); }
  // All up to the server's close; "(timeout)" at the end if it does not close.
  std::string read_to_end() {
    std::string text;
    for (;;) {
      const auto part = read_some();
      if (!part) return text + "(timeout)";
      if (part->empty()) return text;
      text += *part;
    }
  }
  // Until `end` has been received.
  std::string read_until(std::string_view end) {
    std::string text;
    while (text.find(end) == std::string::npos) {
      const auto part = read_some();
      if (!part || part->empty()) return text + "(ended)";
      text += *part;
    }
    return text;
  }
  bool closed_by_server() {
    const auto part = read_some();
    return part && part->empty();
  }

 private:
  // Nothing on a time-out, empty at the end (a reset counts as one).
  std::optional<std::string> read_some() {
    pollfd ready{socket_.get(), POLLIN, 0};
    if (::poll(&ready, 1, 20'000) != 1) return std::nullopt;
    std::array<char, 65536> buffer{};
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    return std::string(buffer.data(), got > 0 ? static_cast<size_t>(got) : 0);
  }
  UniqueFd socket_;
  bool connected_ = false;
};

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServerTest() { loop_.start(); }
  ~HttpServerTest() override {
    server_.reset();
    loop_.stop();
  }

  HttpServer& make(HttpServerOptions options = {}) {
    options.host = "127.0.0.1";
    server_ = std::make_unique<HttpServer>(loop_, options);
    server_->route("GET", "/hello", [](const HttpRequest&) { return HttpResponse{.body = "world"}; });
    server_->route("*", "/echo/*", [](const HttpRequest& request) {
      return HttpResponse{.body = request.method + "|" + request.path + "|" + request.query + "|" + request.body};
    });
    return *server_;
  }
  void start() {
    const auto started = server_->start();
    ASSERT_TRUE(started.ok()) << started.error().message;
  }
  // One request on a connection of its own.
  std::string ask(std::string_view bytes) {
    Peer peer(server_->port());
    EXPECT_TRUE(peer.send(bytes));
    return peer.read_to_end();
  }
  std::string get(const std::string& path) {
    return ask("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  }
  void expect_alive() { EXPECT_THAT(get("/hello"), EndsWith("\r\n\r\nworld")); }

  EventLoop loop_{0, "http-test"};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersAGet) {
  make();
  start();
  EXPECT_EQ(
      get("/hello"),
      "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
      "world");
}

TEST_F(HttpServerTest, PassesMethodPathQueryBodyAndHeaders) {
  make().route("POST", "/headers", [](const HttpRequest& request) {
    return HttpResponse{.body = std::string(request.header("x-THING")) + "," + std::string(request.header("absent"))};
  });
  start();
  EXPECT_THAT(
      ask("PUT /echo/a%20b/c?x=1&y=?/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"),
      EndsWith("\r\n\r\nPUT|/echo/a%20b/c|x=1&y=?/|body"));
  EXPECT_THAT(ask("POST /headers HTTP/1.1\r\nX-Thing: v w\r\nConnection: close\r\n\r\n"), EndsWith("\r\n\r\nv w,"));
}

TEST_F(HttpServerTest, ChunkedBodiesAreReadAndBounded) {
  make({.max_body_bytes = 8});
  start();
  const std::string head = "POST /echo/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_THAT(ask(head + "3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n"), EndsWith("\r\n\r\nPOST|/echo/||abcde"));
  EXPECT_THAT(ask(head + "5\r\nabcde\r\n5\r\nabcde\r\n0\r\n\r\n"), StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(ask(head + "ffffffffffffffff\r\nabcde"),
              ::testing::AnyOf(StartsWith("HTTP/1.1 413 "), StartsWith("HTTP/1.1 400 ")));
  EXPECT_THAT(ask(head + "zz\r\nabcde\r\n0\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
}

TEST_F(HttpServerTest, HeadHasNoBodyAndOtherMethodsAreRefused) {
  make().route("DELETE", "/hello", [](const HttpRequest&) { return HttpResponse{.status = 204}; });
  start();
  const std::string head = ask("HEAD /hello HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(head, HasSubstr("Content-Length: 5\r\n"));
  EXPECT_THAT(head, EndsWith("\r\n\r\n"));
  const std::string post = ask("POST /hello HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
  EXPECT_THAT(post, StartsWith("HTTP/1.1 405 Method Not Allowed\r\n"));
  EXPECT_THAT(post, HasSubstr("\r\nAllow: GET, HEAD, DELETE\r\n"));
}

TEST_F(HttpServerTest, RoutesPreferTheExactThenTheLongest) {
  HttpServer& server = make();
  for (const char* path : {"/a/*", "/a/b/*", "/a/b", "/*"}) {
    server.route("GET", path,
                 [path](const HttpRequest&) { return HttpResponse{.body = std::string("<") + path + ">"}; });
  }
  start();
  EXPECT_THAT(get("/a/b"), EndsWith("</a/b>"));
  EXPECT_THAT(get("/a/b/c/d"), EndsWith("</a/b/*>"));
  EXPECT_THAT(get("/a/c"), EndsWith("</a/*>"));
  EXPECT_THAT(get("/a"), EndsWith("</*>"));
  EXPECT_THAT(get("/"), EndsWith("</*>"));
}

TEST_F(HttpServerTest, UnknownPathsAreTheFallbacks) {
  make();
  start();
  EXPECT_THAT(get("/nope"), EndsWith("\r\n\r\nNot found"));
  EXPECT_THAT(get("nope"), StartsWith("HTTP/1.1 404 "));
  make().set_fallback(
      [](const HttpRequest& request) { return HttpResponse{.status = 404, .body = "no " + request.path}; });
  start();
  EXPECT_THAT(get("/nope"), EndsWith("\r\n\r\nno /nope"));
}

TEST_F(HttpServerTest, KeepsConnectionsAliveAndServesPipelinedRequestsInOrder) {
  make();
  start();
  Peer peer(server_->port());
  std::string requests;
  for (int i = 0; i < 100; ++i) requests += "GET /echo/" + std::to_string(i) + " HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_TRUE(peer.send(requests + "GET /hello HTTP/1.0\r\n\r\n"));
  const std::string replies = peer.read_to_end();
  size_t at = 0;
  for (int i = 0; i < 100; ++i) {
    at = replies.find("GET|/echo/" + std::to_string(i) + "||", at);
    ASSERT_NE(at, std::string::npos) << i;
  }
  EXPECT_THAT(replies, EndsWith("Connection: close\r\n\r\nworld"));
  Peer old(server_->port());
  ASSERT_TRUE(old.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
  EXPECT_THAT(old.read_until("world"), HasSubstr("Connection: keep-alive\r\n"));
}

TEST_F(HttpServerTest, ABodyIsAskedForWhenThePeerWaits) {
  make();
  start();
  Peer peer(server_->port());
  ASSERT_TRUE(
      peer.send("POST /echo/ HTTP/1.1\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"));
  EXPECT_EQ(peer.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  ASSERT_TRUE(peer.send("ab"));
  EXPECT_THAT(peer.read_to_end(), EndsWith("|ab"));
}

TEST_F(HttpServerTest, ReplyMayComeLaterFromAnotherThreadOnce) {
  std::thread worker;
  make().route_async("GET", "/later", [&](const HttpRequest&, HttpReply reply) {
    worker = std::thread([reply = std::move(reply)] {
      reply(HttpResponse{.body = "first"});
      reply(HttpResponse{.body = "second"});
    });
  });
  start();
  EXPECT_THAT(get("/later"), EndsWith("\r\n\r\nfirst"));
  worker.join();
}

TEST_F(HttpServerTest, OtherRequestsAreServedWhileOneWaits) {
  HttpReply held;
  std::mutex mutex;
  make().route_async("GET", "/wait", [&](const HttpRequest&, HttpReply reply) {
    const std::lock_guard lock(mutex);
    held = std::move(reply);
  });
  start();
  Peer waiting(server_->port());
  ASSERT_TRUE(waiting.send("GET /wait HTTP/1.1\r\nConnection: close\r\n\r\n"));
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(mutex);
    return held != nullptr;
  }));
  expect_alive();
  held(HttpResponse{.body = "done"});
  EXPECT_THAT(waiting.read_to_end(), EndsWith("done"));
  held(HttpResponse{.body = "again"});  // nobody is there
}

TEST_F(HttpServerTest, AHandlerThatThrowsOrForgetsIsA500) {
  HttpServer& server = make();
  server.route("GET", "/throw", [](const HttpRequest&) -> HttpResponse { throw std::runtime_error("secret"); });
  server.route("GET", "/throw_int", [](const HttpRequest&) -> HttpResponse { throw 1; });
  server.route_async("GET", "/forget", [](const HttpRequest&, const HttpReply&) {});
  start();
  for (const char* path : {"/throw", "/throw_int", "/forget"}) {
    const std::string reply = get(path);
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 500 Internal Server Error\r\n"));
    EXPECT_THAT(reply, ::testing::Not(HasSubstr("secret")));
  }
  expect_alive();
}

TEST_F(HttpServerTest, GarbageIsRefusedAndHarmsNobody) {
  make();
  start();
  for (const std::string_view garbage :
       {std::string_view("\r\n\r\n"), std::string_view("\0\0\0\0\0\0\0\0", 8), std::string_view("GET\r\n\r\n"),
        std::string_view("GET / HTTP/9.9\r\n\r\n"), std::string_view("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        std::string_view("GET / HTTP/1.1\r\nno colon\r\n\r\n"),
        std::string_view("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        std::string_view("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        std::string_view("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")}) {
    Peer peer(server_->port());
    ASSERT_TRUE(peer.send(garbage));
    peer.shutdown_send();
    EXPECT_THAT(peer.read_to_end(), ::testing::AnyOf(StartsWith("HTTP/1.1 400 "), ::testing::IsEmpty())) << garbage;
  }
  expect_alive();
}

TEST_F(HttpServerTest, HugeHeadersAndBodiesAreRefusedBeforeTheyAreRead) {
  make({.max_header_bytes = 2000, .max_body_bytes = 1000});
  start();
  EXPECT_THAT(ask("GET /hello HTTP/1.1\r\nA: " + std::string(1'000'000, 'a') + "\r\n\r\n"),
              StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(ask("GET /" + std::string(1'000'000, 'a')), StartsWith("HTTP/1.1 431 "));
  std::string many = "GET /hello HTTP/1.1\r\n";
  for (int i = 0; i < 1000; ++i) many += "H" + std::to_string(i) + ": v\r\n";
  EXPECT_THAT(ask(many + "\r\n"), StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(ask("POST /echo/ HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n"), StartsWith("HTTP/1.1 4"));
  EXPECT_THAT(ask("POST /echo/ HTTP/1.1\r\nContent-Length: 1001\r\n\r\n"), StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(ask("POST /echo/ HTTP/1.1\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'b')),
              EndsWith("bbbb"));
  expect_alive();
}

TEST_F(HttpServerTest, SlowPeersAreBounded) {
  make({.idle_timeout = milliseconds(100), .request_timeout = milliseconds(100)});
  start();
  Peer silent(server_->port());
  Peer slow(server_->port());
  Peer half_body(server_->port());
  ASSERT_TRUE(slow.send("GET /hello HTTP/1.1\r\nA"));
  ASSERT_TRUE(half_body.send("POST /echo/ HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"));
  // Feeding single bytes does not prolong the limit.
  while (slow.send("a")) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_TRUE(silent.closed_by_server());
  EXPECT_TRUE(half_body.closed_by_server());
  expect_alive();
}

TEST_F(HttpServerTest, APeerThatDoesNotReadIsDropped) {
  HttpServer& server = make({.write_timeout = milliseconds(100)});
  server.route("GET", "/big", [](const HttpRequest&) { return HttpResponse{.body = std::string(64 << 20, 'x')}; });
  start();
  Peer deaf(server_->port());
  ASSERT_TRUE(deaf.send("GET /big HTTP/1.1\r\n\r\n"));
  EXPECT_TRUE(eventually([&] { return !deaf.send("x"); })) << "the connection stays";
  expect_alive();
}

TEST_F(HttpServerTest, AtTheConnectionLimitTheLongestWaitingGivesWay) {
  make({.max_connections = 4});
  start();
  std::vector<std::unique_ptr<Peer>> idle;
  for (int i = 0; i < 4; ++i) {
    idle.push_back(std::make_unique<Peer>(server_->port()));
    ASSERT_TRUE(idle.back()->send("GET /hello HTTP/1.1\r\n\r\n"));
    ASSERT_THAT(idle.back()->read_until("world"), EndsWith("world"));
  }
  ASSERT_TRUE(idle[0]->send("GET /hello HTTP/1.1\r\n\r\n"));  // the first is now the youngest
  ASSERT_THAT(idle[0]->read_until("world"), EndsWith("world"));
  expect_alive();
  EXPECT_TRUE(idle[1]->closed_by_server());
  ASSERT_TRUE(idle[0]->send("GET /hello HTTP/1.1\r\n\r\n"));
  EXPECT_THAT(idle[0]->read_until("world"), EndsWith("world"));
}

TEST_F(HttpServerTest, ManyConnectionsDoNotLockOutAProbe) {
  make({.max_connections = 32});
  start();
  std::vector<std::unique_ptr<Peer>> attackers;
  for (int i = 0; i < 200; ++i) {
    attackers.push_back(std::make_unique<Peer>(server_->port()));
    ASSERT_TRUE(attackers.back()->connected());
    (void)attackers.back()->send("GET /hel");
  }
  expect_alive();
}

TEST_F(HttpServerTest, PeersThatVanishAreForgotten) {
  make({.max_connections = 8});
  start();
  for (int i = 0; i < 100; ++i) {
    Peer peer(server_->port());
    (void)peer.send(i % 2 == 0 ? "GET /hello HTTP/1.1\r\n\r\n" : "POST /echo/ HTTP/1.1\r\nContent-Length: 5\r\n\r\na");
  }
  expect_alive();
}

TEST_F(HttpServerTest, AHalfClosedPeerStillGetsItsAnswer) {
  make();
  start();
  Peer peer(server_->port());
  ASSERT_TRUE(peer.send("GET /hello HTTP/1.1\r\n\r\n"));
  peer.shutdown_send();
  EXPECT_THAT(peer.read_to_end(), EndsWith("world"));
}

TEST_F(HttpServerTest, AnAddressInUseIsAClearError) {
  make();
  start();
  HttpServer second(loop_, {.host = "127.0.0.1", .port = server_->port()});
  const auto started = second.start();
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(started.error().code, Code::kUnavailable);
  EXPECT_EQ(started.error().message, "cannot listen on 127.0.0.1:" + std::to_string(server_->port()) +
                                         ": Address already in use; stop the process that listens there or choose "
                                         "another port");
}

TEST_F(HttpServerTest, HostsThatCannotBeBoundAreErrors) {
  for (const char* host : {"no such host", "203.0.113.7", ""}) {
    HttpServer server(loop_, {.host = host});
    const auto started = server.start();
    ASSERT_FALSE(started.ok()) << host;
    EXPECT_THAT(started.error().message, StartsWith("cannot listen on "));
  }
}

TEST_F(HttpServerTest, NamesAndIpv6AreHostsToo) {
  for (const char* host : {"localhost", "::", "0.0.0.0"}) {
    HttpServer server(loop_, {.host = host});
    const auto started = server.start();
    ASSERT_TRUE(started.ok()) << started.error().message;
    EXPECT_NE(server.port(), 0);
  }
}

TEST_F(HttpServerTest, StopClosesConnectionsAndThePortAndRunsNoHandlerAfterwards) {
  std::atomic<bool> stopped = false;
  std::atomic<int> late = 0;
  HttpReply held;
  HttpServer& server = make();
  server.route("GET", "/count", [&](const HttpRequest&) {
    if (stopped) ++late;
    return HttpResponse{};
  });
  server.route_async("GET", "/hold", [&](const HttpRequest&, HttpReply reply) { held = std::move(reply); });
  start();
  const uint16_t port = server.port();
  std::atomic<bool> stop_hammering = false;
  std::thread hammer([&] {
    while (!stop_hammering) {
      Peer peer(port);
      if (peer.connected() && peer.send("GET /count HTTP/1.1\r\nConnection: close\r\n\r\n")) (void)peer.read_to_end();
    }
  });
  Peer idle(port);
  Peer waiting(port);
  ASSERT_TRUE(waiting.send("GET /hold HTTP/1.1\r\n\r\n"));
  ASSERT_TRUE(waiting.send("GET /hello HTTP/1.1\r\n\r\n"));
  std::this_thread::sleep_for(milliseconds(20));
  server.stop();
  stopped = true;
  server.stop();
  EXPECT_TRUE(idle.closed_by_server());
  EXPECT_TRUE(waiting.closed_by_server());
  EXPECT_FALSE(Peer(port).connected());
  stop_hammering = true;
  hammer.join();
  EXPECT_EQ(late, 0);
  if (held) held(HttpResponse{});
}

TEST_F(HttpServerTest, StopIsHarmlessAfterTheLoopStopped) {
  make();
  start();
  Peer peer(server_->port());
  expect_alive();
  loop_.stop();
  server_->stop();
  EXPECT_TRUE(peer.closed_by_server());
}

}  // namespace
}  // namespace dyn::net
