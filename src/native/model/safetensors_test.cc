#include "native/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/test_support.h"
#include "native/model/safetensors_test_support.h"

namespace dyn::native {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string refused(const std::string& header, size_t data_bytes, const SafetensorsLimits& limits = {}) {
  const std::string file = safetensors_bytes(header, std::string(data_bytes, 'x'));
  auto result = parse_safetensors(as_bytes(file), limits);
  EXPECT_FALSE(result.ok()) << header;
  return result ? "" : result.error().message;
}

TEST(Safetensors, GivesTensorsInOrderOfTheirBytes) {
  const std::string file = safetensors_bytes(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"none":{"dtype":"F16","shape":[0,7],"data_offsets":[4,4]}}  )",
      "abcdefgh");
  auto tensors = parse_safetensors(as_bytes(file));
  ASSERT_TRUE(tensors.ok()) << tensors.error().message;
  ASSERT_EQ(tensors->size(), 3U);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ(as_text((*tensors)[0].bytes), "abcd");
  EXPECT_EQ((*tensors)[1].name, "none");
  EXPECT_EQ((*tensors)[2].dtype, "BF16");
  EXPECT_EQ(as_text((*tensors)[2].bytes), "efgh");
  EXPECT_THAT((*tensors)[2].shape, ElementsAre(2U, 1U));
}

TEST(Safetensors, RefusesBrokenFiles) {
  EXPECT_THAT(parse_safetensors(as_bytes("1234567")).error().message, HasSubstr("shorter than"));
  std::string huge = safetensors_bytes("{}", "");
  huge[7] = '\x40';  // a header of 2^62 bytes
  EXPECT_THAT(parse_safetensors(as_bytes(huge)).error().message, HasSubstr("more than the limit"));
  std::string cut = safetensors_bytes("{}      ", "");
  cut.pop_back();
  EXPECT_THAT(parse_safetensors(as_bytes(cut)).error().message, HasSubstr("cut off"));
  EXPECT_THAT(refused("", 0), HasSubstr("does not begin with"));
  EXPECT_THAT(refused(" {}", 0), HasSubstr("does not begin with"));
  EXPECT_THAT(refused("{", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(refused("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", 0), HasSubstr("not valid JSON"));
}

TEST(Safetensors, RefusesBrokenTensors) {
  const struct {
    const char* tensor;
    const char* message;
  } cases[] = {
      {R"([])", "not an object"},
      {R"({"dtype":"F32","shape":[1]})", "needs 'dtype', 'shape' and 'data_offsets'"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1})", "unknown member 'x'"},
      {R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})", "'dtype' occurs twice"},
      {R"({"dtype":1,"shape":[1],"data_offsets":[0,4]})", "'dtype' must be a string"},
      {R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})", "unknown dtype 'F31'"},
      {R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", "'shape' must hold whole numbers"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", "two whole numbers"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,5]})", "outside the file's 4 bytes"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", "outside the file"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", "need 8 bytes, 'data_offsets' give 4"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]})", "does not fit 64 bits"},
      {R"({"dtype":"F4","shape":[3],"data_offsets":[0,4]})", "does not end on a byte"},
      {R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})", "more than 8 dimensions"},
  };
  for (const auto& c : cases) EXPECT_THAT(refused(std::string("{\"t\":") + c.tensor + "}", 4), HasSubstr(c.message));
}

TEST(Safetensors, RefusesOverlapsHolesAndDuplicates) {
  auto tensor = [](const char* name, int begin, int end) {
    return std::string("\"") + name + R"(":{"dtype":"U8","shape":[)" + std::to_string(end - begin) +
           R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  EXPECT_THAT(refused("{" + tensor("a", 0, 4) + "," + tensor("b", 3, 8) + "}", 8), HasSubstr("'b': overlaps"));
  EXPECT_THAT(refused("{" + tensor("a", 0, 4) + "," + tensor("b", 5, 8) + "}", 8),
              HasSubstr("1 unused bytes before it"));
  EXPECT_THAT(refused("{" + tensor("a", 0, 4) + "}", 8), HasSubstr("4 unused bytes at the end"));
  EXPECT_THAT(refused("{" + tensor("a", 0, 4) + "," + tensor("a", 4, 8) + "}", 8), HasSubstr("'a': occurs twice"));
  EXPECT_THAT(refused(R"({"__metadata__":{"a":1}})", 0), HasSubstr("must hold strings"));
  EXPECT_THAT(refused("{" + tensor("a", 0, 4) + "," + tensor("b", 4, 8) + "}", 8, {.max_tensors = 1}),
              HasSubstr("more than 1 tensors"));
}

constexpr const char* kA = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
constexpr const char* kB = R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})";

TEST(Checkpoint, OpensOneFile) {
  const TempDir dir;
  EXPECT_THAT(Checkpoint::open(dir.path()).error().message, HasSubstr("only safetensors weights are supported"));
  write_file(dir / "model.safetensors", safetensors_bytes(kA, "aa"));
  auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  const Checkpoint moved = std::move(*checkpoint);
  ASSERT_NE(moved.find("a"), nullptr);
  EXPECT_EQ(as_text(moved.find("a")->bytes), "aa");
  EXPECT_EQ(moved.find("b"), nullptr);
  write_file(dir / "model.safetensors", "");
  EXPECT_THAT(Checkpoint::open(dir.path()).error().message, HasSubstr("model.safetensors: shorter than"));
}

TEST(Checkpoint, OpensShards) {
  const TempDir dir;
  write_file(dir / "one.safetensors", safetensors_bytes(kA, "aa"));
  write_file(dir / "two.safetensors", safetensors_bytes(kB, "bbb"));
  const std::string index = dir / "model.safetensors.index.json";
  write_file(index, R"({"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ(as_text(checkpoint->find("b")->bytes), "bbb");

  write_file(dir / "two.safetensors", safetensors_bytes(kA, "aa"));
  EXPECT_THAT(Checkpoint::open(dir.path()).error().message, HasSubstr("'a': occurs in two files"));
  write_file(index, R"({"weight_map":{"a":"three.safetensors"}})");
  EXPECT_EQ(Checkpoint::open(dir.path()).error().code, Code::kNotFound);
  for (const char* file : {"../one.safetensors", "/etc/passwd", ""}) {
    write_file(index, std::string(R"({"weight_map":{"a":")") + file + "\"}}");
    EXPECT_THAT(Checkpoint::open(dir.path()).error().message, HasSubstr("must name a file of the same directory"));
  }
  for (const char* text : {"{}", "[]", R"({"weight_map":{}})", ""}) {
    write_file(index, text);
    EXPECT_THAT(Checkpoint::open(dir.path()).error().message, HasSubstr("'weight_map'"));
  }
}

}  // namespace
}  // namespace dyn::native
