// Option: one row of the option table, the single source of the command line, the environment names, the keys of engine
// files (--extra-engine-args, --override-engine-args, --trtllm.*), --help, completion, the reference page and the dump.
//
//   for (const Option& option : option_table()) ...
//   const Option* option = find_flag("max-batch-size");       // flag or alias, without dashes
//   const Option* option = find_engine_key("kv_cache_config.dtype");
//
// A row says what it takes and what becomes of it. Its effect is one of three: honoured, without effect on this engine
// (accepted, one log line when it is not the default), refused (an error by name unless the value is harmless). What is
// in no row is an error. Rows are constant and live for ever; everything here is safe from any thread.
// Facts: flags, environment names and defaults of `python -m dynamo.trtllm` 0.8 ... 1.6 (args.py, backend_args.py,
// runtime_args.py), engine keys of TensorRT-LLM 1.2 ... 1.3 (llmapi/llm_args.py).
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "app/options/tree.h"
#include "base/result.h"

namespace dyn::app {

enum class Type : uint8_t {
  kBool,   // --x, --no-x, --x=false
  kInt,    // within [low, high]
  kFloat,  // within [low, high], or (low, high] with low_open
  kText,
  kPath,
  kEnum,   // one of `choices`, in any case
  kBytes,  // a size: 512M, 4GiB, 1000000
  kList,   // words; on the command line several arguments or one with commas or spaces
  kJson,   // a JSON object
  kAny,    // a part of the engine tree of any form, kept as JSON
};

enum class Group : uint8_t {
  kModel,
  kEngine,
  kBatching,
  kKvCache,
  kParallelism,
  kIdentity,
  kRequestPlane,
  kModelCard,
  kEvents,
  kHealth,
  kLifecycle,
  kLogging,
  kConfiguration,
  kMock,
  kDisaggregation,
  kMultimodal,
  kDiffusion,
  kTls,
  kRouter,
};

enum class Effect : uint8_t { kHonoured, kNoEffect, kRefused };

// How many arguments the flag takes; booleans take none but may be given one with '='.
enum class Arity : uint8_t { kUsual, kOptional };

// Every member has an initialiser, so that rows may leave it out without a warning.
// NOLINTBEGIN(readability-redundant-member-init)
struct Option {
  std::string_view name;          // the flag without dashes; else the engine key; else the environment variable
  std::string_view aliases = {};  // further flags, space separated
  // Environment variables, the first that is set wins. "*": DYN_TRTLLM_ and the flag in upper case. A name that ends in
  // '*' stands for all variables that start so.
  std::string_view env = {};
  std::string_view engine_key = {};  // dotted path in the engine tree
  bool flag = true;                  // false: no command-line flag
  Type type = Type::kText;
  Arity arity = Arity::kUsual;
  int64_t low = 0;
  int64_t high = std::numeric_limits<int64_t>::max();
  bool low_open = false;
  std::string_view choices = {};  // of kEnum and kList, space separated
  // "old=new" pairs: values that stand for another one.
  std::string_view value_aliases = {};
  std::string_view fallback = {};  // the built-in default as text; empty: unset
  std::string_view metavar = {};
  Group group = Group::kConfiguration;
  Effect effect = Effect::kHonoured;
  std::string_view accepts = {};  // refused options: values that are harmless all the same, space separated
  std::string_view refuses = {};  // honoured options: values that are refused, space separated
  std::string_view why = {};      // of a refusal, or of being without effect: one sentence without a full stop
  std::string_view instead = {};  // what to do about a refusal
  std::string_view help = {};     // one or two sentences
  std::string_view note = {};     // since, deprecated, removed
  // Flags that this one stands for (booleans only), space separated. Such a row has no value of its own.
  std::string_view expands = {};
  bool secret = false;  // never printed
};
// NOLINTEND(readability-redundant-member-init)

// A converted value. monostate: unset. kBytes is int64_t; kEnum, kText, kPath, kJson, kAny are text.
using Value = std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<std::string>>;

std::span<const Option> option_table();

const Option* find_option(std::string_view name);                      // by its name
const Option* find_flag(std::string_view flag);                        // by flag or alias, without dashes
const Option* find_engine_key(std::string_view key);                   // by its exact dotted path
bool is_engine_section(std::string_view key);                          // some engine key lies below it
std::vector<std::string> engine_keys_below(std::string_view section);  // direct children; "" is the root

std::vector<std::string> flag_names(const Option& option);  // flag and aliases, without dashes; empty without flag
std::vector<std::string> env_names(const Option& option);   // "*" resolved

// All spellings on the command line ("--max-batch-size", "--no-publish-metrics") with the option each one names.
struct FlagSpelling {
  std::string text;  // without dashes
  const Option* option;
  bool negated;  // --no-x
};
std::span<const FlagSpelling> flag_spellings();

// Text of a flag or a variable to a value; errors say what was expected ("expected an integer from 1 to 65535").
Result<Value> convert(const Option& option, std::string_view text);
Result<Value> convert(const Option& option, const Tree& node);
Value default_value(const Option& option);

// For people: "true", "32", "a,b", "(unset)".
std::string value_text(const Value& value);
// What the option accepts: "INT 1..65535", "agg|prefill": for help and messages.
std::string expectation(const Option& option);

std::string_view group_name(Group group);   // "kv-cache": --help=kv-cache
std::string_view group_title(Group group);  // "KV cache"
std::span<const Group> all_groups();
std::string_view to_string(Effect effect);

}  // namespace dyn::app
