#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "app/bench_serve_answer.h"
#include "app/bench_serve_load.h"
#include "app/bench_serve_report.h"
#include "app/bench_serve_workload.h"
#include "app/bench_stream.h"
#include "base/test_support.h"
#include "net/scripted_server.h"

namespace dyn::app::bench {
namespace {

using namespace std::chrono_literals;
using net::ScriptedServer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

TEST(Lengths, AreANumberOrARange) {
  EXPECT_EQ(parse_length_range("--x", "7")->most, 7U);
  EXPECT_EQ(parse_length_range("--x", "7:9")->least, 7U);
  EXPECT_EQ(parse_length_range("--x", "7:9")->most, 9U);
  for (const char* wrong : {"", "0", "9:7", "7:", ":7", "1:2:3", "a", "1-2"})
    EXPECT_FALSE(parse_length_range("--x", wrong).ok()) << wrong;
}

TEST(Workload, IsTheSameForASeedAndNumber) {
  const WorkloadOptions options{.model = "m", .input = {5, 50}, .output = {1, 9}, .seed = 3};
  const Workload one(options, {});
  const Workload two(options, {});
  EXPECT_EQ(two.request(7).body, one.request(7).body);
  EXPECT_NE(one.request(8).body, one.request(7).body);
  WorkloadOptions other = options;
  other.seed = 4;
  EXPECT_NE(Workload(other, {}).request(7).body, one.request(7).body);
}

TEST(Workload, LengthsCoverTheirRange) {
  const Workload workload(
      {.model = "m", .endpoint = EndpointType::kCompletions, .input = {2, 4}, .output = {1, 3}, .vocab_size = 2'200},
      {});
  std::set<size_t> inputs;
  std::set<uint32_t> outputs;
  for (uint64_t i = 0; i < 100; ++i) {
    const ServeRequest request = workload.request(i);
    const Json json = Json::parse(request.body);
    inputs.insert(json["prompt"].size());
    outputs.insert(json["max_tokens"].get<uint32_t>());
    EXPECT_EQ(json["max_tokens"], request.output_tokens);
    for (const uint32_t id : json["prompt"]) {
      EXPECT_GE(id, kLeastTokenId);
      EXPECT_LT(id, 2'200U);
    }
  }
  EXPECT_THAT(inputs, ElementsAre(2, 3, 4));
  EXPECT_THAT(outputs, ElementsAre(1, 2, 3));
  EXPECT_EQ(workload.target(), "/v1/completions");
}

TEST(Workload, ChatRequestsStreamAndAskForUsage) {
  const Workload workload({.model = "m", .input = {3, 3}, .output = {5, 5}, .temperature = 0.5}, {});
  const Json json = Json::parse(workload.request(0).body);
  EXPECT_EQ(json["model"], "m");
  EXPECT_EQ(json["stream"], true);
  EXPECT_EQ(json["stream_options"]["include_usage"], true);
  EXPECT_EQ(json["ignore_eos"], true);
  EXPECT_EQ(json["temperature"], 0.5);
  EXPECT_EQ(std::ranges::count(json["messages"][0]["content"].get<std::string>(), ' '), 2);
  EXPECT_EQ(workload.target(), "/v1/chat/completions");
}

class Dataset : public testing::Test {
 protected:
  Result<std::vector<DatasetItem>> read(const std::string& text) {
    const std::string path = dir_ / "set.jsonl";
    std::ofstream(path) << text;
    return read_dataset(path);
  }
  TempDir dir_;
};

TEST_F(Dataset, IsReadLineByLine) {
  auto items =
      read("{\"prompt\": \"a\\nb\", \"output_tokens\": 3, \"id\": 1}\r\n\n{\"messages\": [{\"role\":\"user\"}]}");
  ASSERT_TRUE(items.ok()) << items.error().message;
  ASSERT_EQ(items->size(), 2U);
  EXPECT_EQ(items->at(0).prompt, "a\nb");
  const Workload workload({.model = "m", .output = {8, 8}}, *std::move(items));
  EXPECT_EQ(workload.request(0).output_tokens, 3U);
  EXPECT_EQ(Json::parse(workload.request(2).body)["messages"][0]["content"], "a\nb");
  EXPECT_EQ(workload.request(1).output_tokens, 8U);
  EXPECT_EQ(Json::parse(workload.request(1).body)["messages"], Json::parse(R"([{"role":"user"}])"));
}

TEST_F(Dataset, MistakesNameTheirLine) {
  for (const char* wrong :
       {"{\"prompt\": \"a\"}\n{", "{\"prompt\": \"a\"}\n{}", "{\"prompt\": \"a\"}\n[]",
        "\n{\"prompt\": \"a\", \"messages\": [1]}", "\n{\"messages\": \"a\"}", "\n{\"prompt\": 3}"}) {
    const auto items = read(wrong);
    ASSERT_FALSE(items.ok()) << wrong;
    EXPECT_THAT(items.error().message, HasSubstr("line 2")) << wrong;
  }
  EXPECT_FALSE(read("\n").ok());
  EXPECT_FALSE(read_dataset(dir_ / "absent").ok());
}

// Reads an answer whose pieces come a millisecond after each other.
AnswerOutcome outcome_of(const std::vector<std::string>& pieces, const Result<void>& done = {}, unsigned status = 200,
                         const std::string& type = "text/event-stream") {
  const ServeClock::time_point start{};
  ServeClock::time_point now = start;
  AnswerReader reader(start);
  reader.head({.status = status, .content_type = type});
  for (const std::string& piece : pieces) {
    now += 1ms;
    if (!reader.body(piece, now)) return reader.end(Error{Code::kCancelled, ""}, now);
  }
  return reader.end(done, now + 1ms);
}

std::string token(const std::string& text) {
  return "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" + text + "\"}}]}\n\n";
}
const std::string kRole =
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n";
const std::string kStop = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const std::string kUsage =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":4,\"total_tokens\":11}}\n\n";
const std::string kDone = "data: [DONE]\n\n";

TEST(Answer, TimesTextAndTakesCountsFromUsage) {
  const AnswerOutcome outcome =
      outcome_of({kRole, token("a"), ": ping\n\n", token("bc"), token("d"), kStop, kUsage, kDone});
  ASSERT_FALSE(outcome.failure) << outcome.failure->text;
  EXPECT_EQ(outcome.ttft_us, 2'000U);
  EXPECT_THAT(outcome.itl_us, ElementsAre(2'000, 1'000));
  EXPECT_EQ(outcome.e2el_us, 5'000U);
  EXPECT_EQ(outcome.input_tokens, 7U);
  EXPECT_EQ(outcome.output_tokens, 4U);
  EXPECT_EQ(outcome.events, 3U);
  EXPECT_EQ(outcome.tpot_us(), 1'000U);
}

TEST(Answer, CompletionsAndOtherTexts) {
  const AnswerOutcome outcome =
      outcome_of({"data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n",
                  "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"b\",\"content\":null}}]}\n\n",
                  "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\n\n", kDone});
  ASSERT_FALSE(outcome.failure) << outcome.failure->text;
  EXPECT_EQ(outcome.events, 3U);
  EXPECT_FALSE(outcome.has_usage);
  EXPECT_EQ(outcome.output_tokens, 3U);
}

TEST(Answer, TokensWithoutTextAreBelievedWhenCounted) {
  const AnswerOutcome outcome = outcome_of({kRole, kStop, kUsage, kDone});
  ASSERT_FALSE(outcome.failure) << outcome.failure->text;
  EXPECT_EQ(outcome.ttft_us, 1'000U);
  EXPECT_EQ(outcome.output_tokens, 4U);
}

TEST(Answer, FailuresHaveTheirKind) {
  const auto kind = [](const AnswerOutcome& outcome) { return outcome.failure ? outcome.failure->kind : "none"; };
  const Error lost{Code::kUnavailable, "lost"};
  EXPECT_EQ(kind(outcome_of({token("a"), kDone})), "none");
  EXPECT_EQ(kind(outcome_of({token("a"), kStop})), "none");
  EXPECT_EQ(kind(outcome_of({token("a")}, lost)), "disconnected");
  EXPECT_EQ(kind(outcome_of({token("a")})), "cut short");
  EXPECT_EQ(kind(outcome_of({token("a")}, Error{Code::kDeadline, "late"})), "timeout");
  EXPECT_EQ(kind(outcome_of({token("a")}, invalid_argument("no chunk"))), "bad http");
  EXPECT_EQ(kind(outcome_of({kRole, kDone})), "no token");
  EXPECT_EQ(kind(outcome_of({"data: {\"choices\":[\n\n", kDone})), "bad event");
  EXPECT_EQ(kind(outcome_of({"data: 7\n\n", kDone})), "bad event");
  EXPECT_EQ(kind(outcome_of({"data: " + std::string(2 << 20, 'x')})), "bad event");
  EXPECT_EQ(kind(outcome_of({"data: {\"error\":{\"message\":\"no\"}}\n\n"})), "error event");
  EXPECT_EQ(kind(outcome_of({"{}"}, {}, 200, "application/json")), "not a stream");
  const AnswerOutcome error = outcome_of({"event: error\n: the engine died\n\n"});
  EXPECT_EQ(kind(error), "error event");
  EXPECT_EQ(error.failure->text, "the engine died");
  const AnswerOutcome status = outcome_of({"no ", "worker"}, {}, 503, "text/event-stream");
  EXPECT_EQ(kind(status), "http 503");
  EXPECT_EQ(status.failure->text, "no worker");
  AnswerReader unanswered(ServeClock::time_point{});
  EXPECT_EQ(kind(unanswered.end(lost, ServeClock::time_point{})), "connection");
  EXPECT_TRUE(outcome_of({token("a")}, Error{Code::kCancelled, "c"}).cancelled);
}

constexpr std::string_view kStreamHead =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

void answer_well(ScriptedServer::Peer& peer, const std::string& request) {
  const Json json = Json::parse(request.substr(request.find("\r\n\r\n")));
  const auto tokens = json["max_tokens"].get<unsigned>();
  peer.send(kStreamHead);
  peer.send_chunk(kRole);
  for (unsigned i = 0; i < tokens; ++i) peer.send_chunk(token("t"));
  peer.send_chunk(kStop + "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":" +
                  std::to_string(tokens) + "}}\n\n" + kDone);
  peer.send_chunk("");
}

void serve_well(ScriptedServer::Peer& peer) {
  while (const auto request = peer.read_request()) answer_well(peer, *request);
}

LoadOptions to(const ScriptedServer& server) {
  return {.endpoint = {.ip = "127.0.0.1", .port = server.port(), .host_header = "test"}, .timeout = 20s};
}

LoadResult run(LoadOptions options, const WorkloadOptions& workload_options) {
  const Workload workload(workload_options, {});
  LoadGenerator load(std::move(options), workload);
  load.start();
  EXPECT_TRUE(load.wait(60s));
  return load.result();
}
const WorkloadOptions kWork{.model = "m", .input = {4, 4}, .output = {3, 3}};

TEST(Load, KeepsTheConcurrencyAndCountsEverything) {
  std::atomic<int> now = 0;
  std::atomic<int> most = 0;
  ScriptedServer server([&](ScriptedServer::Peer& peer) {
    while (const auto request = peer.read_request()) {
      const int running = ++now;
      most = std::max(most.load(), running);
      std::this_thread::sleep_for(2ms);
      --now;
      answer_well(peer, *request);
    }
  });
  LoadOptions options = to(server);
  options.max_concurrency = 4;
  options.num_prompts = 20;
  const LoadResult result = run(options, kWork);
  EXPECT_EQ(result.completed, 20U);
  EXPECT_EQ(result.failed, 0U);
  EXPECT_EQ(result.peak_concurrency, 4U);
  EXPECT_LE(most, 4);
  EXPECT_EQ(server.connections(), 4U);
  EXPECT_EQ(result.input_tokens, 200U);
  EXPECT_EQ(result.output_tokens, 60U);
  EXPECT_EQ(result.requested_output_tokens, 60U);
  EXPECT_EQ(result.ttft_us.size(), 20U);
  EXPECT_EQ(result.itl_us.size(), 40U);
  EXPECT_TRUE(std::ranges::is_sorted(result.ttft_us));
  EXPECT_GT(result.duration_s, 0);
}

TEST(Load, ArrivalsAtARateAreAllServed) {
  const ScriptedServer server(serve_well);
  LoadOptions options = to(server);
  options.request_rate = 2'000;
  options.max_concurrency = 3;
  options.num_prompts = 50;
  const LoadResult result = run(options, kWork);
  EXPECT_EQ(result.completed, 50U);
  EXPECT_LE(result.peak_concurrency, 3U);
}

TEST(Load, ADurationEndsTheSendingAndLetsAnswersEnd) {
  const ScriptedServer server(serve_well);
  LoadOptions options = to(server);
  options.max_concurrency = 2;
  options.duration_s = 0.1;
  const LoadResult result = run(options, kWork);
  EXPECT_GT(result.completed, 0U);
  EXPECT_EQ(result.failed + result.cancelled, 0U);
  EXPECT_FALSE(result.interrupted);
}

TEST(Load, EachMisbehaviourIsCountedByKind) {
  // The connection is gone after each: the n-th misbehaves in the n-th way.
  std::atomic<unsigned> next = 0;
  ScriptedServer server([&](ScriptedServer::Peer& peer) {
    while (const auto request = peer.read_request()) {
      switch (next++) {
        case 0:
          peer.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\nno worker");
          break;
        case 1:
          peer.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
          break;
        case 2:
          peer.send(kStreamHead);
          peer.send_chunk(token("a"));
          return;  // within the stream
        case 3:
          peer.send(kStreamHead);
          peer.send_chunk("data: {broken\n\n");
          peer.wait_closed();
          return;
        case 4:
          peer.send(kStreamHead);
          peer.send_chunk("event: error\n: it died\n\n");
          peer.wait_closed();
          return;
        case 5:
          peer.send("220 mail.example.org ESMTP\r\n\r\n");
          return;
        case 6:
          peer.send(kStreamHead);
          peer.send_chunk(token("a"));
          peer.wait_closed();  // for ever
          return;
        default:
          answer_well(peer, *request);
      }
    }
  });
  LoadOptions options = to(server);
  options.num_prompts = 10;
  options.timeout = 300ms;
  const LoadResult result = run(options, kWork);
  EXPECT_EQ(result.failed, 7U);
  EXPECT_EQ(result.completed, 3U);
  EXPECT_EQ(result.output_tokens, 9U);
  std::vector<std::string> kinds;
  for (const auto& [kind, failure] : result.failures) {
    kinds.push_back(kind);
    EXPECT_EQ(failure.count, 1U) << kind;
  }
  EXPECT_THAT(kinds, ElementsAre("bad event", "bad http", "disconnected", "error event", "http 503", "not a stream",
                                 "timeout"));
}

TEST(Load, AnInterruptionCancelsWhatIsUnderWay) {
  std::atomic<int> waiting = 0;
  std::atomic<int> closed = 0;
  ScriptedServer server([&](ScriptedServer::Peer& peer) {
    peer.read_request();
    peer.send(kStreamHead);
    ++waiting;
    peer.wait_closed();
    ++closed;
  });
  LoadOptions options = to(server);
  options.max_concurrency = 3;
  const Workload workload(kWork, {});
  LoadGenerator load(options, workload);
  load.start();
  ASSERT_TRUE(eventually([&] { return waiting == 3; }));
  EXPECT_FALSE(load.wait(0ms));
  load.interrupt();
  ASSERT_TRUE(load.wait(20s));
  const LoadResult result = load.result();
  EXPECT_TRUE(result.interrupted);
  EXPECT_EQ(result.cancelled, 3U);
  EXPECT_EQ(result.failed, 0U);
  EXPECT_TRUE(eventually([&] { return closed == 3; })) << "the server learns of it";
}

TEST(ServeReport, FiguresAndThresholds) {
  LoadResult result;
  result.duration_s = 2;
  result.completed = 4;
  result.failed = 1;
  result.failures["http 503"] = {.count = 1, .example = "no worker\nat all"};
  result.input_tokens = 40;
  result.output_tokens = 100;
  result.events = 50;
  result.ttft_us = {1'000, 2'000, 3'000, 6'000};
  result.itl_us = {500, 1'500};
  const Json json = Json::parse(serve_json({.url = "u", .model = "m"}, result));
  EXPECT_DOUBLE_EQ(json["request_throughput"], 2);
  EXPECT_DOUBLE_EQ(json["output_throughput"], 50);
  EXPECT_DOUBLE_EQ(json["total_token_throughput"], 70);
  EXPECT_DOUBLE_EQ(json["mean_ttft_ms"], 3);
  EXPECT_DOUBLE_EQ(json["median_ttft_ms"], 2);
  EXPECT_DOUBLE_EQ(json["p99_ttft_ms"], 6);
  EXPECT_DOUBLE_EQ(json["p99_itl_ms"], 1.5);
  EXPECT_EQ(json["failures"]["http 503"]["count"], 1);
  EXPECT_EQ(json["request_rate"], "inf");
  const std::string table = serve_table({.url = "u", .model = "m"}, result);
  EXPECT_THAT(table, HasSubstr("1 x http 503: no worker\n"));
  EXPECT_THAT(table, HasSubstr("50.0 output tokens/s"));

  EXPECT_EQ(missed(result, {}).size(), 1U);  // the failed one
  EXPECT_THAT(
      missed(result, {.max_p99_ttft_ms = 6, .max_p99_itl_ms = 1.5, .min_output_throughput = 50, .max_failed = 1}),
      IsEmpty());
  EXPECT_EQ(missed(result, {.max_p99_ttft_ms = 5.9,
                            .max_p99_itl_ms = 1.4,
                            .max_p99_e2el_ms = 1,  // no sample
                            .min_output_throughput = 50.1,
                            .max_failed = 0})
                .size(),
            5U);
  EXPECT_EQ(missed({}, {}).size(), 1U);  // nothing was completed
}

int run_command(std::vector<std::string_view> args) {
  args.insert(args.begin(), "serve");
  return run_bench(args);
}

TEST(ServeCommandLine, WrongArgumentsAreStatusTwo) {
  EXPECT_EQ(run_command({}), 2);
  EXPECT_EQ(run_command({"--url", "http://127.0.0.1:1"}), 2);  // no model
  for (const std::vector<std::string_view>& wrong : std::vector<std::vector<std::string_view>>{
           {"--endpoint-type", "embeddings"},
           {"--max-concurrency", "0"},
           {"--request-rate", "-1"},
           {"--num-prompts", "0"},
           {"--input-len", "9:7"},
           {"--output-len", "x"},
           {"--timeout", "0"},
           {"--json=1"},
           {"--streams", "1"},  // an option of bench stream
           {"--dataset-path", "/absent"},
           {"--url", "https://127.0.0.1"},
           {"--url", "127.0.0.1:8000"},
       }) {
    std::vector<std::string_view> args = {"--model", "m", "--url", "http://127.0.0.1:1"};
    args.insert(args.end(), wrong.begin(), wrong.end());
    EXPECT_NE(run_command(args), 0) << wrong.front();
    if (wrong.front() != "--dataset-path") EXPECT_EQ(run_command(args), 2) << wrong.front();
  }
  EXPECT_EQ(run_command({"--help"}), 0);
}

TEST(ServeCommand, MeasuresAServer) {
  std::mutex mutex;
  std::vector<std::string> requests;
  ScriptedServer server([&](ScriptedServer::Peer& peer) {
    while (const auto request = peer.read_request()) {
      const std::lock_guard lock(mutex);
      requests.push_back(*request);
      answer_well(peer, *request);
    }
  });
  const std::string url = server.url() + "/prefix";
  testing::internal::CaptureStdout();
  const int status = run_command({"--url", url, "--model", "m", "--num-prompts", "6", "--max-concurrency", "2",
                                  "--output-len", "2:5", "--api-key", "secret", "--json"});
  const Json json = Json::parse(testing::internal::GetCapturedStdout());
  EXPECT_EQ(status, 0);
  EXPECT_EQ(json["completed"], 6);
  EXPECT_EQ(json["total_output_tokens"], json["requested_output_tokens"]);
  EXPECT_EQ(json["peak_concurrency"], 2);
  ASSERT_EQ(requests.size(), 7U) << "a warm-up and six";
  EXPECT_THAT(requests[0], testing::StartsWith("POST /prefix/v1/chat/completions HTTP/1.1\r\n"));
  EXPECT_THAT(requests[0], HasSubstr("\r\nAuthorization: Bearer secret\r\n"));
  testing::internal::CaptureStdout();
  EXPECT_EQ(
      run_command({"--url", server.url(), "--model", "m", "--num-prompts", "1", "--min-output-throughput", "1e9"}), 1);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), HasSubstr("1 completed"));
}

TEST(ServeCommand, AServerThatIsDownIsOneClearLine) {
  std::string url;
  {
    const ScriptedServer gone([](ScriptedServer::Peer&) {});
    url = gone.url();
  }
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_command({"--url", url, "--model", "m"}), 1);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("is the server up"));
}

TEST(ServeCommand, CtrlCReportsWhatThereIs) {
  const pthread_t main_thread = ::pthread_self();
  std::atomic<int> requests = 0;
  ScriptedServer server([&](ScriptedServer::Peer& peer) {
    while (const auto request = peer.read_request()) {
      if (++requests <= 4) {
        answer_well(peer, *request);
      } else {
        ::pthread_kill(main_thread, SIGINT);
        peer.wait_closed();
      }
    }
  });
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_command({"--url", server.url(), "--model", "m", "--json"}), 130);
  const Json json = Json::parse(testing::internal::GetCapturedStdout());
  EXPECT_EQ(json["completed"], 3);  // the first was the warm-up
  EXPECT_EQ(json["cancelled"], 1);
  EXPECT_EQ(json["interrupted"], true);
}

}  // namespace
}  // namespace dyn::app::bench
