// The worker under test of `bench stream`: composed as `dynamo-trtllm` composes itself, without discovery and status
// server, which a token never meets.
#include <unistd.h>

#include <cstdio>

#include "app/bench_stream_senders.h"
#include "base/log.h"
#include "base/metrics.h"
#include "engine/mock_engine.h"
#include "net/event_loop.h"
#include "runtime/request_plane/tcp_request_plane.h"
#include "worker/dispatcher.h"
#include "worker/handler.h"

namespace dyn::app::bench {
namespace {

constexpr uint64_t kInstanceId = 0xbe4c4;

engine::MockOptions mock_options(const SenderConfig& config) {
  engine::MockOptions options;
  options.step_ms = std::chrono::duration<double, std::milli>(config.step).count();
  options.tokens = engine::MockTokens::kTimestamp;
  options.timestamp_base = {};  // the clock's own zero, as in stamp_now()
  options.vocab_size = kStampModulus;
  options.max_batch_size = config.streams;
  options.max_seq_len = config.tokens_per_stream + 1024;  // and a prompt
  options.total_kv_blocks = uint64_t{config.streams} * (options.max_seq_len / options.kv_block_size + 1);
  return options;
}

int fail(const Error& error) {
  std::fprintf(stderr, "worker: %s\n", error.message.c_str());
  return 1;
}

}  // namespace

int run_worker(const SenderConfig& config, int control) {
  if (config.pin) pin_to_side(Side::kSender);
  log::Options log_options;
  log_options.filter = "warn";
  log::init(log_options);

  metrics::Registry registry;
  net::LoopPool loops(config.net_threads, "net");
  const auto engine = engine::make_mock_engine(mock_options(config));
  worker::Dispatcher dispatcher(loops);
  dispatcher.set_engine(engine.get());
  auto handler = worker::HandlerFactory::with_built_in_roles().create(
      worker::Role::kAggregated,
      {.engine = *engine, .dispatcher = dispatcher, .policy = worker::RequestPolicy(engine->caps(), {})});
  if (!handler) return fail(handler.error());

  runtime::TcpOptions tcp;
  tcp.host = "127.0.0.1";
  const auto plane = runtime::make_tcp_request_plane(tcp, loops, registry);
  loops.start();
  if (auto done = engine->start(dispatcher); !done) return fail(done.error());
  if (auto done = plane->start(); !done) return fail(done.error());
  auto transport =
      plane->add_endpoint({"bench", "backend", "generate"}, kInstanceId,
                          [&](runtime::IncomingRequest request, std::shared_ptr<runtime::ResponseStream> stream) {
                            (*handler)->handle(std::move(request), std::move(stream));
                          });
  if (!transport) return fail(transport.error());
  if (auto done = write_all(control, transport->address + "\n"); !done) return fail(done.error());

  char byte = 0;
  while (::read(control, &byte, 1) > 0) {  // until the bench closes its end
  }
  plane->drain(std::chrono::seconds(5));
  engine->stop();
  plane->stop();
  loops.stop();
  return 0;
}

}  // namespace dyn::app::bench
