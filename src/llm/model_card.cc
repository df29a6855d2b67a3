#include "llm/model_card.h"

#include "wire/json_reader.h"
#include "wire/json_writer.h"
#include "wire/records.h"

namespace dyn::llm {
namespace {

using wire::JsonWriter;

bool has_flag(std::string_view types, std::string_view flag) {
  while (!types.empty()) {
    const size_t bar = types.find('|');
    std::string_view part = types.substr(0, bar);
    const size_t first = part.find_first_not_of(' ');
    if (first != std::string_view::npos) part = part.substr(first, part.find_last_not_of(' ') - first + 1);
    if (part == flag) return true;
    if (bar == std::string_view::npos) break;
    types.remove_prefix(bar + 1);
  }
  return false;
}

void write_file_members(JsonWriter& json, const ModelFile& file, bool with_size) {
  json.member("path", file.path);
  json.member("checksum", file.checksum);
  if (with_size) json.member("size", file.size);
}

void write_file(JsonWriter& json, const ModelFile& file) {
  json.begin_object();
  write_file_members(json, file, true);
  json.end_object();
}

// {"hf_config_json":{"path":...,"checksum":...,"size":...}}
void write_tagged_file(JsonWriter& json, std::string_view name, std::string_view tag, const ModelFile& file) {
  json.key(name);
  json.begin_object();
  json.key(tag);
  write_file(json, file);
  json.end_object();
}

// 0.8 wants path and checksum in the object, later versions is_custom and file: each finds its own.
void write_chat_template(JsonWriter& json, const ModelFile& file, bool is_custom) {
  json.key("chat_template_file");
  json.begin_object();
  json.key("hf_chat_template");
  json.begin_object();
  json.member("is_custom", is_custom);
  json.key("file");
  write_file(json, file);
  write_file_members(json, file, false);
  json.end_object();
  json.end_object();
}

void write_name_or_null(JsonWriter& json, std::string_view key, const std::string& name) {
  json.key(key);
  if (name.empty()) {
    json.null();
  } else {
    json.value(name);
  }
}

void write_runtime_config(JsonWriter& json, const RuntimeConfig& config, uint32_t context_length) {
  json.key("runtime_config");
  json.begin_object();
  if (context_length > 0) json.member("context_length", context_length);
  json.member("total_kv_blocks", config.total_kv_blocks);
  json.member("max_num_seqs", config.max_num_seqs);
  json.member("max_num_batched_tokens", config.max_num_batched_tokens);
  write_name_or_null(json, "tool_call_parser", config.tool_call_parser);
  write_name_or_null(json, "reasoning_parser", config.reasoning_parser);
  json.member("tool_call_arguments_format", "json_string");
  json.member("structural_tag_mode", "off");
  json.member("structural_tag_scope", "auto");
  json.member("structural_tag_schema", "auto");
  json.member("exclude_tools_when_tool_choice_none", config.exclude_tools_when_tool_choice_none);
  json.member("data_parallel_start_rank", config.data_parallel_start_rank);
  json.member("data_parallel_size", config.data_parallel_size);
  json.member("enable_local_indexer", config.enable_local_indexer);
  json.member("enable_eagle", false);
  if (config.token_budget && context_length > 0) {
    json.key("runtime_data");
    json.begin_object();
    json.key("token_budget");
    json.begin_object();
    json.member("combined_limit", context_length);
    json.member("reject_prompt_overflow", true);
    json.member("reject_total_overflow", false);
    json.end_object();
    json.end_object();
  }
  json.end_object();
}

void write_needs(JsonWriter& json, const std::vector<std::vector<WorkerType>>& needs) {
  json.key("needs");
  json.begin_array();
  for (const auto& alternative : needs) {
    json.begin_array();
    for (const WorkerType type : alternative) json.value(to_string(type));
    json.end_array();
  }
  json.end_array();
}

Result<void> check(const ModelCard& card, std::string_view model_type) {
  if (card.display_name.empty()) return invalid_argument("the model has no name");
  if (wire::slugify(card.display_name).empty()) {
    return invalid_argument("the model name '" + card.display_name + "' has no letter or digit");
  }
  if (card.kv_cache_block_size == 0) return invalid_argument("the KV block size is not set");
  if (card.files.config.path.empty()) return invalid_argument("config.json is not set");
  if (card.files.tokenizer.path.empty()) return invalid_argument("tokenizer.json is not set");
  if (has_flag(model_type, "Chat") && !card.files.tokenizer_config) {
    const std::string& tokenizer = card.files.tokenizer.path;
    return invalid_argument("frontends need " + tokenizer.substr(0, tokenizer.rfind('/')) +
                            "/tokenizer_config.json for a chat model; without it serve \"Completions\" only");
  }
  if (has_flag(model_type, "Chat") && has_flag(model_type, "Prefill")) {
    return invalid_argument("\"Prefill\" cannot be combined with \"Chat\"");
  }
  return {};
}

}  // namespace

std::string_view to_string(WorkerType type) {
  switch (type) {
    case WorkerType::kAggregated:
      return "aggregated";
    case WorkerType::kPrefill:
      return "prefill";
    case WorkerType::kDecode:
      return "decode";
    case WorkerType::kEncode:
      return "encode";
  }
  return "aggregated";
}

std::string resolve_model_type(const ModelCard& card) {
  if (!card.model_type.empty()) return card.model_type;
  if (card.worker_type == WorkerType::kPrefill) return "Prefill";
  if (card.worker_type == WorkerType::kEncode) return "";
  return card.files.has_chat_template && card.files.tokenizer_config ? "Chat | Completions" : "Completions";
}

Result<std::string> encode_model_card(const ModelCard& card) {
  const std::string model_type = resolve_model_type(card);
  if (auto checked = check(card, model_type); !checked) return checked.error().with_context("model card");

  Buffer user_data;
  if (!card.user_data_json.empty()) {
    wire::JsonReader in(as_bytes(card.user_data_json));
    in.append_json(user_data);
    if (auto done = in.finish(); !done) return done.error().with_context("model card: user_data");
  }

  const ModelFiles& files = card.files;
  const std::string& source = card.source_path.empty() ? files.directory : card.source_path;
  const uint32_t context_length = card.context_length > 0 ? card.context_length : files.max_context_length.value_or(0);

  Buffer out;
  JsonWriter json(out);
  json.begin_object();
  json.member("display_name", card.display_name);
  json.member("slug", wire::slugify(card.display_name));
  json.member("source_model", source);  // the name of source_path in 0.8
  json.member("source_path", source);
  write_tagged_file(json, "model_info", "hf_config_json", files.config);
  write_tagged_file(json, "tokenizer", "hf_tokenizer_json", files.tokenizer);
  if (files.tokenizer_config) {
    write_tagged_file(json, "prompt_formatter", "hf_tokenizer_config_json", *files.tokenizer_config);
  }
  if (files.chat_template) write_chat_template(json, *files.chat_template, files.custom_chat_template);
  if (files.generation_config) {
    write_tagged_file(json, "gen_config", "hf_generation_config_json", *files.generation_config);
  }
  if (files.max_context_length) json.member("architectural_max_context_length", *files.max_context_length);
  json.member("context_length", context_length);
  json.member("kv_cache_block_size", card.kv_cache_block_size);
  json.member("migration_limit", card.migration_limit);
  json.member("model_type", model_type);
  json.member("model_input", card.model_input);
  json.member("worker_type", to_string(card.worker_type));
  write_needs(json, card.needs);
  if (!card.aliases.empty()) {
    json.key("aliases");
    json.begin_array();
    for (const std::string& alias : card.aliases) json.value(alias);
    json.end_array();
  }
  if (!user_data.empty()) {
    json.key("user_data");
    json.raw(as_text(user_data.view()));
  }
  write_runtime_config(json, card.runtime, context_length);
  json.key("media_decoder");
  json.null();
  json.key("media_fetcher");
  json.null();
  json.end_object();
  return std::string(as_text(out.view()));
}

}  // namespace dyn::llm
