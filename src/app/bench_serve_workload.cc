#include "app/bench_serve_workload.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <random>

#include "app/bench_arguments.h"
#include "base/posix.h"
#include "wire/json_reader.h"
#include "wire/json_writer.h"

namespace dyn::app::bench {
namespace {

constexpr size_t kMaxDatasetBytes = size_t{1024} * 1024 * 1024;
constexpr uint32_t kMaxTokens = 10'000'000;

constexpr std::string_view kWords[] = {
    "time",  "year",   "people", "way",     "day",     "man",     "thing",    "woman",   "life",       "child",
    "world", "school", "state",  "family",  "student", "group",   "country",  "problem", "hand",       "part",
    "place", "case",   "week",   "company", "system",  "program", "question", "work",    "government", "number",
    "night", "point",  "home",   "water",   "room",    "mother",  "area",     "money",   "story",      "fact",
    "month", "lot",    "right",  "study",   "book",    "eye",     "job",      "word",    "business",   "issue",
    "side",  "kind",   "head",   "house",   "service", "friend",  "father",   "power",   "hour",       "game",
    "line",  "end",    "member", "law"};

// Not std::uniform_int_distribution: its numbers differ between standard libraries.
uint32_t draw(std::mt19937_64& random, LengthRange range) {
  return range.least + static_cast<uint32_t>(random() % (uint64_t{range.most} - range.least + 1));
}

std::mt19937_64 random_of(uint64_t seed, uint64_t number) {
  return std::mt19937_64(seed * 0x9E3779B97F4A7C15U + number);
}

std::string random_text(std::mt19937_64& random, uint32_t words) {
  std::string text;
  for (uint32_t i = 0; i < words; ++i) {
    if (i > 0) text += ' ';
    text += kWords[random() % std::size(kWords)];
  }
  return text;
}

Result<DatasetItem> read_item(std::string_view line) {
  wire::JsonReader in(as_bytes(line));
  DatasetItem item;
  Buffer messages;
  in.read_object([&](std::string_view key) {
    if (key == "prompt") return in.read(item.prompt);
    if (key == "messages") {
      if (in.peek() != wire::Kind::kArray) return in.fail("a list of messages is expected");
      return in.append_json(messages);
    }
    if (key == "output_tokens") return in.read_unless_null(item.output_tokens);
    return in.skip();
  });
  if (auto done = in.finish(); !done) return done.error();
  item.messages = as_text(messages.view());
  if (item.prompt.empty() == item.messages.empty())
    return invalid_argument("one of \"prompt\" and \"messages\" is needed");
  if (item.output_tokens > kMaxTokens) return invalid_argument("\"output_tokens\" is too large");
  return item;
}

}  // namespace

Result<LengthRange> parse_length_range(std::string_view name, std::string_view text) {
  const size_t colon = text.find(':');
  auto least = parse_number<uint32_t>(name, text.substr(0, colon), 1, kMaxTokens);
  if (!least) return least.error();
  if (colon == std::string_view::npos) return LengthRange{*least, *least};
  auto most = parse_number<uint32_t>(name, text.substr(colon + 1), 1, kMaxTokens);
  if (!most) return most.error();
  if (*most < *least) return invalid_argument(fmt::format("{}: {} ends before it begins", name, text));
  return LengthRange{*least, *most};
}

Result<std::vector<DatasetItem>> read_dataset(const std::string& path) {
  auto file = open_fd(path, O_RDONLY | O_CLOEXEC);
  if (!file) return file.error();
  auto text = read_all(file->get(), kMaxDatasetBytes);
  if (!text) return text.error().with_context(path);
  std::vector<DatasetItem> items;
  size_t line_number = 0;
  for (std::string_view rest = *text; !rest.empty();) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto item = read_item(line);
    if (!item) return item.error().with_context(fmt::format("{}, line {}", path, line_number));
    items.push_back(*std::move(item));
  }
  if (items.empty()) return invalid_argument(path + " holds no request");
  return items;
}

std::string_view Workload::target() const {
  return options_.endpoint == EndpointType::kChat ? "/v1/chat/completions" : "/v1/completions";
}

ServeRequest Workload::request(uint64_t number) const {
  std::mt19937_64 random = random_of(options_.seed, number);
  const uint32_t input = draw(random, options_.input);
  ServeRequest request{.body = {}, .output_tokens = draw(random, options_.output)};
  const DatasetItem* item = dataset_.empty() ? nullptr : &dataset_[number % dataset_.size()];
  if (item != nullptr && item->output_tokens > 0) request.output_tokens = item->output_tokens;

  Buffer out;
  wire::JsonWriter json(out);
  json.begin_object();
  json.member("model", options_.model);
  if (options_.endpoint == EndpointType::kChat) {
    json.key("messages");
    if (item != nullptr && !item->messages.empty()) {
      json.raw(item->messages);
    } else {
      json.begin_array();
      json.begin_object();
      json.member("role", "user");
      json.member("content", item != nullptr ? item->prompt : random_text(random, input));
      json.end_object();
      json.end_array();
    }
  } else {
    json.key("prompt");
    if (item != nullptr) {
      json.value(item->prompt);
    } else {
      json.begin_array();
      const uint32_t first = options_.vocab_size > 2 * kLeastTokenId ? kLeastTokenId : 0;
      for (uint32_t i = 0; i < input; ++i) json.value(draw(random, {.least = first, .most = options_.vocab_size - 1}));
      json.end_array();
    }
  }
  json.member("max_tokens", request.output_tokens);
  json.member("temperature", options_.temperature);
  json.member("stream", true);
  json.key("stream_options");
  json.begin_object();
  json.member("include_usage", true);
  json.end_object();
  if (options_.ignore_eos) json.member("ignore_eos", true);
  json.end_object();
  request.body = as_text(out.view());
  return request;
}

}  // namespace dyn::app::bench
