// Discovery records and file names that other processes wrote.
#include "fuzz.h"
#include "wire/records.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  if (auto record = wire::decode_instance_record(in)) {
    const std::string text = wire::encode_instance_record(*record);
    const auto again = wire::decode_instance_record(as_bytes(text));
    expect(again.ok() && wire::encode_instance_record(*again) == text);
  }
  if (auto record = wire::decode_model_record(in)) {
    const std::string text = wire::encode_model_record(*record);
    const auto again = wire::decode_model_record(as_bytes(text));
    expect(again.ok() && wire::encode_model_record(*again) == text);
  }
  expect(*wire::decode_file_name(wire::encode_file_name(as_text(in))) == as_text(in));
  (void)wire::decode_file_name(as_text(in));
  (void)wire::slugify_unique(as_text(in));
}
