// Engine files, override JSON and dotted flags: whatever stands in them, the parsers answer with a tree within the
// limits or an error, and the option table with settings or an error.
//
// The first byte picks the parser: 'j' JSON, 'd' the value of a dotted flag, anything else YAML.
#include <string_view>

#include "app/options/command_line.h"
#include "app/options/settings.h"
#include "app/options/tree.h"
#include "fuzz.h"

namespace {

size_t nodes_of(const dyn::app::Tree& tree) {
  size_t count = 1;
  for (const dyn::app::Tree& item : tree.items) count += nodes_of(item);
  return count;
}

}  // namespace

DYN_FUZZ_TARGET(dyn::Bytes in) {
  using dyn::app::Tree;
  using dyn::fuzz::expect;
  if (in.empty()) return;
  const std::string_view text = dyn::as_text(in).substr(1);
  const dyn::app::TreeLimits limits;
  dyn::app::CommandLine line;
  line.dotted.kind = Tree::Kind::kMap;
  if (dyn::as_text(in)[0] == 'd') {
    line.dotted.keys.emplace_back("max_batch_size");
    line.dotted.items.push_back(dyn::app::dotted_scalar(text));
  } else {
    auto tree = dyn::as_text(in)[0] == 'j' ? dyn::app::parse_json(text, "fuzz") : dyn::app::parse_yaml(text, "fuzz");
    if (!tree) return;
    expect(nodes_of(*tree) <= limits.max_nodes + 1);
    // What is printed as JSON reads back as the same tree, unless it holds bytes that are no UTF-8.
    const std::string printed = tree->to_json();
    if (auto again = dyn::app::parse_json(printed, "printed", {.max_bytes = printed.size()})) {
      expect(again->to_json() == printed);
    }
    line.dotted = *std::move(tree);
  }
  auto resolved = dyn::app::resolve_settings(line, {{"DYN_STORE_KV", "file"}});
  expect(resolved.ok() || !resolved.error().message.empty());
}
