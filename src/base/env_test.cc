#include "base/env.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace dyn {
namespace {

constexpr char kName[] = "DYN_ENV_TEST_VARIABLE";

class EnvTest : public ::testing::Test {
 protected:
  ~EnvTest() override { ::unsetenv(kName); }
};

TEST_F(EnvTest, UnsetAndEmptyAreTheFallback) {
  ::unsetenv(kName);
  EXPECT_EQ(*env_number(kName, 7), 7);
  EXPECT_TRUE(*env_truth(kName, true));
  ::setenv(kName, "", 1);
  EXPECT_EQ(*env_number(kName, 7), 7);
  EXPECT_FALSE(*env_truth(kName, false));
}

TEST_F(EnvTest, NumbersMustBeWhole) {
  ::setenv(kName, "-2.5", 1);
  EXPECT_EQ(*env_number(kName, 7), -2.5);
  for (const char* bad : {"5s", "x", " ", "inf", "nan", "1e999", "0x"}) {
    ::setenv(kName, bad, 1);
    const auto number = env_number(kName, 7);
    ASSERT_FALSE(number.ok()) << bad;
    EXPECT_EQ(number.error().code, Code::kInvalidArgument);
    EXPECT_NE(number.error().message.find(kName), std::string::npos);
  }
}

TEST_F(EnvTest, TruthHasManyNames) {
  for (const char* yes : {"1", "true", "TRUE", "on", "Yes"}) {
    ::setenv(kName, yes, 1);
    EXPECT_TRUE(*env_truth(kName, false)) << yes;
  }
  for (const char* no : {"0", "false", "OFF", "no"}) {
    ::setenv(kName, no, 1);
    EXPECT_FALSE(*env_truth(kName, true)) << no;
  }
  ::setenv(kName, "maybe", 1);
  EXPECT_FALSE(env_truth(kName, true).ok());
}

}  // namespace
}  // namespace dyn
