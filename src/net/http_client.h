// HttpClient: one HTTP/1.1 connection to one server, for requests whose answers may be long streams.
//
//   auto url = parse_http_url("http://127.0.0.1:8000");
//   HttpClient client(loop, *HttpEndpoint::resolve(*url), {.timeout = 60s});
//   client.send({.method = "POST", .target = "/v1/completions", .headers = {{"Content-Type", "application/json"}},
//                .body = json},
//               {.on_head = [](const HttpHead& head) { ... },
//                .on_body = [](std::string_view part) { ... },      // as it arrives, chunking removed
//                .on_end = [](const Result<void>& done) { ... }});
//
// One exchange at a time; the connection stays open between exchanges when the server lets it. A kept connection that
// turns out to be closed before the first byte of an answer is replaced by a new one, once. Handlers are called in that
// order, never from within send(), and on_end exactly once, unless the client is destroyed before: then no more.
// Errors: kUnavailable (no connection, or it broke), kDeadline, kCancelled, kInvalidArgument (the answer is no HTTP, or
// its header is longer than max_header_bytes). No TLS, no redirects, no proxies.
// Ownership: the loop outlives the client. Thread rules: the loop's thread only; resolve() blocks, from any thread.
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

struct HttpUrl {
  std::string host;  // name or literal, an IPv6 one without its brackets
  uint16_t port = 80;
  std::string path;  // "" or "/v1", without a '/' at the end
};

// "http://host[:port][/path]"; other schemes, user names, queries and fragments are errors that say so.
Result<HttpUrl> parse_http_url(std::string_view text);

// Where to connect, and what the Host header says.
struct HttpEndpoint {
  std::string ip;
  uint16_t port = 80;
  std::string host_header;

  static Result<HttpEndpoint> resolve(const HttpUrl& url);
};

struct HttpClientRequest {
  std::string method = "GET";
  std::string target = "/";
  std::vector<std::pair<std::string, std::string>> headers;  // beside Host and Content-Length
  std::string body;
};

struct HttpHead {
  unsigned status = 0;
  std::string content_type;
};

struct HttpHandlers {
  std::function<void(const HttpHead&)> on_head = {};
  std::function<void(std::string_view)> on_body = {};
  std::function<void(const Result<void>&)> on_end = {};
};

struct HttpClientOptions {
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds timeout{600'000};  // of a whole exchange, connecting included
  size_t max_header_bytes = size_t{16} * 1024;
};

class HttpClient {
 public:
  HttpClient(EventLoop& loop, HttpEndpoint endpoint, HttpClientOptions options = {});
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // Not while an exchange runs; on_end may call it.
  void send(HttpClientRequest request, HttpHandlers handlers);
  // Ends the exchange, if one runs, with kCancelled. Its connection closes, which is how the server learns of it.
  void cancel();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace dyn::net
