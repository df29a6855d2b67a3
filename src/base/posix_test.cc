#include "base/posix.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace dyn {
namespace {

TEST(UniqueFd, ClosesWhatItOwnsAndNothingElse) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const UniqueFd reader(ends[0]);
  {
    UniqueFd writer(ends[1]);
    UniqueFd moved(std::move(writer));
    EXPECT_FALSE(writer);  // NOLINT(bugprone-use-after-move): the moved-from state is what is tested
    EXPECT_EQ(moved.get(), ends[1]);
    ASSERT_TRUE(write_all(moved.get(), "abc").ok());
  }
  const auto text = read_all(reader.get(), 10);  // ends only because the writer was closed
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "abc");
}

TEST(ReadAll, RefusesMoreThanTheLimit) {
  for (const size_t limit : {0u, 2u}) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe(ends.data()), 0);
    const UniqueFd reader(ends[0]);
    ASSERT_TRUE(write_all(ends[1], "abc").ok());
    ::close(ends[1]);
    EXPECT_FALSE(read_all(reader.get(), limit).ok());
  }
}

TEST(OpenFd, NamesThePathAndTheReason) {
  const auto missing = open_fd("/nonexistent/file", O_RDONLY | O_CLOEXEC);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, Code::kNotFound);
  EXPECT_EQ(missing.error().message, "cannot open /nonexistent/file: No such file or directory");
}

TEST(ErrnoError, MapsCodes) {
  EXPECT_EQ(errno_error("x", EEXIST).code, Code::kAlreadyExists);
  EXPECT_EQ(errno_error("x", EACCES).code, Code::kUnavailable);
}

}  // namespace
}  // namespace dyn
