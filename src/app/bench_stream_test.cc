#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "app/bench_stream.h"
#include "app/bench_stream_protocol.h"
#include "app/bench_stream_report.h"
#include "app/bench_stream_senders.h"
#include "app/bench_stream_sink.h"
#include "app/bench_stream_stats.h"
#include "base/test_support.h"
#include "llm/output.h"
#include "llm/request.h"
#include "wire/frame.h"
#include "wire/records.h"

namespace dyn::app::bench {
namespace {

using namespace std::chrono_literals;

Buffer encoded(Codec codec, const std::vector<llm::TokenId>& tokens) {
  Buffer out;
  llm::encode_chunk(out, codec == Codec::kJson ? llm::Codec::kJson : llm::Codec::kMsgpack, {.tokens = tokens});
  return out;
}

class BothCodecs : public testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(Codecs, BothCodecs, testing::Values(Codec::kJson, Codec::kMsgpack));

TEST_P(BothCodecs, ScanFindsWhatTheWorkerEncodes) {
  for (const std::vector<llm::TokenId>& tokens :
       {std::vector<llm::TokenId>{0}, {127}, {128}, {65'536}, {4'000'000'000}, {1, 300, 70'000}}) {
    const Buffer item = encoded(GetParam(), tokens);
    const ItemView view = scan_item(item.view(), GetParam());
    EXPECT_EQ(view.token_count, tokens.size());
    EXPECT_EQ(view.first_token, tokens.front());
    EXPECT_EQ(view.last_token, tokens.back());
    EXPECT_FALSE(view.final);
  }
}

TEST_P(BothCodecs, ScanSurvivesEveryTruncation) {
  const Buffer item = encoded(GetParam(), {1, 300, 70'000});
  for (size_t size = 0; size < item.size(); ++size) {
    const std::vector<std::byte> part(item.data(),
                                      item.data() + size);  // its own memory, so that a sanitizer sees the end
    EXPECT_LE(scan_item(part, GetParam()).token_count, 3U);
  }
}

TEST_P(BothCodecs, FinalItemHasNoTokens) {
  Buffer item;
  llm::encode_complete_final(item, GetParam() == Codec::kJson ? llm::Codec::kJson : llm::Codec::kMsgpack);
  const ItemView view = scan_item(item.view(), GetParam());
  EXPECT_TRUE(view.final);
  EXPECT_EQ(view.token_count, 0U);
}

// The bare loop must send what the worker sends, byte for byte.
TEST_P(BothCodecs, TemplateRendersTheWorkersFrame) {
  const Buffer sample = encoded(GetParam(), {70'000});
  auto frame = FrameTemplate::from_item(sample.view(), GetParam());
  ASSERT_TRUE(frame.ok());
  for (const uint32_t token : {65'536U, 123'456'789U, kStampModulus - 1}) {
    const Buffer item = encoded(GetParam(), {token});
    Buffer expected;
    wire::encode_two_part(expected, {}, item.view());
    std::vector<std::byte> got(frame->max_bytes());
    got.resize(frame->render(got.data(), token));
    EXPECT_EQ(as_text(got), as_text(expected.view())) << token;
  }
}

TEST_P(BothCodecs, TemplateNeedsExactlyOneToken) {
  EXPECT_FALSE(FrameTemplate::from_item(encoded(GetParam(), {1, 2}).view(), GetParam()).ok());
  EXPECT_FALSE(FrameTemplate::from_item({}, GetParam()).ok());
}

TEST_P(BothCodecs, RequestIsWhatAWorkerDecodes) {
  Target target{.host = "127.0.0.1", .port = 1, .path = "abc/generate", .codec = GetParam()};
  Buffer out;
  ASSERT_TRUE(append_request(
      out, target, {.stream = 7, .model = "m", .prompt_tokens = 5, .max_tokens = 9, .call_home = "127.0.0.1:5"}));
  wire::RequestFrame frame;
  ASSERT_EQ(wire::decode_request_frame(out.view(), {}, frame).state, wire::FrameState::kFrame);
  EXPECT_EQ(frame.path, "abc/generate");
  auto parts = wire::decode_whole_two_part(frame.payload);
  ASSERT_TRUE(parts.ok());
  auto control = wire::decode_control_message(parts->header);
  ASSERT_TRUE(control.ok()) << control.error().message;
  EXPECT_EQ(control->payload_codec, GetParam());
  EXPECT_EQ(control->connection.port, 5);
  auto stream = stream_of_subject(control->connection.subject);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(*stream, 7U);
  auto request =
      llm::decode_request(parts->data, GetParam() == Codec::kJson ? llm::Codec::kJson : llm::Codec::kMsgpack);
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->token_ids.size(), 5U);
  EXPECT_EQ(request->stop.max_tokens, 9U);
  EXPECT_TRUE(request->stop.ignore_eos);
}

TEST(Subject, RejectsForeignOnes) {
  for (const char* subject : {"", "00000000-0000-4000-8000-", "00000000-0000-4000-8000-00000000000x",
                              "00000000-0000-4000-8000-0000000000001", "6f1c2a34-8f57-4f0e-9d0b-2f8f6f2b7c11"}) {
    EXPECT_FALSE(stream_of_subject(subject).ok()) << subject;
  }
}

TEST(TargetAddress, PartsAndMistakes) {
  auto target = parse_target("10.0.0.21:40123/abc/ns/c/generate");
  ASSERT_TRUE(target.ok());
  EXPECT_EQ(target->host, "10.0.0.21");
  EXPECT_EQ(target->port, 40123);
  EXPECT_EQ(target->path, "abc/ns/c/generate");
  for (const char* wrong : {"", "host", "1.2.3.4:5", "1.2.3.4/x", "1.2.3.4:99999/x", "1.2.3.4:0/x", "1.2.3.4:1/"}) {
    EXPECT_FALSE(parse_target(wrong).ok()) << wrong;
  }
}

TEST(Instances, FiltersAndSkipsWhatItCannotRead) {
  TempDir dir;
  std::filesystem::create_directories(dir / "v1/instances");
  const auto put = [&](const std::string& name, const std::string& text) {
    std::ofstream(dir / ("v1/instances/" + name)) << text;
  };
  wire::InstanceRecord record{.ns = "dynamo",
                              .component = "backend",
                              .endpoint = "generate",
                              .instance_id = 1,
                              .transport_kind = "tcp",
                              .transport_address = "127.0.0.1:9/1/generate",
                              .device_type = "",
                              .request_plane_codec = "msgpack"};
  put("a", wire::encode_instance_record(record));
  record.endpoint = "clear_kv_blocks";
  put("b", wire::encode_instance_record(record));
  put("c", "{\"type\":");
  put(".tmp_d", "x");
  EXPECT_EQ(read_instances(dir.path(), {.ns = "other"}).size(), 0U);
  const auto found = read_instances(dir.path(), {.ns = "dynamo", .component = "backend"});
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].codec, Codec::kMsgpack);
  EXPECT_EQ(found[0].path, "1/generate");
  EXPECT_TRUE(read_instances(dir / "nowhere", {}).empty());
}

TEST(Stamps, DistanceGoesAcrossTheWrap) {
  EXPECT_EQ(stamp_distance_us(5, 3), 2);
  EXPECT_EQ(stamp_distance_us(3, 5), -2);
  EXPECT_EQ(stamp_distance_us(2, kStampModulus - 3), 5);
  EXPECT_EQ(stamp_distance_us(kStampModulus - 3, 2), -5);
  EXPECT_LT(stamp_now(), kStampModulus);
}

TEST(Statistics, PercentilesAreNearestRank) {
  std::vector<uint32_t> values;
  EXPECT_EQ(percentile(values, 0.5), 0);
  for (uint32_t i = 1; i <= 100; ++i) values.push_back(i);
  EXPECT_EQ(percentile(values, 0.5), 50);
  EXPECT_EQ(percentile(values, 0.99), 99);
  EXPECT_EQ(percentile(values, 0.999), 100);
  EXPECT_EQ(percentile({7}, 0.5), 7);
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
}

TEST(ProcessUsage, SeesWorkOfAnotherProcess) {
  auto child = Child::start([](int control) {
    char byte = 0;
    (void)!::read(control, &byte, 1);  // until the test lets it go
    return 0;
  });
  ASSERT_TRUE(child.ok());
  auto idle = read_process_usage(child->pid());
  ASSERT_TRUE(idle.ok()) << idle.error().message;
  auto own_before = read_process_usage(::getpid());
  volatile uint64_t sum = 0;
  while (true) {
    for (int i = 0; i < 100'000; ++i) sum = sum + 1;
    auto own = read_process_usage(::getpid());
    ASSERT_TRUE(own.ok());
    if (usage_between(*own_before, *own).cpu_ns > 5'000'000) break;
  }
  auto still = read_process_usage(child->pid());
  ASSERT_TRUE(still.ok());
  EXPECT_LT(usage_between(*idle, *still).cpu_ns, 5'000'000U);  // our work is not booked on it
  EXPECT_TRUE(child->finish().ok());
  EXPECT_FALSE(read_process_usage(1 << 22).ok());
}

TEST(ChildProcess, TellsHowItEnded) {
  auto failing = Child::start([](int) { return 3; });
  ASSERT_TRUE(failing.ok());
  auto line = failing->read_line(10s);
  EXPECT_FALSE(line.ok());
  auto done = failing->finish();
  ASSERT_FALSE(done.ok());
  EXPECT_NE(done.error().message.find("status 3"), std::string::npos);

  auto talking = Child::start([](int control) { return write_all(control, "one\ntwo\n").ok() ? 0 : 1; });
  ASSERT_TRUE(talking.ok());
  EXPECT_EQ(talking->read_line(10s).value(), "one");
  EXPECT_EQ(talking->read_line(10s).value(), "two");
  EXPECT_TRUE(talking->finish().ok());
}

SinkOptions small_run(unsigned streams) {
  SinkOptions options;
  options.streams = streams;
  options.tokens_per_stream = 400;
  options.step = 2ms;
  options.settle = 50ms;
  options.window = 200ms;
  return options;
}

SenderConfig sender_for(const SinkOptions& sink) {
  return {.streams = sink.streams, .tokens_per_stream = sink.tokens_per_stream, .step = sink.step, .pin = false};
}

TEST(SinkRun, BareSenderArrivesWhole) {
  Sink sink(small_run(5));
  ASSERT_TRUE(sink.listen().ok());
  const Buffer item = encoded(Codec::kMsgpack, {70'000});
  const auto frame = FrameTemplate::from_item(item.view(), Codec::kMsgpack);
  ASSERT_TRUE(frame.ok());
  auto child = Child::start([&](int) { return run_bare_sender(sender_for(small_run(5)), sink.address(), *frame); });
  ASSERT_TRUE(child.ok());
  sink.measure(child->pid());
  auto report = sink.run({});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_TRUE(child->finish().ok());
  EXPECT_TRUE(report->lossless());
  EXPECT_EQ(report->total_tokens, 5U * 400U);
  EXPECT_GT(report->tokens, 0U);
  EXPECT_EQ(report->latency_us.size(), report->tokens);
  EXPECT_GT(report->usage.cpu_ns, 0U);
}

TEST_P(BothCodecs, WorkerArrivesWhole) {
  SinkOptions options = small_run(5);
  auto child = Child::start([&](int control) { return run_worker(sender_for(options), control); });
  ASSERT_TRUE(child.ok());
  auto address = child->read_line(20s);
  ASSERT_TRUE(address.ok()) << address.error().message;
  auto target = parse_target(*address);
  ASSERT_TRUE(target.ok());
  target->codec = GetParam();
  options.pid = child->pid();
  Sink sink(options);
  ASSERT_TRUE(sink.listen().ok());
  auto report = sink.run({*target});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_TRUE(child->finish().ok());
  EXPECT_TRUE(report->lossless());
  EXPECT_EQ(report->total_tokens, 5U * 400U);
  EXPECT_TRUE(FrameTemplate::from_item(report->sample_item, GetParam()).ok());
}

// A sender that drops, doubles or swaps tokens, or dies, must not pass.
TEST(SinkRun, NoticesLossAndSilence) {
  const SinkOptions wanted = small_run(3);
  const Buffer item = encoded(Codec::kMsgpack, {70'000});
  const auto frame = FrameTemplate::from_item(item.view(), Codec::kMsgpack);
  {
    Sink sink(wanted);
    ASSERT_TRUE(sink.listen().ok());
    SenderConfig less = sender_for(wanted);
    less.tokens_per_stream -= 3;
    auto child = Child::start([&](int) { return run_bare_sender(less, sink.address(), *frame); });
    auto report = sink.run({});
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_EQ(report->lost_tokens, 9U);
    EXPECT_FALSE(report->lossless());
  }
  {
    SinkOptions impatient = wanted;
    impatient.ramp_limit = 100ms;
    Sink sink(impatient);
    ASSERT_TRUE(sink.listen().ok());
    auto report = sink.run({});
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.error().code, Code::kDeadline);
  }
  {
    Sink sink(wanted);
    ASSERT_TRUE(sink.listen().ok());
    SenderConfig few = sender_for(wanted);
    few.tokens_per_stream = 5;
    auto child = Child::start([&](int) { return run_bare_sender(few, sink.address(), *frame); });
    auto report = sink.run({});
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_TRUE(report->window_cut_short);
  }
}

TEST(Report, RatioIsTheMedianOfTheRounds) {
  StreamResult row{.streams = 2, .step_ms = 1, .worker = {}, .bare = {}};
  for (const double worker : {2.0, 6.0, 9.0}) row.worker.push_back({.cpu_us_per_token = worker});
  for (const double bare : {1.0, 2.0, 9.0}) row.bare.push_back({.cpu_us_per_token = bare});
  EXPECT_EQ(row.ratio(), 2.0);
  const auto json = nlohmann::json::parse(to_json({row}));
  EXPECT_EQ(json["results"][0]["ratio"], 2.0);
  EXPECT_EQ(json["results"][0]["worker"]["cpu_us_per_token"], 6.0);
  EXPECT_EQ(json["results"][0]["worker"]["rounds"].size(), 3U);
  EXPECT_NE(to_table({row}).find("2.00"), std::string::npos);
}

int run(std::vector<std::string_view> args) {
  return run_bench(args);
}

TEST(CommandLine, WrongArgumentsAreStatusTwo) {
  EXPECT_EQ(run({}), 2);
  EXPECT_EQ(run({"walk"}), 2);
  EXPECT_EQ(run({"stream", "--stream", "1"}), 2);
  EXPECT_EQ(run({"stream", "--streams", "1,x"}), 2);
  EXPECT_EQ(run({"stream", "--streams", "0"}), 2);
  EXPECT_EQ(run({"stream", "--streams"}), 2);
  EXPECT_EQ(run({"stream", "--json=1"}), 2);
  EXPECT_EQ(run({"stream", "--baseline", "--no-baseline"}), 2);
  EXPECT_EQ(run({"stream", "--duration", "nan"}), 2);
  EXPECT_EQ(run({"stream", "--pid", "1"}), 2);  // an option of the sink
  EXPECT_EQ(run({"sink"}), 2);
  EXPECT_EQ(run({"stream", "--help"}), 0);
}

TEST(CommandLine, SinkWithoutARecordFails) {
  TempDir dir;
  EXPECT_EQ(run({"sink", "--instance-dir", dir.path(), "--wait", "0"}), 1);
}

}  // namespace
}  // namespace dyn::app::bench
