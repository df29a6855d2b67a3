// Compares every kernel with plain host code in double precision, on random inputs, odd sizes and poisoned outputs.
//
//   cuda_kernels_check [filter]     # exit status 1 when a comparison fails; a line each
//
// Runs in seconds, also under compute-sanitizer. Needs a GPU of compute capability 9.0.
#include "native/exec/cuda/kernels/kernels_check.cuh"

int main(int argc, char** argv) {
  using namespace dyn::native::cuda;
  const std::string filter = argc > 1 ? argv[1] : "";
  const std::pair<const char*, void (*)()> suites[] = {
      {"elementwise", check_elementwise},   {"linear", check_linear},   {"decode", check_decode_attention},
      {"prefill", check_prefill_attention}, {"experts", check_experts}, {"sample", check_sample},
  };
  for (const auto& [name, suite] : suites) {
    if (std::string(name).find(filter) == std::string::npos) continue;
    suite();
    require(cudaDeviceSynchronize(), name);
  }
  std::printf("%d failures\n", failures());
  return failures() == 0 ? 0 : 1;
}
