// The model deployment card: what a worker publishes about its model, and the model's files that frontends load.
//
//   auto files = find_model_files("/models/tiny-llama");
//   ModelCard card{.display_name = "tiny-llama", .files = *files, .context_length = 8192, .kv_cache_block_size = 32};
//   card.runtime.max_num_seqs = 64;
//   auto json = encode_model_card(card);      // the card_json of a model record (wire/records.h)
//
// The card is a superset that frontends 0.8 ... 1.6 read alike: every version takes the members it knows.
// Frontends since 1.5 verify the checksums, so the digests are real BLAKE3 over the whole files (tokenizers of tens of
// megabytes take about as many milliseconds): once at start, not on a net thread.
// Facts: lib/llm/src/model_card.rs, lib/llm/src/local_model/runtime_config.rs. Thread rules: plain values and
// functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace dyn::llm {

struct ModelFile {
  std::string path;      // absolute
  std::string checksum;  // "blake3:" and 64 lower-case hex digits
  uint64_t size = 0;     // bytes
};

// Files of a model directory, as far as a frontend needs them.
struct ModelFiles {
  std::string directory;  // absolute
  ModelFile config;       // config.json
  ModelFile tokenizer;    // tokenizer.json
  std::optional<ModelFile> tokenizer_config;
  std::optional<ModelFile> generation_config;
  std::optional<ModelFile> chat_template;  // chat_template.jinja, or the operator's own
  bool custom_chat_template = false;
  bool has_chat_template = false;  // in a file of its own or inside tokenizer_config.json
  // max_position_embeddings of config.json, else model_max_length of tokenizer_config.json.
  std::optional<uint32_t> max_context_length;
  std::optional<uint32_t> vocab_size;  // of config.json, when it says so at its top
};

// Reads and digests the files. `custom_chat_template`: a path that replaces the directory's own template; empty: none.
// `tokenizer_directory`: where tokenizer and chat template are, when not in the model's directory.
// Errors name the file: kNotFound for a missing one, kInvalidArgument for one that is no JSON object.
Result<ModelFiles> find_model_files(const std::string& directory, const std::string& custom_chat_template = {},
                                    const std::string& tokenizer_directory = {});

// Digest and size of one file.
Result<ModelFile> digest_file(const std::string& path);

// What is known only to the worker and its engine. Everything not set is written as null, which frontends take for
// unknown.
struct RuntimeConfig {
  std::optional<uint64_t> total_kv_blocks;
  std::optional<uint64_t> max_num_seqs;
  std::optional<uint64_t> max_num_batched_tokens;
  std::string tool_call_parser;  // name of a frontend's parser; empty: none
  std::string reasoning_parser;
  bool exclude_tools_when_tool_choice_none = true;
  uint32_t data_parallel_start_rank = 0;
  uint32_t data_parallel_size = 1;
  bool enable_local_indexer = true;  // always written: the default is false in 0.8 and true since 1.0
  // Lets frontends since 1.5 refuse prompts that cannot fit; without it they check no length.
  bool token_budget = true;
};

enum class WorkerType : uint8_t { kAggregated, kPrefill, kDecode, kEncode };
std::string_view to_string(WorkerType type);

struct ModelCard {
  std::string display_name;  // what clients name as "model"; its slug is derived
  std::string source_path;   // empty: files.directory
  ModelFiles files;
  std::vector<std::string> aliases;
  uint32_t context_length = 0;  // prompt + answer; 0: files.max_context_length
  uint32_t kv_cache_block_size = 0;
  uint32_t migration_limit = 0;  // read by 0.8 only
  // "Chat | Completions", "Completions", "Prefill", ... Empty: derived from worker type and chat template.
  std::string model_type;
  std::string model_input = "Tokens";
  WorkerType worker_type = WorkerType::kAggregated;
  // Peers without which frontends since 1.5 do not show the model: alternatives of worker types.
  std::vector<std::vector<WorkerType>> needs;
  std::string user_data_json;  // free JSON; empty: none
  RuntimeConfig runtime;
};

// The flags that the card will carry: as forced, else "Prefill" for a prefill worker, "" for an encoder, "Completions"
// where there is no chat template (frontends refuse a chat card without one), "Chat | Completions" otherwise.
std::string resolve_model_type(const ModelCard& card);

// kInvalidArgument names what is missing or cannot be published.
Result<std::string> encode_model_card(const ModelCard& card);

}  // namespace dyn::llm
