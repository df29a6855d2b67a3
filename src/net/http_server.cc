#include "net/http_server.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <exception>
#include <list>
#include <map>
#include <optional>
#include <set>

#include "base/log.h"
#include "net/event_loop.h"
#include "net/local_address.h"

namespace dyn::net {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr char kLog[] = "http";
constexpr std::chrono::milliseconds kAcceptPause(100);  // after running out of descriptors
constexpr std::chrono::milliseconds kLingerTimeout(2000);
constexpr size_t kMaxLingerBytes = size_t{1024} * 1024;
constexpr size_t kReadChunkBytes = size_t{16} * 1024;

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return beast::iequals(a, b);
}

struct Route {
  std::string method;
  AsyncHttpHandler handler;
};

struct Routes {
  std::map<std::string, std::vector<Route>> exact;
  std::map<std::string, std::vector<Route>> below;  // by prefix with its '/' at the end
  HttpHandler fallback;

  [[nodiscard]] const std::vector<Route>* find(const std::string& path) const {
    if (const auto at = exact.find(path); at != exact.end()) return &at->second;
    for (size_t slash = path.rfind('/'); slash != std::string::npos; slash = path.rfind('/', slash - 1)) {
      if (const auto at = below.find(path.substr(0, slash + 1)); at != below.end()) return &at->second;
      if (slash == 0) break;
    }
    return nullptr;
  }
};

HttpResponse text_response(unsigned status, std::string text) {
  HttpResponse response;
  response.status = status;
  response.body = std::move(text);
  return response;
}

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (equal_ignoring_case(key, name)) return value;
  }
  return {};
}

class HttpSession;

// Shared by the server and what still runs on the loop; touched on the loop only, except as noted.
struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  Impl(EventLoop& event_loop, HttpServerOptions server_options)
      : loop(event_loop), options(std::move(server_options)), acceptor(loop.context()), pause(loop.context()) {}

  void accept();
  void add(tcp::socket socket);
  void close_all();

  EventLoop& loop;
  const HttpServerOptions options;
  Routes routes;  // constant after start()
  tcp::acceptor acceptor;
  asio::steady_timer pause;
  std::list<std::shared_ptr<HttpSession>> sessions;  // the one whose state changed last at the end
  bool stopped = false;
  uint16_t bound_port = 0;  // written by start() before anything runs
  bool started = false;     // control thread only
};

// One connection: read a request, answer it, read the next.
class HttpSession : public std::enable_shared_from_this<HttpSession> {
 public:
  using Server = HttpServer::Impl;
  using Place = std::list<std::shared_ptr<HttpSession>>::iterator;

  HttpSession(tcp::socket socket, std::shared_ptr<Server> server)
      : socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        buffer_(server->options.max_header_bytes + kReadChunkBytes),
        server_(std::move(server)) {}

  void begin(Place place) {
    place_ = place;
    ErrorCode ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    wait_for_request();
  }

  // Whether it may be closed to make room: nothing of it is being worked on.
  [[nodiscard]] bool expendable() const { return state_ == State::kWaiting || state_ == State::kReading; }

  // Ends everything now; the session goes once its pending operations are through.
  void close() {
    if (state_ == State::kClosed) return;
    state_ = State::kClosed;
    const auto self = shared_from_this();  // the list may hold the last reference
    ErrorCode ignored;
    timer_.cancel();
    socket_.close(ignored);
    server_->sessions.erase(place_);
  }

 private:
  enum class State { kWaiting, kReading, kHandling, kWriting, kLingering, kClosed };

  void enter(State state) {
    state_ = state;
    server_->sessions.splice(server_->sessions.end(), server_->sessions, place_);
  }

  void close_after(std::chrono::milliseconds limit) {
    timer_.expires_after(limit);
    timer_.async_wait([self = shared_from_this(), round = ++timer_round_](const ErrorCode& error) {
      // A cancel that comes too late still runs the old handler without an error.
      if (!error && round == self->timer_round_) self->close();
    });
  }

  void no_limit() {
    ++timer_round_;
    timer_.cancel();
  }

  // The next request: its first byte may be a long time coming, the rest may not.
  void wait_for_request() {
    if (buffer_.size() > 0) {  // a pipelined one
      read_request();
      return;
    }
    enter(State::kWaiting);
    close_after(server_->options.idle_timeout);
    socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const ErrorCode& error) {
      if (self->state_ == State::kClosed) return;
      if (error) {
        self->close();
      } else {
        self->read_request();
      }
    });
  }

  void read_request() {
    enter(State::kReading);
    close_after(server_->options.request_timeout);
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(server_->options.max_header_bytes));
    parser_->body_limit(server_->options.max_body_bytes);
    http::async_read_header(socket_, buffer_, *parser_, [self = shared_from_this()](const ErrorCode& error, size_t) {
      if (self->state_ == State::kClosed) return;
      if (error) {
        self->fail_read(error);
      } else if (equal_ignoring_case(self->parser_->get()[http::field::expect], "100-continue")) {
        self->write_continue();
      } else {
        self->read_body();
      }
    });
  }

  void write_continue() {
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(socket_, asio::buffer(kContinue), [self = shared_from_this()](const ErrorCode& error, size_t) {
      if (self->state_ == State::kClosed) return;
      if (error) {
        self->close();
      } else {
        self->read_body();
      }
    });
  }

  void read_body() {
    // NOLINTNEXTLINE(bugprone-unchecked-optional-access): read_request() made it
    http::async_read(socket_, buffer_, *parser_, [self = shared_from_this()](const ErrorCode& error, size_t) {
      if (self->state_ == State::kClosed) return;
      if (error) {
        self->fail_read(error);
      } else {
        self->handle();
      }
    });
  }

  void fail_read(const ErrorCode& error) {
    head_ = false;
    keep_alive_ = false;
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      write(text_response(431, "Request header too large"));
    } else if (error == http::error::body_limit) {
      write(text_response(413, "Request body too large"));
    } else if (error.category() == ErrorCode(http::error::bad_method).category() &&
               error != http::error::end_of_stream && error != http::error::partial_message) {
      write(text_response(400, "Bad request: " + error.message()));
    } else {
      close();  // the peer went away
    }
  }

  void handle() {
    enter(State::kHandling);
    no_limit();
    auto message = parser_->release();  // NOLINT(bugprone-unchecked-optional-access): read_request() made it
    parser_.reset();
    keep_alive_ = message.keep_alive();
    old_version_ = message.version() < 11;
    head_ = message.method() == http::verb::head;

    HttpRequest request;
    request.method = std::string(message.method_string());
    const std::string_view target = message.target();
    const size_t query = target.find('?');
    request.path = std::string(target.substr(0, query));
    if (query != std::string_view::npos) request.query = std::string(target.substr(query + 1));
    for (const auto& field : message) request.headers.emplace_back(field.name_string(), field.value());
    request.body = std::move(message.body());

    auto reply = make_reply();
    try {
      dispatch(request, reply);
    } catch (const std::exception& failure) {
      DYN_ERROR(kLog, "the handler of {} {} threw: {}", request.method, request.path, failure.what());
      reply(text_response(500, "Internal error"));
    } catch (...) {
      DYN_ERROR(kLog, "the handler of {} {} threw", request.method, request.path);
      reply(text_response(500, "Internal error"));
    }
  }

  void dispatch(const HttpRequest& request, const HttpReply& reply) {
    const Routes& routes = server_->routes;
    const std::vector<Route>* candidates = routes.find(request.path);
    if (candidates == nullptr) {
      reply(routes.fallback ? routes.fallback(request) : text_response(404, "Not found"));
      return;
    }
    std::string allowed;
    for (const Route& route : *candidates) {
      if (route.method == "*" || route.method == request.method || (head_ && route.method == "GET")) {
        route.handler(request, reply);
        return;
      }
      allowed += (allowed.empty() ? "" : ", ") + route.method + (route.method == "GET" ? ", HEAD" : "");
    }
    HttpResponse response = text_response(405, "Method not allowed");
    response.headers.emplace_back("Allow", allowed);
    reply(std::move(response));
  }

  // A reply for the present request that may be called from anywhere, often, late or never.
  HttpReply make_reply() {
    struct Pending {
      std::weak_ptr<HttpSession> session;
      EventLoop& loop;
      uint64_t request;
      std::atomic<bool> answered = false;

      Pending(std::weak_ptr<HttpSession> to, EventLoop& on, uint64_t number)
          : session(std::move(to)), loop(on), request(number) {}
      Pending(const Pending&) = delete;
      Pending& operator=(const Pending&) = delete;
      ~Pending() { answer(text_response(500, "The handler gave no answer")); }

      void answer(HttpResponse response) {
        if (answered.exchange(true)) return;
        // Through the loop also from the loop's own thread: a handler may reply before it returns.
        auto target = session.lock();
        if (!target) return;
        loop.post([target = std::move(target), number = request, text = std::move(response)]() mutable {
          if (target->state_ == State::kHandling && target->request_number_ == number) target->write(std::move(text));
        });
      }
    };
    auto pending = std::make_shared<Pending>(weak_from_this(), server_->loop, ++request_number_);
    return [pending](HttpResponse response) { pending->answer(std::move(response)); };
  }

  void write(HttpResponse response) {
    enter(State::kWriting);
    close_after(server_->options.write_timeout);
    // By hand: a status, four header lines and a body need no serializer.
    const auto reason = http::obsolete_reason(static_cast<http::status>(response.status));
    out_ = fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n", response.status,
                       std::string_view(reason.data(), reason.size()), response.content_type, response.body.size());
    for (const auto& [name, value] : response.headers) {
      out_.append(name).append(": ").append(value).append("\r\n");
    }
    if (!keep_alive_) {
      out_ += "Connection: close\r\n";
    } else if (old_version_) {
      out_ += "Connection: keep-alive\r\n";
    }
    out_ += "\r\n";
    if (!head_) out_ += response.body;
    asio::async_write(socket_, asio::buffer(out_), [self = shared_from_this()](const ErrorCode& error, size_t) {
      if (self->state_ == State::kClosed) return;
      if (error) {
        self->close();
      } else if (self->keep_alive_) {
        self->wait_for_request();
      } else {
        self->linger();
      }
    });
  }

  // Closing with unread bytes would reset the connection and could take the answer with it.
  void linger() {
    enter(State::kLingering);
    close_after(kLingerTimeout);
    ErrorCode ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    discard();
  }

  void discard() {
    out_.resize(kReadChunkBytes);
    socket_.async_read_some(asio::buffer(out_), [self = shared_from_this()](const ErrorCode& error, size_t got) {
      if (self->state_ == State::kClosed) return;
      self->discarded_bytes_ += got;
      if (error || self->discarded_bytes_ > kMaxLingerBytes) {
        self->close();
      } else {
        self->discard();
      }
    });
  }

  tcp::socket socket_;
  asio::steady_timer timer_;
  uint64_t timer_round_ = 0;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::string out_;
  State state_ = State::kWaiting;
  bool keep_alive_ = false;
  bool head_ = false;
  bool old_version_ = false;  // HTTP/1.0 closes unless told otherwise
  uint64_t request_number_ = 0;
  size_t discarded_bytes_ = 0;
  std::shared_ptr<Server> server_;
  Place place_;
};

void HttpServer::Impl::accept() {
  acceptor.async_accept([self = shared_from_this()](const ErrorCode& error, tcp::socket socket) {
    if (self->stopped) return;
    if (!error) {
      self->add(std::move(socket));
      self->accept();
      return;
    }
    if (error != asio::error::connection_aborted) {
      DYN_WARN(kLog, "cannot accept a connection: {}; trying again", error.message());
    }
    self->pause.expires_after(kAcceptPause);
    self->pause.async_wait([self](const ErrorCode& cancelled) {
      if (!cancelled && !self->stopped) self->accept();
    });
  });
}

void HttpServer::Impl::add(tcp::socket socket) {
  if (sessions.size() >= options.max_connections) {
    const auto victim =
        std::find_if(sessions.begin(), sessions.end(), [](const auto& session) { return session->expendable(); });
    if (victim == sessions.end()) return;  // all are busy: the new one is closed
    (*victim)->close();
  }
  const auto session = std::make_shared<HttpSession>(std::move(socket), shared_from_this());
  session->begin(sessions.insert(sessions.end(), session));
}

void HttpServer::Impl::close_all() {
  stopped = true;
  ErrorCode ignored;
  acceptor.close(ignored);
  pause.cancel();
  while (!sessions.empty()) sessions.front()->close();
}

HttpServer::HttpServer(EventLoop& loop, HttpServerOptions options)
    : impl_(std::make_shared<Impl>(loop, std::move(options))) {}

HttpServer::~HttpServer() {
  stop();
}

void HttpServer::route(const std::string& method, const std::string& path, HttpHandler handler) {
  route_async(method, path, [handler = std::move(handler)](const HttpRequest& request, const HttpReply& reply) {
    reply(handler(request));
  });
}

void HttpServer::route_async(const std::string& method, const std::string& path, AsyncHttpHandler handler) {
  const bool below = path.ends_with("/*");
  auto& table = below ? impl_->routes.below : impl_->routes.exact;
  table[below ? path.substr(0, path.size() - 1) : path].push_back({method, std::move(handler)});
}

void HttpServer::set_fallback(HttpHandler handler) {
  impl_->routes.fallback = std::move(handler);
}

Result<void> HttpServer::start() {
  Impl& server = *impl_;
  const std::string wanted = host_port(server.options.host, server.options.port);
  const auto literal = resolve_host(server.options.host);
  if (!literal) return literal.error().with_context("cannot listen on " + wanted);
  ErrorCode error;
  const tcp::endpoint endpoint(asio::ip::make_address(*literal, error), server.options.port);
  if (!error) server.acceptor.open(endpoint.protocol(), error);
  if (!error) server.acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) server.acceptor.bind(endpoint, error);
  if (!error) server.acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) server.bound_port = server.acceptor.local_endpoint(error).port();
  if (error) {
    ErrorCode ignored;
    server.acceptor.close(ignored);
    std::string advice;
    if (error == asio::error::address_in_use) advice = "; stop the process that listens there or choose another port";
    if (error == asio::error::access_denied) advice = "; ports below 1024 need privileges, choose another one";
    if (error == boost::system::errc::address_not_available) advice = "; no interface of this host has that address";
    return Error{Code::kUnavailable, fmt::format("cannot listen on {}: {}{}", wanted, error.message(), advice)};
  }
  server.started = true;
  server.loop.post([self = impl_] {
    if (!self->stopped) self->accept();
  });
  return {};
}

uint16_t HttpServer::port() const {
  return impl_->bound_port;
}

void HttpServer::stop() {
  if (!std::exchange(impl_->started, false)) return;
  impl_->loop.run_sync([server = impl_.get()] { server->close_all(); });
}

}  // namespace dyn::net
