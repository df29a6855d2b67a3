// The requests of `bench serve`: which prompts, which lengths, which JSON.
//
//   Workload workload({.model = "m", .input = {128, 128}, .output = {16, 64}, .seed = 1}, std::move(dataset));
//   ServeRequest request = workload.request(7);     // the same for the same seed and number, whatever was asked before
//
// Random prompts have exact lengths with completions (token ids) and nearly exact ones with chat: short English words,
// of which most vocabularies have one token each, plus the chat template; what the server counted is what is reported.
// Thread rules: request() is const and safe from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dyn::app::bench {

enum class EndpointType : uint8_t { kChat, kCompletions };

// Tokens, both ends included; drawn uniformly.
struct LengthRange {
  uint32_t least = 128;
  uint32_t most = 128;
};

// "128" or "16:512".
Result<LengthRange> parse_length_range(std::string_view name, std::string_view text);

struct WorkloadOptions {
  std::string model;
  EndpointType endpoint = EndpointType::kChat;
  LengthRange input;
  LengthRange output;
  // Of random completions prompts: ids are below it, and not below kLeastTokenId, where special tokens often are.
  uint32_t vocab_size = 32'000;
  uint64_t seed = 0;
  double temperature = 0;
  bool ignore_eos = true;
};

inline constexpr uint32_t kLeastTokenId = 1'000;

// One line of a data set.
struct DatasetItem {
  std::string prompt;          // text, or
  std::string messages;        // JSON: a chat
  uint32_t output_tokens = 0;  // 0: as --output-len says
};

// JSON lines: {"prompt": "..."} or {"messages": [...]}, with "output_tokens" if wanted; other members are passed over.
Result<std::vector<DatasetItem>> read_dataset(const std::string& path);

struct ServeRequest {
  std::string body;
  uint32_t output_tokens = 0;  // asked for
};

class Workload {
 public:
  Workload(WorkloadOptions options, std::vector<DatasetItem> dataset)
      : options_(std::move(options)), dataset_(std::move(dataset)) {}

  [[nodiscard]] ServeRequest request(uint64_t number) const;
  // "/v1/chat/completions" or "/v1/completions".
  [[nodiscard]] std::string_view target() const;

 private:
  const WorkloadOptions options_;
  const std::vector<DatasetItem> dataset_;  // empty: random prompts
};

}  // namespace dyn::app::bench
