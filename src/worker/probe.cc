#include "worker/probe.h"

#include <fmt/format.h>

#include <future>
#include <memory>
#include <utility>

namespace dyn::worker {

engine::RequestId start_probe(engine::Engine& engine, Dispatcher& dispatcher, const ProbeOptions& options,
                              std::function<void(Result<void>)> done) {
  const auto id = dispatcher.open_probe(done);
  engine::Request request;
  request.id = id;
  request.token_ids = {options.bos};
  request.sampling.temperature = 0;
  request.max_tokens = 1;
  request.cache_salt = "dynamo-health-check";
  if (auto submitted = engine.submit(std::move(request)); !submitted) {
    dispatcher.close_probe(id);
    done(submitted.error());
  }
  return id;
}

Result<void> run_probe(engine::Engine& engine, Dispatcher& dispatcher, const ProbeOptions& options) {
  auto promise = std::make_shared<std::promise<Result<void>>>();
  auto answer = promise->get_future();
  const auto id = start_probe(engine, dispatcher, options,
                              [promise](Result<void> result) { promise->set_value(std::move(result)); });
  if (answer.wait_for(options.timeout) == std::future_status::ready) return answer.get();
  dispatcher.close_probe(id);
  engine.abort(id);
  return Error{Code::kDeadline,
               fmt::format("the engine did not answer a one-token request within {} ms", options.timeout.count())};
}

}  // namespace dyn::worker
