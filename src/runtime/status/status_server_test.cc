#include "runtime/status/status_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <stdexcept>
#include <thread>

#include "base/posix.h"
#include "net/event_loop.h"

namespace dyn::runtime {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class StatusServerTest : public ::testing::Test {
 protected:
  StatusServerTest() {
    loop_.start();
    status_ =
        std::make_unique<StatusServer>(StatusServerOptions{.port = 0, .host = "127.0.0.1"}, loop_, health_, registry_);
  }
  ~StatusServerTest() override {
    status_.reset();
    loop_.stop();
  }

  struct Reply {
    int status = 0;
    std::string head;
    std::string body;
  };
  Reply ask(const std::string& method, const std::string& path, const std::string& body = "") {
    const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(status_->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
    EXPECT_TRUE(write_all(socket.get(), method + " " + path + " HTTP/1.1\r\nConnection: close\r\nContent-Length: " +
                                            std::to_string(body.size()) + "\r\n\r\n" + body)
                    .ok());
    const auto text = read_all(socket.get(), 1 << 20);
    EXPECT_TRUE(text.ok());
    const size_t end = text->find("\r\n\r\n");
    EXPECT_NE(end, std::string::npos) << *text;
    return {std::stoi(text->substr(9, 3)), text->substr(0, end), text->substr(end + 4)};
  }
  Reply get(const std::string& path) { return ask("GET", path); }
  void start() {
    const auto started = status_->start();
    ASSERT_TRUE(started.ok()) << started.error().message;
  }

  net::EventLoop loop_{0, "status-test"};
  Health health_{{}};
  metrics::Registry registry_{{{"dynamo_namespace", "dynamo"}}};
  std::unique_ptr<StatusServer> status_;
};

TEST_F(StatusServerTest, HealthAndLiveFollowReadiness) {
  start();
  for (const char* path : {"/health", "/live"}) {
    health_.set_process(false);
    const Reply before = get(path);
    EXPECT_EQ(before.status, 503);
    EXPECT_THAT(before.body, HasSubstr(R"("status":"notready")"));
    health_.set_process(true);
    const Reply after = get(path);
    EXPECT_EQ(after.status, 200);
    EXPECT_THAT(after.body, StartsWith(R"({"endpoints":{},"status":"ready","uptime":{"nanos":)"));
    EXPECT_THAT(after.head, HasSubstr("\r\nContent-Type: text/plain; charset=utf-8\r\n"));
  }
}

TEST_F(StatusServerTest, MetricsAreThePlainTextOfTheRegistryAndMore) {
  registry_.counter("dynamo_component_requests_total", "help", {{"model", "m"}}).increment(3);
  status_->add_metrics_text([] { return std::string("engine_metric 1\n"); });
  start();
  const Reply reply = get("/metrics");
  EXPECT_EQ(reply.status, 200);
  EXPECT_THAT(reply.head, HasSubstr("\r\nContent-Type: text/plain; charset=utf-8\r\n"));
  EXPECT_THAT(reply.body, HasSubstr(R"(dynamo_component_requests_total{dynamo_namespace="dynamo",model="m"} 3)"));
  EXPECT_THAT(reply.body, HasSubstr(R"(dynamo_component_uptime_seconds{dynamo_namespace="dynamo"} )"));
  EXPECT_THAT(reply.body, ::testing::EndsWith("engine_metric 1\n"));
}

TEST_F(StatusServerTest, MetricsThatCannotBeWrittenAreA500) {
  status_->add_metrics_text([]() -> std::string { throw std::runtime_error("broken"); });
  start();
  EXPECT_EQ(get("/metrics").status, 500);
  EXPECT_EQ(get("/health").status, 503);
}

TEST_F(StatusServerTest, MetadataOnlyWhenThereIsSome) {
  start();
  const Reply none = get("/metadata");
  EXPECT_EQ(none.status, 404);
  EXPECT_EQ(none.body, "Discovery metadata not available");
  status_ =
      std::make_unique<StatusServer>(StatusServerOptions{.port = 0, .host = "127.0.0.1"}, loop_, health_, registry_);
  status_->set_metadata([] { return std::string(R"({"endpoints":{}})"); });
  start();
  EXPECT_EQ(get("/metadata").status, 200);
  EXPECT_EQ(get("/metadata").body, R"({"endpoints":{}})");
}

TEST_F(StatusServerTest, EverythingElseIsNotFound) {
  start();
  for (const char* path : {"/", "/nope", "/health/", "/engine", "/engine/", "/metrics/x"}) {
    const Reply reply = get(path);
    EXPECT_EQ(reply.status, 404) << path;
    EXPECT_EQ(reply.body, "Route not found") << path;
  }
  EXPECT_EQ(ask("POST", "/health").status, 405);
}

TEST_F(StatusServerTest, EngineRoutes) {
  status_->add_engine_route(
      "control/sleep", [](const std::string& json, const EngineReply& reply) { reply(R"({"got":)" + json + "}"); });
  start();
  status_->add_engine_route("late", [](const std::string&, EngineReply reply) {
    std::thread([reply = std::move(reply)] { reply(std::string(R"({"late":true})")); }).detach();
  });
  for (const char* method : {"GET", "POST", "PUT", "DELETE"}) {
    const Reply reply = ask(method, "/engine/control/sleep", R"({"level":1})");
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, R"({"got":{"level":1}})");
  }
  EXPECT_EQ(ask("POST", "/engine/control/sleep?x=1").body, R"({"got":{}})") << "no body is an empty object";
  EXPECT_EQ(get("/engine/late").body, R"({"late":true})");
  EXPECT_EQ(get("/engine/late").status, 200);
}

TEST_F(StatusServerTest, EngineErrorsHaveDynamosForms) {
  status_->add_engine_route(
      "fails", [](const std::string&, const EngineReply& reply) { reply(Error{Code::kInternal, "said \"no\""}); });
  status_->add_engine_route("throws", [](const std::string&, const EngineReply&) { throw std::runtime_error("boom"); });
  start();
  Reply reply = get("/engine/nope/x");
  EXPECT_EQ(reply.status, 404);
  EXPECT_EQ(reply.body, R"({"error":"Route not found","message":"Route /engine/nope/x not found"})");
  for (const char* bad : {"{", "{\"a\":}", "x", "{} {}", "\"\xff\"", "  "}) {
    reply = ask("POST", "/engine/fails", bad);
    EXPECT_EQ(reply.status, 400) << bad;
    EXPECT_THAT(reply.body, StartsWith(R"({"error":"Invalid JSON","message":")")) << bad;
  }
  EXPECT_EQ(ask("POST", "/engine/nope", "{").status, 400) << "the body is looked at first";
  EXPECT_EQ(ask("POST", "/engine/fails", std::string(100'000, '[')).status, 400) << "nesting is bounded";
  reply = get("/engine/fails");
  EXPECT_EQ(reply.status, 500);
  EXPECT_EQ(reply.body, R"({"error":"Handler error","message":"said \"no\""})");
  reply = get("/engine/throws");
  EXPECT_EQ(reply.status, 500);
  EXPECT_EQ(reply.body, R"({"error":"Handler error","message":"boom"})");
}

TEST_F(StatusServerTest, PathsCanBeChangedAndMayBeTheSame) {
  for (const StatusServerOptions& options :
       {StatusServerOptions{.port = 0, .host = "127.0.0.1", .health_path = "/h", .live_path = "/l"},
        StatusServerOptions{.port = 0, .host = "127.0.0.1", .health_path = "/h", .live_path = "/h"}}) {
    status_ = std::make_unique<StatusServer>(options, loop_, health_, registry_);
    start();
    EXPECT_EQ(get("/h").status, 503);
    EXPECT_EQ(get(options.live_path).status, 503);
    EXPECT_EQ(get("/health").status, 404);
  }
}

TEST_F(StatusServerTest, FurtherRoutes) {
  status_->http().route("GET", "/v1/loras", [](const net::HttpRequest&) { return net::HttpResponse{.body = "loras"}; });
  start();
  EXPECT_EQ(get("/v1/loras").body, "loras");
}

TEST_F(StatusServerTest, SwitchedOffItListensNowhere) {
  StatusServer off({.port = -1}, loop_, health_, registry_);
  EXPECT_FALSE(off.enabled());
  EXPECT_TRUE(off.start().ok());
  EXPECT_EQ(off.port(), 0);
}

TEST_F(StatusServerTest, ATakenPortIsAClearError) {
  start();
  StatusServer second({.port = status_->port(), .host = "127.0.0.1"}, loop_, health_, registry_);
  const auto started = second.start();
  ASSERT_FALSE(started.ok());
  EXPECT_THAT(started.error().message, HasSubstr("DYN_SYSTEM_PORT"));
  EXPECT_THAT(started.error().message, HasSubstr("Address already in use"));
}

}  // namespace
}  // namespace dyn::runtime
