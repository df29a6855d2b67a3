// Kernels for any x86-64: 4 lanes, a multiplication and an addition instead of one FMA. The plainest path, and the
// oracle.
#include "native/exec/cpu/kernels_impl.h"

namespace dyn::native {
namespace {

struct Portable : Vector<4> {
  static constexpr uint32_t kGemmRows = 2;
  static constexpr uint32_t kGemmColumns = 4;
  static constexpr uint32_t kFewColumns = 4;
  static constexpr uint32_t kHeadVectors = 2;
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
};

}  // namespace

extern const Kernels kKernelsPortable;
const Kernels kKernelsPortable = Impl<Portable>::table(CpuIsa::kPortable, "portable");

}  // namespace dyn::native
