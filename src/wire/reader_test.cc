// Both readers under the same expectations: what one codec accepts or refuses, so does the other.
#include "wire/reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <random>

#include "wire/json_reader.h"
#include "wire/json_writer.h"
#include "wire/msgpack_reader.h"
#include "wire/msgpack_writer.h"

namespace dyn::wire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Bytes bytes_of(const std::string& text) {
  return as_bytes(text);
}

std::string to_msgpack(std::string_view json) {
  JsonReader in(as_bytes(json));
  Buffer out;
  EXPECT_TRUE(in.append_msgpack(out)) << json;
  EXPECT_TRUE(in.finish()) << json;
  return std::string(as_text(out.view()));
}

// A document in one of the codecs, made from JSON text.
class BothCodecs : public testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<Reader> reader(std::string_view json, unsigned max_depth = kMaxDepth) {
    if (!GetParam()) return std::make_unique<JsonReader>(as_bytes(json), Padding::kNone, max_depth);
    document_ = to_msgpack(json);
    return std::make_unique<MsgpackReader>(bytes_of(document_), max_depth);
  }
  template <class T>
  std::string error_of(std::string_view json) {
    auto in = reader(json);
    T value{};
    EXPECT_FALSE(in->read(value)) << json;
    return in->finish().ok() ? "" : in->finish().error().message;
  }
  std::string document_;
};
INSTANTIATE_TEST_SUITE_P(Codecs, BothCodecs, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "msgpack" : "json"; });

TEST_P(BothCodecs, ReadsAnObject) {
  auto in = reader(R"({"a":1,"skipped":{"x":[1,[2,{"y":null}],"z"]},"b":-2,"s":"h\u00e9","t":true,"f":0.5,"n":null,
                       "list":["x","y"],"ids":[1,300,70000,4294967295]})");
  uint32_t a = 0;
  int64_t b = 0;
  std::string s;
  bool t = false;
  double f = 0;
  std::optional<uint32_t> n = 7;
  std::vector<std::string> list;
  std::vector<uint32_t> ids;
  EXPECT_TRUE(in->read_object([&](std::string_view key) {
    if (key == "a") return in->read(a);
    if (key == "b") return in->read(b);
    if (key == "s") return in->read(s);
    if (key == "t") return in->read(t);
    if (key == "f") return in->read(f);
    if (key == "n") return in->read(n);
    if (key == "list") return in->read(list);
    if (key == "ids") return in->read(ids);
    return in->skip();
  }));
  EXPECT_TRUE(in->finish().ok());
  EXPECT_EQ(a, 1U);
  EXPECT_EQ(b, -2);
  EXPECT_EQ(s, "h\xC3\xA9");
  EXPECT_TRUE(t);
  EXPECT_EQ(f, 0.5);
  EXPECT_FALSE(n.has_value());
  EXPECT_THAT(list, ElementsAre("x", "y"));
  EXPECT_THAT(ids, ElementsAre(1, 300, 70000, 4294967295));
}

TEST_P(BothCodecs, IntegralFloatsAreIntegers) {
  uint32_t value = 0;
  EXPECT_TRUE(reader("3.0")->read(value));
  EXPECT_EQ(value, 3U);
  EXPECT_TRUE(reader("1e3")->read(value));
  EXPECT_EQ(value, 1000U);
  EXPECT_TRUE(reader("-0")->read(value));
  EXPECT_EQ(value, 0U);
  int64_t signed_value = 0;
  EXPECT_TRUE(reader("-9223372036854775808")->read(signed_value));
  EXPECT_EQ(signed_value, std::numeric_limits<int64_t>::min());
  uint64_t big = 0;
  EXPECT_TRUE(reader("18446744073709551615")->read(big));
  EXPECT_EQ(big, UINT64_MAX);
  std::vector<uint32_t> ids;
  EXPECT_TRUE(reader("[1,2.0,3]")->read(ids));
  EXPECT_THAT(ids, ElementsAre(1, 2, 3));
  double d = 0;
  EXPECT_TRUE(reader("-4")->read(d));
  EXPECT_EQ(d, -4.0);
}

TEST_P(BothCodecs, NumbersThatDoNotFitAreErrors) {
  EXPECT_THAT(error_of<uint32_t>("1.5"), HasSubstr("unsigned 32-bit"));
  EXPECT_THAT(error_of<uint32_t>("-1"), HasSubstr("unsigned 32-bit"));
  EXPECT_THAT(error_of<uint32_t>("4294967296"), HasSubstr("unsigned 32-bit"));
  EXPECT_THAT(error_of<uint32_t>("4294967296.0"), HasSubstr("unsigned 32-bit"));
  EXPECT_THAT(error_of<uint32_t>("-1.0"), HasSubstr("unsigned 32-bit"));
  EXPECT_THAT(error_of<uint64_t>("18446744073709551616.0"), HasSubstr("unsigned 64-bit"));
  EXPECT_THAT(error_of<int64_t>("9223372036854775808"), HasSubstr("64-bit"));
  EXPECT_THAT(error_of<int64_t>("9223372036854775808.0"), HasSubstr("64-bit"));
  EXPECT_THAT(error_of<uint32_t>("\"1\""), HasSubstr("expected an unsigned 32-bit integer, got a string"));
  EXPECT_THAT(error_of<uint32_t>("true"), HasSubstr("got a boolean"));
  EXPECT_THAT(error_of<std::string>("1"), HasSubstr("expected a string, got a number"));
  EXPECT_THAT(error_of<bool>("0"), HasSubstr("expected a boolean, got a number"));
  EXPECT_THAT(error_of<std::vector<uint32_t>>("[1,2,-3]"), HasSubstr("[2]: "));
  EXPECT_THAT(error_of<std::vector<uint32_t>>("{}"), HasSubstr("expected a list, got an object"));
}

TEST_P(BothCodecs, ErrorsCarryThePath) {
  auto in = reader(R"({"outer":{"list":[1,{"inner":"no number"}]}})");
  uint32_t number = 0;
  in->read_object([&](std::string_view) {
    return in->read_object([&](std::string_view) {
      return in->read_array([&](size_t i) {
        if (i == 0) return in->skip();
        return in->read_object([&](std::string_view) { return in->read(number); });
      });
    });
  });
  const auto done = in->finish();
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, Code::kInvalidArgument);
  EXPECT_THAT(done.error().message, testing::StartsWith("outer.list[1].inner: expected an unsigned 32-bit integer"));
}

TEST_P(BothCodecs, AfterAnErrorNothingIsRead) {
  auto in = reader(R"(["x",1])");
  uint32_t number = 7;
  int calls = 0;
  EXPECT_FALSE(in->read_array([&](size_t) {
    ++calls;
    return in->read(number);
  }));
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(in->read(number));
  EXPECT_FALSE(in->skip());
  EXPECT_EQ(in->peek(), Kind::kNothing);
  EXPECT_EQ(number, 7U);
}

TEST_P(BothCodecs, ListsAreLimited) {
  std::vector<uint32_t> ids;
  EXPECT_TRUE(reader("[1,2,3]")->read_u32s(ids, 3));
  auto in = reader("[1,2,3,4]");
  EXPECT_FALSE(in->read_u32s(ids, 3));
  EXPECT_THAT(in->finish().error().message, HasSubstr("more than 3 elements"));

  std::string many = "[\"\"";
  for (size_t i = 0; i < kMaxListItems; ++i) many += ",\"\"";
  std::vector<std::string> strings;
  auto long_list = reader(many + "]");
  EXPECT_FALSE(long_list->read(strings));
  EXPECT_EQ(strings.size(), kMaxListItems);
}

std::string nested(unsigned depth, std::string_view open, std::string_view close, std::string_view inside) {
  std::string text;
  for (unsigned i = 0; i < depth; ++i) text += open;
  text += inside;
  for (unsigned i = 0; i < depth; ++i) text += close;
  return text;
}

TEST_P(BothCodecs, NestingIsLimited) {
  for (const auto& [open, close] : {std::pair("[", "]"), std::pair("{\"a\":", "}")}) {
    const std::string fits = nested(8, open, close, "1");
    const std::string deep = nested(9, open, close, "1");
    EXPECT_TRUE(reader(fits, 8)->skip());
    EXPECT_FALSE(reader(deep, 8)->skip());
    Buffer json;
    EXPECT_TRUE(reader(fits, 8)->append_json(json));
    EXPECT_EQ(as_text(json.view()), fits);
    auto in = reader(deep, 8);
    EXPECT_FALSE(in->append_json(json));
    EXPECT_THAT(in->finish().error().message, HasSubstr("more than 8 levels of nesting"));
    EXPECT_TRUE(reader(nested(kMaxDepth, open, close, "1"))->append_json(json));
  }
}

TEST_P(BothCodecs, PeeksAtTheFirstElement) {
  EXPECT_EQ(reader("[[1],[2]]")->peek_first_element(), Kind::kArray);
  EXPECT_EQ(reader("[1]")->peek_first_element(), Kind::kNumber);
  EXPECT_EQ(reader("[]")->peek_first_element(), Kind::kNothing);
  EXPECT_EQ(reader("3")->peek_first_element(), Kind::kNothing);
}

TEST_P(BothCodecs, TheLaterOfTwoMembersWins) {
  auto in = reader(R"({"a":1,"a":2})");
  uint32_t a = 0;
  EXPECT_TRUE(in->read_object([&](std::string_view) { return in->read(a); }));
  EXPECT_EQ(a, 2U);
}

TEST_P(BothCodecs, KeepsFreeFormValues) {
  const std::string text =
      R"({"type":"object","properties":{"a":{"type":"integer","minimum":-1.5e+300}},"n":null,"e":[],"o":{},"x":1.0,"u":18446744073709551615,"s":"\u0001\"\\\n\u00e9😀"})";
  Buffer json;
  EXPECT_TRUE(reader(text)->append_json(json));
  EXPECT_EQ(
      as_text(json.view()),
      R"({"type":"object","properties":{"a":{"type":"integer","minimum":-1.5e+300}},"n":null,"e":[],"o":{},"x":1.0,"u":18446744073709551615,"s":"\u0001\"\\\né😀"})");
}

// A random value as JSON text, written without the code under test.
std::string random_json(std::mt19937& rng, int depth) {
  const auto pick = [&](int n) { return std::uniform_int_distribution<int>(0, n - 1)(rng); };
  switch (pick(depth > 0 ? 8 : 6)) {
    case 0:
      return "null";
    case 1:
      return pick(2) ? "true" : "false";
    case 2:
      return std::to_string(std::uniform_int_distribution<uint64_t>()(rng) >> pick(64));
    case 3:
      return std::to_string(-1 - (std::uniform_int_distribution<int64_t>(0, INT64_MAX)(rng) >> pick(63)));
    case 4: {
      std::string text = std::to_string(pick(1000)) + "." + std::to_string(1 + pick(999));
      while (text.back() == '0') text.pop_back();
      return text;
    }
    case 5:
      return "\"" + std::string(static_cast<size_t>(pick(300)), 'x') + "\"";
    case 6: {
      std::string text = "[";
      for (int i = pick(20); i > 0; --i) text += random_json(rng, depth - 1) + (i > 1 ? "," : "");
      return text + "]";
    }
    default: {
      std::string text = "{";
      for (int i = pick(20); i > 0; --i) {
        text += "\"k" + std::to_string(i) + "\":" + random_json(rng, depth - 1) + (i > 1 ? "," : "");
      }
      return text + "}";
    }
  }
}

TEST(Reader, JsonToMsgpackToJsonIsTheSame) {
  std::mt19937 rng(1);
  for (int i = 0; i < 500; ++i) {
    const std::string json = random_json(rng, 4);
    const std::string packed = to_msgpack(json);
    MsgpackReader in(bytes_of(packed));
    Buffer back;
    ASSERT_TRUE(in.append_json(back)) << json;
    ASSERT_TRUE(in.finish().ok()) << json;
    ASSERT_EQ(as_text(back.view()), json);

    MsgpackReader skipping(bytes_of(packed));
    ASSERT_TRUE(skipping.skip());
    ASSERT_TRUE(skipping.finish().ok());

    // Cut off anywhere it is an error, never a value.
    for (size_t cut = 0; cut < packed.size(); cut += 1 + packed.size() / 50) {
      MsgpackReader cut_off(bytes_of(packed).first(cut));
      cut_off.skip();
      ASSERT_FALSE(cut_off.finish().ok()) << json << " cut at " << cut;
    }
  }
}

TEST(JsonReader, RefusesMalformedText) {
  for (const char* text :
       {"",           " ",        "{",       "[1,]",      "{\"a\":1,}", "01",    "+1",
        ".5",         "1.",       "nul",     "NaN",       "Infinity",   "1e999", "18446744073709551616",
        "\"\xFF\"",   "\"a\nb\"", "\"\\x\"", "{\"a\" 1}", "{1:2}",      "[1] 2", "// c\n1",
        "\"\\ud800\""}) {
    JsonReader in(as_bytes(text));
    EXPECT_FALSE(in.skip() && in.finish().ok()) << text;
    EXPECT_FALSE(in.finish().ok()) << text;
  }
}

TEST(JsonReader, ReadsInPlaceWithPadding) {
  std::string text = R"({"a":"value"})";
  const size_t size = text.size();
  text.append(kReadPadding, '}');  // what follows in a receive buffer
  JsonReader in(as_bytes(text).first(size), Padding::kPresent);
  std::string value;
  EXPECT_TRUE(in.read_object([&](std::string_view) { return in.read(value); }));
  EXPECT_TRUE(in.finish().ok());
  EXPECT_EQ(value, "value");
}

TEST(JsonReader, ReadersMayBeNested) {
  const std::string text = R"({"inner":"[1,2]","after":"still here"})";
  JsonReader outer(as_bytes(text));
  std::string_view after;
  std::vector<uint32_t> ids;
  EXPECT_TRUE(outer.read_object([&](std::string_view key) {
    std::string_view inner;
    if (key == "after") return outer.read(after);
    if (!outer.read(inner)) return false;
    JsonReader in(as_bytes(inner));
    return in.read(ids) && in.finish().ok();
  }));
  EXPECT_THAT(ids, ElementsAre(1, 2));
  EXPECT_EQ(after, "still here");
}

TEST(JsonReader, BytesBehindTheValueAreAnError) {
  JsonReader in(as_bytes("[1]"));
  EXPECT_FALSE(in.finish().ok());  // nothing was read
}

TEST(MsgpackReader, AnyIntegerWidthIsANumber) {
  // 5 as fixint, uint8, uint16, uint32, uint64, int8, int16, int32, int64, float32, float64.
  const std::string forms[] = {{"\x05", 1},
                               {"\xCC\x05", 2},
                               {"\xCD\x00\x05", 3},
                               {"\xCE\x00\x00\x00\x05", 5},
                               {"\xCF\x00\x00\x00\x00\x00\x00\x00\x05", 9},
                               {"\xD0\x05", 2},
                               {"\xD1\x00\x05", 3},
                               {"\xD2\x00\x00\x00\x05", 5},
                               {"\xD3\x00\x00\x00\x00\x00\x00\x00\x05", 9},
                               {"\xCA\x40\xA0\x00\x00", 5},
                               {"\xCB\x40\x14\x00\x00\x00\x00\x00\x00", 9}};
  std::string list = "\x9B";
  for (const std::string& form : forms) {
    uint32_t value = 0;
    MsgpackReader in(bytes_of(form));
    EXPECT_TRUE(in.read(value));
    EXPECT_EQ(value, 5U);
    for (size_t cut = 0; cut < form.size(); ++cut) {
      MsgpackReader cut_off(bytes_of(form).first(cut));
      EXPECT_FALSE(cut_off.read(value));
    }
    list += form;
  }
  std::vector<uint32_t> ids;
  MsgpackReader in(bytes_of(list));
  EXPECT_TRUE(in.read(ids));
  EXPECT_EQ(ids, std::vector<uint32_t>(11, 5));
  EXPECT_TRUE(in.finish().ok());
}

TEST(MsgpackReader, NegativeNumbers) {
  const std::string forms[] = {{"\xFF", 1},
                               {"\xD0\xFF", 2},
                               {"\xD1\xFF\xFF", 3},
                               {"\xD2\xFF\xFF\xFF\xFF", 5},
                               {"\xD3\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 9}};
  for (const std::string& form : forms) {
    int64_t value = 0;
    EXPECT_TRUE(MsgpackReader(bytes_of(form)).read(value));
    EXPECT_EQ(value, -1);
    uint32_t small = 0;
    EXPECT_FALSE(MsgpackReader(bytes_of(form)).read(small));
  }
}

TEST(MsgpackReader, LengthsAreCheckedAgainstTheBytesLeft) {
  // Containers, strings, binaries and extensions that announce more than there is, up to 4 GiB.
  for (const std::string& text :
       {std::string("\xDD\xFF\xFF\xFF\xFF", 5), std::string("\xDF\xFF\xFF\xFF\xFF", 5),
        std::string("\xDB\xFF\xFF\xFF\xFF", 5), std::string("\xC6\xFF\xFF\xFF\xFF", 5),
        std::string("\xC9\xFF\xFF\xFF\xFF\x01", 6), std::string("\xDC\x00\x03\x01\x02", 5), std::string("\x92\x01", 2),
        std::string("\x82\xA1\x61\x01", 4), std::string("\xA5test", 5), std::string("\xD8\x01", 2),
        std::string("\xC1", 1), std::string("\xD9", 1), std::string("\xDE\x00", 2), std::string()}) {
    MsgpackReader skipping(bytes_of(text));
    EXPECT_FALSE(skipping.skip());
    Buffer json;
    MsgpackReader reading(bytes_of(text));
    EXPECT_FALSE(reading.append_json(json));
    std::vector<uint32_t> ids;
    MsgpackReader list(bytes_of(text));
    EXPECT_FALSE(list.read(ids));
    EXPECT_LT(ids.capacity(), 16U);
  }
}

TEST(MsgpackReader, ExtensionsAreSkippedNotRead) {
  // {"x": ext, "y": 1} with every form of extension.
  const std::string extensions[] = {{"\xD4\x01z", 3},
                                    {"\xD5\x01zz", 4},
                                    {"\xD6\x01zzzz", 6},
                                    {"\xD7\x01zzzzzzzz", 10},
                                    {"\xD8\x01zzzzzzzzzzzzzzzz", 18},
                                    {"\xC7\x02\x01zz", 5},
                                    {"\xC8\x00\x02\x01zz", 6},
                                    {"\xC9\x00\x00\x00\x02\x01zz", 8}};
  for (const std::string& extension : extensions) {
    const std::string text = "\x82\xA1x" + extension + "\xA1y\x01";
    uint32_t y = 0;
    MsgpackReader in(bytes_of(text));
    EXPECT_TRUE(in.read_object([&](std::string_view key) { return key == "y" ? in.read(y) : in.skip(); }));
    EXPECT_TRUE(in.finish().ok());
    EXPECT_EQ(y, 1U);

    std::string value;
    MsgpackReader reading(bytes_of(text));
    reading.read_object([&](std::string_view) { return reading.read(value); });
    EXPECT_EQ(reading.finish().error().message, "x: expected a string, got an extension value");
  }
}

TEST(MsgpackReader, StringsAreUtf8AndKeysAreStrings) {
  std::string value;
  EXPECT_FALSE(MsgpackReader(bytes_of("\xA1\xFF")).read(value));
  const std::string number_key = "\x81\x01\x02";
  MsgpackReader in(bytes_of(number_key));
  EXPECT_FALSE(in.read_object([&](std::string_view) { return in.skip(); }));
  EXPECT_THAT(in.finish().error().message, HasSubstr("expected a string as the key, got a number"));
}

TEST(MsgpackReader, FloatsThatAreNotFiniteAreErrors) {
  double value = 0;
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}) {
    Buffer text;
    pack_double(text, bad);
    MsgpackReader in(text.view());
    EXPECT_FALSE(in.read(value));
    EXPECT_THAT(in.finish().error().message, HasSubstr("not finite"));
    uint32_t integer = 0;
    EXPECT_FALSE(MsgpackReader(text.view()).read(integer));
    text.clear();
    pack_float(text, static_cast<float>(bad));
    EXPECT_FALSE(MsgpackReader(text.view()).read(value));
  }
}

TEST(MsgpackReader, BinaryIsReadAsBytes) {
  Buffer text;
  pack_bin(text, as_bytes("\x01\x02"));
  Bytes bytes;
  MsgpackReader in(text.view());
  EXPECT_TRUE(in.read(bytes));
  EXPECT_EQ(bytes.size(), 2U);
  std::string string;
  EXPECT_FALSE(MsgpackReader(text.view()).read(string));
  Buffer json;
  EXPECT_FALSE(MsgpackReader(text.view()).append_json(json));
}

TEST(Writers, StringsAreMadeValid) {
  Buffer json;
  append_json_string(json,
                     "a\xFF"
                     "b\xC3\x28\xF0\x9F\x98\x80\x7F\x1F");
  EXPECT_EQ(as_text(json.view()),
            "\"a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD(\xF0\x9F\x98\x80\x7F\\u001f\"");
  Buffer packed;
  pack_str(packed, "a\xFF");
  std::string back;
  EXPECT_TRUE(MsgpackReader(packed.view()).read(back));
  EXPECT_EQ(back, "a\xEF\xBF\xBD");
}

TEST(Writers, NumbersStayFiniteAndExact) {
  const auto text_of = [](auto value) {
    Buffer out;
    append_json_number(out, value);
    return std::string(as_text(out.view()));
  };
  EXPECT_EQ(text_of(0.1F), "0.1");
  EXPECT_EQ(text_of(0.1), "0.1");
  EXPECT_EQ(text_of(2.0), "2.0");
  EXPECT_EQ(text_of(1e300), "1e+300");
  EXPECT_EQ(text_of(std::numeric_limits<double>::quiet_NaN()), "0.0");
  EXPECT_EQ(text_of(std::numeric_limits<double>::infinity()), "1.7976931348623157e+308");
  EXPECT_EQ(text_of(int64_t{-5}), "-5");
  EXPECT_EQ(text_of(UINT64_MAX), "18446744073709551615");
}

TEST(Writers, LengthsOfEveryWidth) {
  for (const size_t size : {0, 1, 31, 32, 255, 256, 65535, 65536, 100000}) {
    Buffer out;
    pack_str(out, std::string(size, 'x'));
    std::string text;
    EXPECT_TRUE(MsgpackReader(out.view()).read(text));
    EXPECT_EQ(text.size(), size);

    out.clear();
    pack_array(out, size);
    for (size_t i = 0; i < size; ++i) pack_uint(out, i);
    std::vector<uint32_t> ids;
    EXPECT_TRUE(MsgpackReader(out.view()).read(ids));
    ASSERT_EQ(ids.size(), size);
    for (size_t i = 0; i < size; ++i) ASSERT_EQ(ids[i], i);
  }
}

}  // namespace
}  // namespace dyn::wire
