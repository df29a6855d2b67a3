// find_model_files() and digest_file() of llm/model_card.h.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "llm/model_card.h"
#include "wire/blake3.h"

namespace dyn::llm {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;  // model files hold numbers beyond 64 bits ("model_max_length": 1e30 written out)

Error not_found(std::string message) {
  return {Code::kNotFound, std::move(message)};
}

Result<Json> read_json_object(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false, /*ignore_comments=*/true);
  if (!json.is_object()) return invalid_argument(path + " is not a JSON object");
  return json;
}

std::optional<uint32_t> positive_u32(const Json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end() || !at->is_number_unsigned()) return std::nullopt;
  const auto value = at->get<uint64_t>();
  if (value == 0 || value > UINT32_MAX) return std::nullopt;
  return static_cast<uint32_t>(value);
}

std::optional<uint32_t> context_length_of(const Json& config) {
  if (auto length = positive_u32(config, "max_position_embeddings")) return length;
  const auto text = config.find("text_config");  // models of several media
  if (text == config.end() || !text->is_object()) return std::nullopt;
  return positive_u32(*text, "max_position_embeddings");
}

Result<std::optional<ModelFile>> digest_if_present(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return std::optional<ModelFile>();
  auto file = digest_file(path);
  if (!file) return file.error();
  return std::optional<ModelFile>(std::move(*file));
}

}  // namespace

Result<ModelFile> digest_file(const std::string& path) {
  std::error_code failed;
  if (!fs::exists(path, failed)) return not_found(path + " does not exist");
  if (!fs::is_regular_file(path, failed)) return invalid_argument(path + " is not a file");
  std::ifstream in(path, std::ios::binary);
  if (!in) return not_found(path + " cannot be read");

  wire::Blake3 hash;
  ModelFile file{path, {}, 0};
  std::vector<char> piece(1 << 20);
  while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0) {
    const auto count = static_cast<size_t>(in.gcount());
    hash.update(std::as_bytes(std::span(piece.data(), count)));
    file.size += count;
  }
  if (in.bad()) return internal_error("reading " + path + " failed");
  file.checksum = "blake3:" + hash.hex();
  return file;
}

Result<ModelFiles> find_model_files(const std::string& directory, const std::string& custom_chat_template,
                                    const std::string& tokenizer_directory) {
  std::error_code failed;
  if (!fs::is_directory(directory, failed)) return not_found("model directory " + directory + " does not exist");
  const std::string& tokenizer_side = tokenizer_directory.empty() ? directory : tokenizer_directory;
  if (!fs::is_directory(tokenizer_side, failed)) {
    return not_found("tokenizer directory " + tokenizer_side + " does not exist");
  }
  ModelFiles files;
  const auto absolute = [](const std::string& path) {
    return (fs::absolute(path) / "x").lexically_normal().parent_path().string();
  };
  files.directory = absolute(directory);
  const auto inside = [&](const char* name) { return files.directory + "/" + name; };
  const auto beside_tokenizer = [at = absolute(tokenizer_side)](const char* name) { return at + "/" + name; };

  auto config = digest_file(inside("config.json"));
  if (!config) return config.error();
  files.config = std::move(*config);
  auto tokenizer = digest_file(beside_tokenizer("tokenizer.json"));
  if (!tokenizer) return tokenizer.error();
  files.tokenizer = std::move(*tokenizer);
  auto tokenizer_config = digest_if_present(beside_tokenizer("tokenizer_config.json"));
  if (!tokenizer_config) return tokenizer_config.error();
  files.tokenizer_config = std::move(*tokenizer_config);
  auto generation_config = digest_if_present(inside("generation_config.json"));
  if (!generation_config) return generation_config.error();
  files.generation_config = std::move(*generation_config);

  if (custom_chat_template.empty()) {
    auto chat_template = digest_if_present(beside_tokenizer("chat_template.jinja"));
    if (!chat_template) return chat_template.error();
    files.chat_template = std::move(*chat_template);
  } else {
    auto chat_template = digest_file(fs::absolute(custom_chat_template).lexically_normal().string());
    if (!chat_template) return chat_template.error().with_context("chat template");
    files.chat_template = std::move(*chat_template);
    files.custom_chat_template = true;
  }
  files.has_chat_template = files.chat_template.has_value();

  auto config_json = read_json_object(files.config.path);
  if (!config_json) return config_json.error();
  files.max_context_length = context_length_of(*config_json);
  files.vocab_size = positive_u32(*config_json, "vocab_size");
  if (files.tokenizer_config) {
    auto json = read_json_object(files.tokenizer_config->path);
    if (!json) return json.error();
    const auto in_config = json->find("chat_template");
    if (in_config != json->end() && !in_config->is_null()) files.has_chat_template = true;
    if (!files.max_context_length) files.max_context_length = positive_u32(*json, "model_max_length");
  }
  return files;
}

}  // namespace dyn::llm
