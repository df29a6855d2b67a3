#include "app/options/tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dyn::app {
namespace {

using ::testing::HasSubstr;

std::string yaml(std::string_view text) {
  auto tree = parse_yaml(text, "f");
  return tree ? tree->to_json() : "error: " + tree.error().message;
}
std::string json(std::string_view text) {
  auto tree = parse_json(text, "f");
  return tree ? tree->to_json() : "error: " + tree.error().message;
}

TEST(YamlTree, TypesScalarsAsPyYamlDoes) {
  EXPECT_EQ(
      yaml("a: 1\nb: yes\nc: Off\nd: 0.9\ne: null\nf: ~\ng:\nh: text\ni: '1'\nj: \"true\"\nk: 0x10\nl: -3\n"),
      R"({"a":1,"b":true,"c":false,"d":0.9,"e":null,"f":null,"g":null,"h":"text","i":"1","j":"true","k":16,"l":-3})");
  EXPECT_EQ(yaml("a: 1e-3\nb: 08\nc: 1_000\nd: 12:30\n"), R"({"a":0.001,"b":8,"c":"1_000","d":"12:30"})");
  EXPECT_EQ(yaml("a: !!str 5\nb: !!int 7\n"), R"({"a":"5","b":7})");
}

TEST(YamlTree, ReadsNestedForms) {
  EXPECT_EQ(yaml("a:\n  b: [1, 2, {c: d}]\n  e:\n  - x\n  - y\n"), R"({"a":{"b":[1,2,{"c":"d"}],"e":["x","y"]}})");
  EXPECT_EQ(yaml(""), "{}");
  EXPECT_EQ(yaml("# nothing\n"), "{}");
  EXPECT_EQ(yaml("---\na: 1\n"), R"({"a":1})");
}

TEST(YamlTree, ExpandsAliasesAndMerges) {
  EXPECT_EQ(yaml("a: &x {p: 1, q: 2}\nb: *x\nc:\n  <<: *x\n  q: 3\n"),
            R"({"a":{"p":1,"q":2},"b":{"p":1,"q":2},"c":{"q":3,"p":1}})");
  EXPECT_EQ(yaml("a: &x {p: 1}\nb: &y {p: 2, r: 4}\nc:\n  <<: [*x, *y]\n"),
            R"({"a":{"p":1},"b":{"p":2,"r":4},"c":{"p":1,"r":4}})");
  EXPECT_THAT(yaml("a: 1\n<<: 5\n"), HasSubstr("'<<' wants a map"));
}

TEST(YamlTree, NamesThePlaceOfAnError) {
  EXPECT_EQ(yaml("a: 1\nb: 2\na: 3\n"), "error: f:3:1: duplicate key 'a' (its first value is on line 1)");
  EXPECT_THAT(yaml("a: 1\n b: 2\n"), HasSubstr("error: f:2:"));
  EXPECT_THAT(yaml("a: [1, 2\n"), HasSubstr("error: f:"));
  EXPECT_THAT(yaml("a: 1\n---\nb: 2\n"), HasSubstr("more than one document"));
  EXPECT_THAT(yaml("a: *nowhere\n"), HasSubstr("error: f:1:"));
  EXPECT_THAT(yaml("a: !!python/object:os.system x\n"), HasSubstr("not supported"));
  EXPECT_THAT(yaml("? [1]\n: 2\n"), HasSubstr("cannot be a key"));
  EXPECT_THAT(yaml("~: 2\n"), HasSubstr("a key must be text"));
}

TEST(YamlTree, RecordsLines) {
  auto tree = parse_yaml("a: 1\n\nb:\n  c: 2\n", "f");
  ASSERT_TRUE(tree);
  EXPECT_EQ(tree->find("a")->line, 1U);
  EXPECT_EQ(tree->find("b")->find("c")->line, 4U);
  EXPECT_EQ(tree->find("b")->find("c")->column, 6U);
}

TEST(YamlTree, BoundsAliasExpansion) {
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 10; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) bomb += (j > 0 ? "," : "") + before;
    bomb += "]\n";
  }
  EXPECT_THAT(yaml(bomb), HasSubstr("aliases expanded"));
}

TEST(YamlTree, BoundsDepthAndSize) {
  EXPECT_THAT(yaml(std::string(5000, '[')), HasSubstr("error: f:"));
  std::string nested;
  for (int i = 0; i < 40; ++i) nested += std::string(static_cast<size_t>(i), ' ') + "k:\n";
  EXPECT_THAT(yaml(nested + std::string(40, ' ') + "k: 1\n"), HasSubstr("nested deeper than 32"));
  EXPECT_THAT(yaml("a: " + std::string((1 << 20) + 1, 'x')), HasSubstr("larger than"));
}

TEST(JsonTree, ReadsEveryType) {
  EXPECT_EQ(json(R"({"a":[1,-2,0.5,"x",true,false,null,{}]})"), R"({"a":[1,-2,0.5,"x",true,false,null,{}]})");
  EXPECT_EQ(json(R"({"a":"q\"\\\n"})"), R"({"a":"q\"\\\u000a"})");
}

TEST(JsonTree, IsStrict) {
  for (const char* bad : {"", "{", "{'a':1}", "{\"a\":1,}", "{\"a\":1} x", "{a:1}", "{\"a\":NaN}", "// c\n{}"}) {
    EXPECT_THAT(json(bad), HasSubstr("error: f: ")) << bad;
  }
  EXPECT_EQ(json(R"({"a":1,"a":2})"), "error: f: duplicate key 'a'");
  EXPECT_THAT(json(std::string(5000, '[')), HasSubstr("nested deeper than 32"));
}

TEST(DottedScalar, TypesInTheOrderOfTheOriginal) {
  EXPECT_EQ(dotted_scalar("None").kind, Tree::Kind::kNull);
  EXPECT_EQ(dotted_scalar("-5").integer, -5);
  EXPECT_EQ(dotted_scalar("1e-3").number, 0.001);
  EXPECT_TRUE(dotted_scalar("True").boolean);
  EXPECT_EQ(dotted_scalar("yes").kind, Tree::Kind::kText);
}

}  // namespace
}  // namespace dyn::app
