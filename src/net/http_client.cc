#include "net/http_client.h"

#include <fmt/format.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <charconv>
#include <optional>

#include "net/event_loop.h"
#include "net/local_address.h"

namespace dyn::net {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr size_t kReadChunkBytes = size_t{16} * 1024;

bool is_http_error(const ErrorCode& error) {
  return error.category() == ErrorCode(http::error::bad_method).category();
}

}  // namespace

Result<HttpUrl> parse_http_url(std::string_view text) {
  const auto wrong = [&](std::string_view why) {
    return invalid_argument(fmt::format("'{}' is no http://host:port address: {}", text, why));
  };
  std::string_view rest = text;
  if (rest.starts_with("https://")) return wrong("TLS is not supported");
  if (!rest.starts_with("http://")) return wrong("it must start with http://");
  rest.remove_prefix(7);
  if (rest.find_first_of("?#@ \r\n\t") != std::string_view::npos)
    return wrong("a path is all that may follow the port");
  HttpUrl url;
  if (const size_t slash = rest.find('/'); slash != std::string_view::npos) {
    url.path = rest.substr(slash);
    rest = rest.substr(0, slash);
    while (url.path.ends_with('/')) url.path.pop_back();
  }
  std::string_view port;
  if (rest.starts_with('[')) {
    const size_t end = rest.find(']');
    if (end == std::string_view::npos) return wrong("a bracket is not closed");
    url.host = rest.substr(1, end - 1);
    port = rest.substr(end + 1);
    if (!port.empty() && port.front() != ':') return wrong("only a port may follow the bracket");
  } else {
    const size_t colon = rest.find(':');
    url.host = rest.substr(0, colon);
    if (colon != std::string_view::npos) port = rest.substr(colon);
  }
  if (url.host.empty()) return wrong("the host is missing");
  if (port.empty()) return url;
  port.remove_prefix(1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), url.port);
  if (error != std::errc() || end != port.data() + port.size() || url.port == 0)
    return wrong("the port is a number from 1 to 65535");
  return url;
}

Result<HttpEndpoint> HttpEndpoint::resolve(const HttpUrl& url) {
  auto ip = resolve_host(url.host);
  if (!ip) return ip.error();
  return HttpEndpoint{.ip = *std::move(ip), .port = url.port, .host_header = host_port(url.host, url.port)};
}

// Every pending operation holds the Impl and the number of its exchange; what completes after its exchange's end does
// nothing.
struct HttpClient::Impl : std::enable_shared_from_this<HttpClient::Impl> {
  Impl(EventLoop& event_loop, HttpEndpoint to, HttpClientOptions client_options)
      : endpoint(std::move(to)),
        options(client_options),
        socket(event_loop.context()),
        timer(event_loop.context()),
        buffer(options.max_header_bytes + kReadChunkBytes) {}

  template <class Next>
  auto step(Next next) {
    return [self = shared_from_this(), number = exchange, next](const ErrorCode& error, auto... more) {
      if (number == self->exchange && self->running) next(*self, error, more...);
    };
  }

  void begin(HttpClientRequest request, HttpHandlers to) {
    ++exchange;
    running = true;
    head_seen = false;
    handlers = std::move(to);
    out = fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.target, endpoint.host_header);
    for (const auto& [name, value] : request.headers) out.append(name).append(": ").append(value).append("\r\n");
    if (!request.body.empty() || request.method == "POST")
      out += fmt::format("Content-Length: {}\r\n", request.body.size());
    out.append("\r\n").append(request.body);
    deadline = std::chrono::steady_clock::now() + options.timeout;
    if (buffer.size() > 0) close();  // bytes nobody asked for: not a connection to go on with
    reused = socket.is_open();
    if (reused) {
      limit(deadline);
      write();
    } else {
      connect();
    }
  }

  void limit(std::chrono::steady_clock::time_point when) {
    timer.expires_at(when);
    timer.async_wait(step([when](Impl& self, const ErrorCode& error) {
      if (error || self.timer.expiry() != when) return;  // cancelled, or given another time
      self.close();
      self.end(Error{Code::kDeadline, self.head_seen ? "the answer did not end in time" : "no answer in time"});
    }));
  }

  void connect() {
    limit(std::min(deadline, std::chrono::steady_clock::now() + options.connect_timeout));
    ErrorCode error;
    const auto address = asio::ip::make_address(endpoint.ip, error);
    if (error) {
      asio::post(socket.get_executor(), [self = shared_from_this(), number = exchange, error] {
        if (number == self->exchange && self->running) self->fail("cannot connect", error);
      });
      return;
    }
    socket.async_connect({address, endpoint.port}, step([](Impl& self, const ErrorCode& failed) {
                           if (failed) return self.fail("cannot connect", failed);
                           ErrorCode ignored;
                           self.socket.set_option(tcp::no_delay(true), ignored);
                           self.limit(self.deadline);
                           self.write();
                         }));
  }

  void write() {
    asio::async_write(socket, asio::buffer(out), step([](Impl& self, const ErrorCode& error, size_t) {
                        // A server may answer, 413 for one, and close before it has read everything.
                        if (error && self.reused) return self.fail("the connection broke", error);
                        self.read_head();
                      }));
  }

  void read_head() {
    // Not eager: the parser would keep a chunk back while it reads on for the next one.
    parser.emplace();
    parser->header_limit(static_cast<std::uint32_t>(options.max_header_bytes));
    parser->body_limit(boost::none);
    arm_body();
    http::async_read_header(socket, buffer, *parser, step([](Impl& self, const ErrorCode& error, size_t) {
                              if (error && error != http::error::need_buffer)
                                return self.fail("the connection broke before an answer", error);
                              if (self.parser->get().result_int() == 100) return self.read_head();
                              self.head_seen = true;
                              const auto type = self.parser->get()[http::field::content_type];
                              self.call(self.handlers.on_head,
                                        HttpHead{.status = self.parser->get().result_int(),
                                                 .content_type = std::string(type.data(), type.size())});
                              if (self.running) self.pass_body();
                            }));
  }

  void arm_body() {
    parser->get().body().data = chunk.data();
    parser->get().body().size = chunk.size();
    parser->get().body().more = true;
  }

  // Hands out what the parser has put into `chunk` and goes on reading.
  void pass_body() {
    const size_t got = chunk.size() - parser->get().body().size;
    if (got > 0) {
      call(handlers.on_body, std::string_view(chunk.data(), got));
      if (!running) return;
    }
    if (parser->is_done()) {
      if (!parser->keep_alive()) close();
      end({});
      return;
    }
    arm_body();
    http::async_read_some(socket, buffer, *parser, step([](Impl& self, const ErrorCode& error, size_t) {
                            if (error && error != http::error::need_buffer)
                              return self.fail("the connection broke within the answer", error);
                            self.pass_body();
                          }));
  }

  // A handler may cancel, or destroy the client.
  template <class Handler, class Value>
  void call(const Handler& handler, const Value& value) {
    if (handler) handler(value);
  }

  void fail(std::string_view what, const ErrorCode& error) {
    close();
    const bool closed = error == http::error::end_of_stream || error == http::error::partial_message;
    const bool bad_answer = is_http_error(error) && !closed;
    if (reused && !head_seen && !bad_answer) {
      reused = false;
      connect();
      return;
    }
    if (bad_answer) {
      end(invalid_argument("the answer is no HTTP: " + error.message()));
    } else {
      end(Error{Code::kUnavailable, fmt::format("{}: {}", what, closed ? "closed by the server" : error.message())});
    }
  }

  void close() {
    ErrorCode ignored;
    socket.close(ignored);
    buffer.clear();
  }

  void end(const Result<void>& result) {
    running = false;
    timer.cancel();
    const HttpHandlers last = std::move(handlers);  // on_end may send again
    handlers = {};
    if (last.on_end) last.on_end(result);
  }

  const HttpEndpoint endpoint;
  const HttpClientOptions options;
  tcp::socket socket;
  asio::steady_timer timer;
  beast::flat_buffer buffer;
  std::array<char, kReadChunkBytes> chunk{};
  std::optional<http::response_parser<http::buffer_body>> parser;
  std::string out;
  HttpHandlers handlers;
  std::chrono::steady_clock::time_point deadline;
  uint64_t exchange = 0;
  bool running = false;
  bool reused = false;
  bool head_seen = false;
};

HttpClient::HttpClient(EventLoop& loop, HttpEndpoint endpoint, HttpClientOptions options)
    : impl_(std::make_shared<Impl>(loop, std::move(endpoint), options)) {}

HttpClient::~HttpClient() {
  impl_->running = false;
  impl_->timer.cancel();
  impl_->close();
}

void HttpClient::send(HttpClientRequest request, HttpHandlers handlers) {
  impl_->begin(std::move(request), std::move(handlers));
}

void HttpClient::cancel() {
  Impl& impl = *impl_;
  if (!impl.running) return;
  impl.close();
  ++impl.exchange;  // what is pending ends unheard
  asio::post(impl.socket.get_executor(), [self = impl_, number = impl.exchange] {
    if (number == self->exchange && self->running) self->end(Error{Code::kCancelled, "cancelled"});
  });
}

}  // namespace dyn::net
