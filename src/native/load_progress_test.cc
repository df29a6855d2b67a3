#include "native/load_progress.h"

#include <gtest/gtest.h>

namespace dyn::native {
namespace {

TEST(ProgressText, TellsShareRateAndTimeLeft) {
  EXPECT_EQ(progress_text(1'300'000'000, 3'000'000'000, 0.5), " 43 %  1.3 of 3.0 GB  2.6 GB/s  1 s left");
  EXPECT_EQ(progress_text(2'999'999'999, 3'000'000'000, 100), " 99 %  3.0 of 3.0 GB  0.0 GB/s  1 s left");
  EXPECT_EQ(progress_text(3'000'000'000, 3'000'000'000, 1), "100 %  3.0 of 3.0 GB  3.0 GB/s  0 s left");
  EXPECT_EQ(progress_text(0, 3'000'000'000, 1), "  0 %  0.0 of 3.0 GB");
  EXPECT_EQ(progress_text(0, 0, 0), "100 %  0.0 of 0.0 GB");
}

TEST(ProgressBar, IsFullAtTheEndOnly) {
  EXPECT_EQ(progress_bar(0, 10, 4), "[----]");
  EXPECT_EQ(progress_bar(9, 10, 4), "[###-]");
  EXPECT_EQ(progress_bar(10, 10, 4), "[####]");
  EXPECT_EQ(progress_bar(11, 10, 4), "[####]");
}

// Nothing is drawn before some time has passed, and nothing is left of a bar.
TEST(LoadMeter, IsSilentWhenLoadingIsQuick) {
  testing::internal::CaptureStderr();
  LoadMeter meter(/*terminal=*/true);
  meter.update(1, 2);
  meter.finish();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace dyn::native
