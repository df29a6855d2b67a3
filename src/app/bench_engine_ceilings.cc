#include "app/bench_engine_ceilings.h"

#include <immintrin.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "native/exec/cpu/fast/kernels.h"
#include "native/exec/cpu/host_memory.h"
#include "native/exec/cpu/kernels.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/model/weights.h"

namespace dyn::app::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kSliceBytes = kMiB;  // of the buffer, one item of a job
// A pass is about a millisecond, so that even on a busy machine some passes have every CPU to themselves.
constexpr uint32_t kSlicesPerPass = 32;
constexpr unsigned kItemsPerThread = 4;
constexpr uint64_t kRoundsPerItem = 50'000;
constexpr int kLeastPasses = 3;
constexpr double kPatience = 5;

// Where results go, so that the compiler must compute them.
std::atomic<uint64_t> g_sink{0};

// CPU time the items of a pass used. Of the calling thread each: the kernel brings a whole process's clock up to date
// at ticks only, which are longer than a pass.
std::atomic<uint64_t> g_busy_ns{0};

uint64_t thread_cpu_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<uint64_t>(now.tv_nsec);
}

template <class Item>
void run_pass(native::ThreadPool& pool, uint32_t items, const Item& item) {
  pool.run(items, [&](uint32_t i, unsigned) {
    const uint64_t start = thread_cpu_ns();
    g_sink.fetch_xor(item(i), std::memory_order_relaxed);
    g_busy_ns.fetch_add(thread_cpu_ns() - start, std::memory_order_relaxed);
  });
}

struct Best {
  double seconds = 0;
  double cpus = 0;  // this process had meanwhile
};

// The fastest pass among those that fit into `seconds`, at least kLeastPasses; longer, up to kPatience times, while the
// fastest lacked CPUs.
template <class Pass>
Best best_pass(unsigned threads, double seconds, const Pass& pass) {
  Best best;
  const auto begin = Clock::now();
  for (int passes = 0;; ++passes) {
    const auto start = Clock::now();
    const double passed = std::chrono::duration<double>(start - begin).count();
    const bool whole = best.cpus >= kUndisturbed * threads;
    if (passes >= kLeastPasses && passed >= seconds * (whole ? 1 : kPatience)) return best;
    g_busy_ns = 0;
    pass();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    if (passes == 0 || took < best.seconds)
      best = {.seconds = took, .cpus = static_cast<double>(g_busy_ns) * 1e-9 / took};
  }
}

uint64_t read_slice(const std::byte* data) {
  // 16 loads in flight are more than memory answers; the sums cost nothing beside them.
  using Word = uint64_t __attribute__((vector_size(16)));
  constexpr size_t kWords = 16;
  Word sums[kWords] = {};
  for (size_t at = 0; at < kSliceBytes; at += sizeof sums) {
    Word words[kWords];
    std::memcpy(words, data + at, sizeof words);
    for (size_t i = 0; i < kWords; ++i) sums[i] ^= words[i];
  }
  Word all = {};
  for (const Word& sum : sums) all ^= sum;
  return all[0] ^ all[1];
}

// Operations or bytes a second.
struct Rate {
  double per_s = 0;
  double cpus = 0;
};

Result<Rate> read_rate(native::ThreadPool& pool, uint64_t bytes, double seconds) {
  auto buffer = native::HostArena::allocate(bytes);
  if (!buffer) return buffer.error().with_context("read bandwidth");
  const auto slices = static_cast<uint32_t>(bytes / kSliceBytes);
  std::byte* data = buffer->data();
  // Written first: untouched pages are all the same page of zeros, which the caches hold.
  pool.run(slices, [&](uint32_t i, unsigned) { std::memset(data + i * kSliceBytes, 0x5A, kSliceBytes); });
  // Passes go round the buffer, so that what one reads has left the caches long ago.
  const uint32_t pass = std::min(slices, std::max(kSlicesPerPass, pool.size() * kItemsPerThread));
  uint32_t next = 0;
  const Best best = best_pass(pool.size(), seconds, [&] {
    if (next + pass > slices) next = 0;
    run_pass(pool, pass, [&](uint32_t i) { return read_slice(data + (next + i) * kSliceBytes); });
    next += pass;
  });
  return Rate{static_cast<double>(pass * kSliceBytes) / best.seconds, best.cpus};
}

// Independent chains of multiply-adds, enough of them to hide the latency of one and few enough to stay in registers.
template <int kLanes, int kChains, bool kFused>
[[gnu::always_inline]] inline float run_chains(float factor, float addend) {
  using Float = float __attribute__((vector_size(kLanes * sizeof(float))));
  const Float a = Float{} + factor;
  const Float b = Float{} + addend;
  Float chains[kChains];
#pragma clang loop unroll(full)
  for (int i = 0; i < kChains; ++i) chains[i] = Float{} + static_cast<float>(i);
  for (uint64_t round = 0; round < kRoundsPerItem; ++round) {
#pragma clang loop unroll(full)
    for (int i = 0; i < kChains; ++i) {
      if constexpr (kFused) {
        chains[i] = __builtin_elementwise_fma(chains[i], a, b);
      } else {
        chains[i] = chains[i] * a;
        chains[i] = chains[i] + b;
      }
    }
  }
  Float sum = Float{};
#pragma clang loop unroll(full)
  for (int i = 0; i < kChains; ++i) sum += chains[i];
  float result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result += sum[lane];
  return result;
}

float chains_portable(float a, float b) {
  return run_chains<4, 12, false>(a, b);
}
[[gnu::target("avx2,fma")]] float chains_avx2(float a, float b) {
  return run_chains<8, 12, true>(a, b);
}
[[gnu::target("avx512f,avx2,fma")]] float chains_avx512(float a, float b) {
  return run_chains<16, 24, true>(a, b);
}

// vdpbf16ps: each lane adds two products.
[[gnu::target("avx512f,avx512bf16,avx2,fma")]] float chains_avx512_bf16(float a, float) {
  constexpr int kChains = 24;
  const __m512bh factor = reinterpret_cast<__m512bh>(_mm512_set1_epi32(a > 0 ? 0x3C003C00 : 0));
  __m512 chains[kChains];
#pragma clang loop unroll(full)
  for (int i = 0; i < kChains; ++i) chains[i] = _mm512_set1_ps(static_cast<float>(i));
  for (uint64_t round = 0; round < kRoundsPerItem; ++round) {
#pragma clang loop unroll(full)
    for (int i = 0; i < kChains; ++i) chains[i] = _mm512_dpbf16_ps(chains[i], factor, factor);
  }
  __m512 sum = _mm512_setzero_ps();
#pragma clang loop unroll(full)
  for (int i = 0; i < kChains; ++i) sum = sum + chains[i];
  return sum[0] + sum[15];
}

struct Chains {
  native::CpuIsa isa;
  float (*run)(float, float);
  double flops;  // of one call
};

constexpr Chains chains_of(native::CpuIsa isa, float (*run)(float, float), int lanes, int chains) {
  return {isa, run, 2.0 * lanes * chains * static_cast<double>(kRoundsPerItem)};
}

Rate flop_rate(native::ThreadPool& pool, const Chains& chains, double seconds) {
  const unsigned items = pool.size() * kItemsPerThread;
  // Converges to 1: neither overflows nor becomes denormal. Volatile: not known when compiled.
  volatile const float half = 0.5F;
  const Best best = best_pass(pool.size(), seconds, [&] {
    run_pass(pool, items, [&](uint32_t) { return chains.run(half, half) > 0 ? uint64_t{1} : uint64_t{0}; });
  });
  return {chains.flops * items / best.seconds, best.cpus};
}

}  // namespace

uint64_t read_buffer_bytes(uint64_t last_cache_bytes, uint64_t free_bytes) {
  const uint64_t wanted = std::clamp(4 * last_cache_bytes, 256 * kMiB, 1024 * kMiB);
  return std::max(std::min(wanted, free_bytes / 4) / kSliceBytes, uint64_t{1}) * kSliceBytes;
}

Result<Ceilings> measure_ceilings(const CeilingOptions& options) {
  Ceilings result;
  native::ThreadPool pool(options.threads);
  result.threads = pool.size();
  const long cache = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  result.buffer_bytes =
      read_buffer_bytes(cache > 0 ? static_cast<uint64_t>(cache) : 0, native::available_memory_bytes());
  auto read = read_rate(pool, result.buffer_bytes, options.seconds);
  if (!read) return read.error();
  result.read_bytes_per_s = read->per_s;
  result.cpus = read->cpus;
  const native::Kernels* used = native::kernels_for(options.isa);
  if (used == nullptr) return unsupported("this machine lacks the instruction set");
  for (const Chains& chains :
       {chains_of(native::CpuIsa::kPortable, chains_portable, 4, 12),
        chains_of(native::CpuIsa::kAvx2, chains_avx2, 8, 12), chains_of(native::CpuIsa::kAvx512, chains_avx512, 16, 24),
        chains_of(native::CpuIsa::kAvx512Bf16, chains_avx512_bf16, 32, 24)}) {
    const native::FastKernels* kernels = native::fast_kernels_for(chains.isa);
    if (kernels == nullptr) continue;
    const Rate rate = flop_rate(pool, chains, options.seconds);
    result.all.emplace_back(kernels->name, rate.per_s);
    if (kernels->name != (options.kernels.empty() ? used->name : options.kernels)) continue;
    result.flops_per_s = rate.per_s;
    result.cpus = std::min(result.cpus, rate.cpus);
  }
  return result;
}

}  // namespace dyn::app::bench
