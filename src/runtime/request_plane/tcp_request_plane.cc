#include "runtime/request_plane/tcp_request_plane.h"

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <optional>
#include <unordered_set>
#include <vector>

#include "base/ids.h"
#include "base/log.h"
#include "net/local_address.h"
#include "runtime/request_plane/dispatcher_internal.h"
#include "runtime/request_plane/tcp_connection_internal.h"

namespace dyn::runtime {
namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

constexpr std::string_view kLog = "request_plane";
// When the process is out of file descriptors or memory: connections wait in the kernel's backlog meanwhile.
constexpr std::chrono::milliseconds kAcceptBackoff{100};

class TcpRequestPlane final : public RequestPlane {
 public:
  TcpRequestPlane(const TcpOptions& options, net::LoopPool& loops, metrics::Registry& registry)
      : options_(options),
        loops_(loops),
        dispatcher_(
            Dispatcher::create(loops, registry, options.admission, options.call_home, options.max_message_bytes)),
        connections_(loops.size()) {}
  ~TcpRequestPlane() override { stop(); }

  Result<void> start() override;
  Result<Transport> add_endpoint(const EndpointId& id, uint64_t instance_id, RequestHandler handler,
                                 const metrics::Labels& labels) override;
  void remove_endpoint(const EndpointId& id) override { dispatcher_->remove_routes(id); }
  bool drain(std::chrono::milliseconds deadline) override { return dispatcher_->drain(deadline); }
  void stop() override;
  [[nodiscard]] size_t active_streams() const override { return dispatcher_->active_streams(); }

 private:
  using Connections = std::unordered_set<std::shared_ptr<TcpConnection>>;

  Result<void> listen(const std::string& host);
  void accept();
  void on_accept(const boost::system::error_code& error, tcp::socket socket, net::EventLoop& loop);
  void add_connection(net::EventLoop& loop, tcp::socket socket);

  // The listener lives on the first loop.
  net::EventLoop& listener_loop() { return loops_.at(0); }

  const TcpOptions options_;
  net::LoopPool& loops_;
  const std::shared_ptr<Dispatcher> dispatcher_;
  std::string advertised_;  // "host:port"
  std::optional<tcp::acceptor> acceptor_;
  std::optional<asio::steady_timer> backoff_;
  unsigned next_loop_ = 0;
  std::vector<Connections> connections_;  // one set a loop, each touched by its loop only
  bool stopped_ = false;
};

Result<void> TcpRequestPlane::start() {
  if (acceptor_) return internal_error("the TCP request plane was started twice");
  std::string host = net::local_address();
  if (!options_.host.empty()) {
    auto resolved = net::resolve_host(options_.host);
    if (!resolved) return resolved.error().with_context("TCP request plane");
    host = std::move(*resolved);
  }
  if (auto listening = listen(host); !listening) return listening;
  const std::string reachable = net::is_wildcard(host) ? net::local_address() : host;
  advertised_ = net::host_port(reachable, acceptor_->local_endpoint().port());
  DYN_INFO(kLog, "listening on {}", advertised_);
  backoff_.emplace(listener_loop().context());
  listener_loop().post([this] { accept(); });
  return {};
}

Result<void> TcpRequestPlane::listen(const std::string& host) {
  boost::system::error_code error;
  const tcp::endpoint endpoint(asio::ip::make_address(host, error), options_.port);
  tcp::acceptor acceptor(listener_loop().context());
  if (!error) acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(options_.listen_backlog, error);
  if (error) {
    return Error{Code::kUnavailable, "TCP request plane: cannot listen on " + net::host_port(host, options_.port) +
                                         ": " + error.message() + " (see DYN_TCP_RPC_HOST and DYN_TCP_RPC_PORT)"};
  }
  acceptor_.emplace(std::move(acceptor));
  return {};
}

Result<Transport> TcpRequestPlane::add_endpoint(const EndpointId& id, uint64_t instance_id, RequestHandler handler,
                                                const metrics::Labels& labels) {
  if (!acceptor_) return internal_error("the TCP request plane is not started");
  // Callers copy whatever path the instance record has. Official workers write the short form up to 1.5 and the long
  // one in 1.6; both are served, and the short one is published unless a namesake in another component has it.
  const std::string hex = to_hex(instance_id);
  const std::string short_path = hex + "/" + id.name;
  const std::string long_path = hex + "/" + id.ns + "/" + id.component + "/" + id.name;
  auto endpoint = std::make_shared<Endpoint>(dispatcher_->registry(), id, instance_id, std::move(handler), labels);
  if (auto added = dispatcher_->add_route(long_path, endpoint); !added) return added.error();
  const bool is_short = dispatcher_->add_route(short_path, endpoint).ok();
  return Transport{"tcp", advertised_ + "/" + (is_short ? short_path : long_path)};
}

void TcpRequestPlane::accept() {
  if (!acceptor_->is_open()) return;
  net::EventLoop& loop = loops_.at(next_loop_++ % loops_.size());
  acceptor_->async_accept(loop.context(), [this, &loop](const boost::system::error_code& error, tcp::socket socket) {
    on_accept(error, std::move(socket), loop);
  });
}

void TcpRequestPlane::on_accept(const boost::system::error_code& error, tcp::socket socket, net::EventLoop& loop) {
  if (error == asio::error::operation_aborted || !acceptor_->is_open()) return;
  if (error == asio::error::connection_aborted) {
    accept();
    return;
  }
  if (error) {
    DYN_WARN(kLog, "cannot accept a connection: {}", error.message());
    dispatcher_->metrics().accept_backoffs.increment();
    backoff_->expires_after(kAcceptBackoff);
    backoff_->async_wait([this](const boost::system::error_code& cancelled) {
      if (!cancelled) accept();
    });
    return;
  }
  // Asio's handlers must be copyable inside std::function; the socket is not.
  auto shared = std::make_shared<tcp::socket>(std::move(socket));
  loop.post([this, &loop, shared] { add_connection(loop, std::move(*shared)); });
  accept();
}

void TcpRequestPlane::add_connection(net::EventLoop& loop, tcp::socket socket) {
  Connections& connections = connections_[loop.index()];
  auto connection = std::make_shared<TcpConnection>(
      loop, std::move(socket), dispatcher_, wire::RequestFrameLimits{.max_frame_bytes = options_.max_message_bytes},
      [&connections](TcpConnection& closed) { connections.erase(closed.shared_from_this()); });
  connections.insert(connection);
  connection->start();
}

void TcpRequestPlane::stop() {
  if (stopped_) return;
  stopped_ = true;
  // The acceptor first; what it had accepted is on its way to the other loops before they are asked to close.
  listener_loop().run_sync([&] {
    boost::system::error_code ignored;
    if (acceptor_) acceptor_->close(ignored);
    if (backoff_) backoff_->cancel();
  });
  for (unsigned i = 0; i < loops_.size(); ++i) {
    loops_.at(i).run_sync([&] {
      const Connections open = std::exchange(connections_[i], {});
      for (const auto& connection : open) connection->close();
    });
  }
  dispatcher_->stop();
}

}  // namespace

std::unique_ptr<RequestPlane> make_tcp_request_plane(const TcpOptions& options, net::LoopPool& loops,
                                                     metrics::Registry& registry) {
  return std::make_unique<TcpRequestPlane>(options, loops, registry);
}

}  // namespace dyn::runtime
