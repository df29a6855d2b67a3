// model.safetensors.index.json of a sharded checkpoint.
#include "fuzz.h"
#include "native/model/safetensors.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const auto names = native::parse_safetensors_index(as_text(in));
  if (!names) {
    expect(!names.error().message.empty());
    return;
  }
  // Files of the same directory, none of them hidden.
  expect(!names->empty());
  for (const std::string& name : *names) {
    expect(!name.empty() && name.front() != '.' && name.find('/') == std::string::npos);
    expect(name.find('\0') == std::string::npos);
  }
}
