// Fast kernels for any x86-64: 4 lanes, a multiplication and an addition instead of one FMA.
#include "native/exec/cpu/fast/kernels_impl.h"

namespace dyn::native {
namespace {

struct Portable : Vector<4> {
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
};

}  // namespace

extern const FastKernels kFastKernelsPortable;
const FastKernels kFastKernelsPortable = FastImpl<FmaArithmetic<Portable, 2, 1>>::table(CpuIsa::kPortable, "portable");

}  // namespace dyn::native
