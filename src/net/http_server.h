// HttpServer: a small HTTP/1.1 server for the operator's side of a process: health, metrics, control routes.
//
//   HttpServer server(loop, {.host = "0.0.0.0", .port = 0});
//   server.route("GET", "/hello", [](const HttpRequest&) { return HttpResponse{.body = "hi"}; });
//   if (auto started = server.start(); !started) return started;      // server.port() is known now
//   ...
//   server.stop();
//
// Everything a peer can send is bounded: header and body bytes, time to send a request, time to read the answer, number
// of connections (at the limit the connection that waited longest gives way, so slow peers cannot lock out a probe).
// GET routes answer HEAD, too; a known path with another method gets 405; a handler that throws gets 500.
// Ownership: the loop must outlive the server and must be running while it serves. Thread rules: routes before start();
// start() and stop() from one control thread, never from the loop's; handlers run on the loop and must not block it:
// what takes time uses an AsyncHttpHandler and answers later, from any thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace dyn::net {

class EventLoop;

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // as sent, without the query: "/engine/a%20b"
  std::string query;   // behind the '?', as sent
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;

  // The first header of that name in any case, or nothing.
  [[nodiscard]] std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // further ones; no content-length, no connection
};

using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

// Answers one request; calls after the first, or after the connection is gone, do nothing. Safe from any thread, but
// not once the loop is destroyed. A request whose reply is dropped without an answer gets 500.
using HttpReply = std::function<void(HttpResponse)>;
using AsyncHttpHandler = std::function<void(const HttpRequest&, HttpReply)>;

struct HttpServerOptions {
  std::string host = "0.0.0.0";  // IP literal or a name
  uint16_t port = 0;             // 0: a free one
  size_t max_header_bytes = size_t{16} * 1024;
  size_t max_body_bytes = size_t{1024} * 1024;
  size_t max_connections = 128;
  std::chrono::milliseconds idle_timeout{60'000};     // between requests
  std::chrono::milliseconds request_timeout{10'000};  // from the first byte of a request to its last
  std::chrono::milliseconds write_timeout{10'000};    // for the peer to take the answer
};

class HttpServer {
 public:
  HttpServer(EventLoop& loop, HttpServerOptions options);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // `method`: "GET", ..., or "*" for any. A path that ends in "/*" serves everything below it. An exact path wins over
  // a longer "/*" path, which wins over a shorter one.
  void route(const std::string& method, const std::string& path, HttpHandler handler);
  void route_async(const std::string& method, const std::string& path, AsyncHttpHandler handler);
  // Answers what no route matches, in place of a 404 with the text "Not found".
  void set_fallback(HttpHandler handler);

  // Binds and listens. An address in use, a host that cannot be resolved, ... is an error that names the address.
  Result<void> start();
  // The port bound by start().
  [[nodiscard]] uint16_t port() const;
  // Closes all connections; no handler runs once it returns. Idempotent; also done by the destructor.
  void stop();

 private:
  struct Impl;
  friend class HttpSession;  // of http_server.cc
  std::shared_ptr<Impl> impl_;
};

}  // namespace dyn::net
