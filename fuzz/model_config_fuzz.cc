// config.json and, after a zero byte, generation_config.json.
#include <algorithm>

#include "fuzz.h"
#include "native/model/model_config.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const std::string_view text = as_text(in);
  const size_t end = std::min(text.size(), text.find('\0'));
  const auto config = native::parse_model_config(text.substr(0, end), text.substr(std::min(text.size(), end + 1)));
  if (!config) {
    expect(!config.error().message.empty());
    return;
  }
  // What every user of the configuration divides by and multiplies.
  expect(config->num_kv_heads > 0 && config->num_heads % config->num_kv_heads == 0);
  expect(config->head_dim > 0 && config->head_dim % 2 == 0 && config->num_layers > 0 && config->max_positions > 0);
  expect(config->qkv_size() == (uint64_t{config->num_heads} + 2 * uint64_t{config->num_kv_heads}) * config->head_dim);
  expect(config->norm_eps > 0 && config->rope.theta > 0 && config->rope.factor > 0);
  for (llm::TokenId id : config->eos_token_ids) expect(id < config->vocab_size);
}
