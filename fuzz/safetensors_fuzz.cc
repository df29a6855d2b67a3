// The header of a .safetensors file.
#include "fuzz.h"
#include "native/model/safetensors.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const auto tensors = native::parse_safetensors(in, {.max_header_bytes = 1 << 16, .max_tensors = 100});
  if (!tensors) return;
  // Views lie in the file, one after the other, without holes up to its end.
  expect(tensors->size() <= 100);
  const std::byte* at = nullptr;
  for (const native::StoredTensor& tensor : *tensors) {
    expect(tensor.bytes.data() >= in.data() && tensor.bytes.data() + tensor.bytes.size() <= in.data() + in.size());
    expect(at == nullptr || tensor.bytes.data() == at);
    expect(tensor.shape.size() <= 8);
    at = tensor.bytes.data() + tensor.bytes.size();
  }
  expect(tensors->empty() || at == in.data() + in.size());
}
