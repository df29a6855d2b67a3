#include "app/serve.h"

#include <atomic>
#include <iostream>
#include <thread>

#include "app/cli.h"
#include "app/worker_process.h"
#include "base/log.h"
#include "runtime/lifecycle_signals.h"

namespace dyn::app {

namespace {

int refuse(const Error& error) {
  std::cerr << "dynamo-trtllm: " << error.message << '\n';
  return kExitConfiguration;
}

}  // namespace

int serve(const WorkerConfig& config) {
  auto signals = runtime::TerminationSignals::install();
  if (!signals) return refuse(signals.error());

  WorkerProcess process(config);
  process.set_on_engine_dead([&signals = **signals](const Error& error) {
    signals.request({.text = "the engine died: " + error.message, .fatal = true});
  });

  // A model may take minutes to load: signals are obeyed meanwhile. Nothing is registered yet, so there is nothing to
  // clean up and the process may just end.
  Result<void> started;
  std::thread starter([&] {
    started = process.start();
    (*signals)->cancel_wait();
  });
  const auto reason = (*signals)->wait();
  if (reason) {
    DYN_INFO("serve", "{} while starting: nothing was registered", reason->text);
    runtime::end_process(reason->fatal ? runtime::kExitFatal : runtime::kExitOk);
  }
  starter.join();
  if (!started) return refuse(started.error());
  if (auto published = process.publish(); !published) return refuse(published.error());

  const auto outcome = runtime::run_until_terminated(**signals, process.shutdown());
  if (!outcome.complete) runtime::end_process(outcome.exit_code);
  return outcome.exit_code;
}

}  // namespace dyn::app
