#include "base/posix.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/test_support.h"

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

TEST(ReplaceFile, ShowsTheOldFileOrTheNewOneAndLeavesNothingElse) {
  const TempDir dir;
  ASSERT_TRUE(replace_file(dir / "file", {"one ", "two"}).ok());
  ASSERT_TRUE(replace_file(dir / "file", {"three"}).ok());
  auto file = open_fd(dir / "file", O_RDONLY);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(*read_all(file->get(), 100), "three");
  std::filesystem::create_directory(dir / "folder");
  std::filesystem::create_directory(dir / "folder/full");
  EXPECT_FALSE(replace_file(dir / "folder", {"x"}).ok());
  EXPECT_FALSE(replace_file(dir / "nowhere/file", {"x"}).ok());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 2);
}

}  // namespace
}  // namespace dyn
