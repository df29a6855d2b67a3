#include "native/exec/cuda/module/device.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "native/exec/cuda/kernels/read_probe.h"

namespace dyn::native::cuda {
namespace {

constexpr int32_t kDebug = 1;  // log::Level

constexpr int kComputeMajor = 9;  // what the kernels are compiled for: sm_90a runs on 9.0 alone
constexpr int kComputeMinor = 0;

Fault no_device(std::string text) {
  return {Status::kNoDevice, std::move(text)};
}

// Room behind the host's part of a staging buffer for the tiles of prefill attention.
size_t tile_bytes(const ModelSpec& model, const StepLimits& limits) {
  const size_t group = model.num_heads / model.num_kv_heads;
  const size_t tiles = limits.max_num_tokens * group / kPrefillTileRows + limits.max_batch_size + 1;
  return tiles * sizeof(PrefillTile);
}

size_t align(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

DeviceFacts probe_device(int32_t index) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) {
    cudaGetLastError();
    throw no_device("no NVIDIA driver is loaded (libcuda.so.1 was not found or does not answer)");
  }
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();
    if (error == cudaErrorInsufficientDriver) {
      throw no_device("the NVIDIA driver supports CUDA " + std::to_string(driver / 1000) + "." +
                      std::to_string(driver % 1000 / 10) + ", this build needs " + std::to_string(runtime / 1000) +
                      "." + std::to_string(runtime % 1000 / 10) + ": install a newer driver");
    }
    throw no_device(std::string("no GPU can be used: ") + cudaGetErrorString(error));
  }
  if (index < 0 || index >= count) {
    throw no_device("GPU " + std::to_string(index) + " is not there; there are " + std::to_string(count));
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "GPU");
  if (properties.major != kComputeMajor || properties.minor != kComputeMinor) {
    throw no_device(std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." +
                    std::to_string(properties.minor) + "; this build has code for 9.0 (Hopper) alone");
  }
  DeviceFacts facts{};
  facts.struct_size = sizeof facts;
  std::strncpy(facts.name, properties.name, sizeof facts.name - 1);
  facts.compute_major = properties.major;
  facts.compute_minor = properties.minor;
  facts.driver_version = driver;
  facts.multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
  facts.total_bytes = properties.totalGlobalMem;
  return facts;
}

Device::Device(const HostCalls& host, int32_t index) : host_(host), index_(index) {
  make_current();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  check(cudaStreamCreateWithFlags(&upload_stream_, cudaStreamNonBlocking), "stream");
}

Device::~Device() {
  make_current();
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const Graph& graph : graphs_) cudaGraphExecDestroy(graph.exec);
  forward_.reset();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  if (upload_stream_ != nullptr) cudaStreamDestroy(upload_stream_);
}

void Device::make_current() const {
  check(cudaSetDevice(index_), "GPU");
}

void Device::reserve_weights(uint64_t bytes) {
  weights_ = DeviceMemory<std::byte>::allocate(bytes, "weights");
  uploads_.resize(kUploadSlots);
}

void* Device::upload_buffer(uint32_t slot) {
  UploadSlot& upload = uploads_.at(slot);
  if (upload.buffer.data() == nullptr) {
    upload.buffer = PinnedMemory<std::byte>::allocate(kUploadBytes, "upload buffer");
  } else {
    check(cudaEventSynchronize(upload.done.get()), "upload");
  }
  return upload.buffer.data();
}

void Device::upload(uint32_t slot, uint64_t offset, uint64_t bytes) {
  UploadSlot& upload = uploads_.at(slot);
  if (bytes > kUploadBytes || offset + bytes > weights_.bytes())
    throw Fault{Status::kFailed, "upload beyond the arena"};
  check(cudaMemcpyAsync(weights_.data() + offset, upload.buffer.data(), bytes, cudaMemcpyHostToDevice, upload_stream_),
        "upload");
  check(cudaEventRecord(upload.done.get(), upload_stream_), "upload");
}

void Device::finish_uploads() {
  check(cudaStreamSynchronize(upload_stream_), "upload");
  uploads_.clear();
}

void Device::prepare(const ModelSpec& model, const StepLimits& limits) {
  limits_ = limits;
  const DeviceFacts facts = probe_device(index_);
  forward_ = std::make_unique<Forward>(model, limits, weights_.data(), facts.multiprocessors, stream_);
  staging_bytes_ = align(limits.staging_bytes) + tile_bytes(model, limits);
  staged_ = DeviceMemory<std::byte>::allocate(staging_bytes_, "staging");
  check(cudaMemset(staged_.data(), 0, staging_bytes_), "staging");
  flights_.resize(2);
  for (Flight& flight : flights_) {
    flight.staging = PinnedMemory<std::byte>::allocate(staging_bytes_, "staging");
    flight.results = PinnedMemory<std::byte>::allocate(ResultLayout(limits.max_batch_size).end, "results");
  }
}

void Device::reserve_kv(uint32_t num_pages, uint64_t page_bytes) {
  kv_ = DeviceMemory<std::byte>::allocate(num_pages * page_bytes, "KV pool");
  // Attention multiplies masked tokens by zero, so that no page may hold a NaN.
  check(cudaMemset(kv_.data(), 0, kv_.bytes()), "KV pool");
  check(cudaDeviceSynchronize(), "KV pool");
  page_bytes_ = page_bytes;
  forward_->set_kv(kv_.data(), page_bytes);
}

void* Device::staging(uint32_t flight) {
  return flights_.at(flight).staging.data();
}

StepPointers Device::pointers(const StagedStep& step) const {
  const auto at = [&]<class T>(T*& pointer, uint32_t offset) {
    pointer = reinterpret_cast<T*>(staged_.data() + offset);
  };
  StepPointers p;
  at(p.token_ids, step.token_ids);
  at(p.from_sample, step.from_sample);
  at(p.positions, step.positions);
  at(p.kv_slots, step.kv_slots);
  at(p.long_tokens, step.long_tokens);
  at(p.row_offsets, step.row_offsets);
  at(p.context_lens, step.context_lens);
  at(p.page_offsets, step.page_offsets);
  at(p.sample_tokens, step.sample_tokens);
  at(p.sample_params, step.sample_params);
  at(p.mask_tokens, step.mask_tokens);
  at(p.bias_tokens, step.bias_tokens);
  at(p.bias_values, step.bias_values);
  at(p.pages, step.pages);
  return p;
}

const Device::Graph* Device::graph_of(const StagedStep& step) const {
  if (step.bucket == 0) return nullptr;
  for (const Graph& graph : graphs_) {
    if (graph.rows == step.bucket) return &graph;
  }
  return nullptr;
}

void Device::enqueue(const StagedStep& step) {
  Flight& flight = flights_.at(step.flight);
  if (flight.pending) throw Fault{Status::kFailed, "the flight's last step is not collected"};
  std::byte* staging = flight.staging.data();
  StepPointers p = pointers(step);
  uint32_t bytes = step.bytes;
  if (step.num_decode_rows < step.num_tokens) {
    const auto* offsets = reinterpret_cast<const uint32_t*>(staging + step.row_offsets);
    const auto* contexts = reinterpret_cast<const int32_t*>(staging + step.context_lens);
    static thread_local std::vector<PrefillTile> tiles;
    static thread_local std::vector<uint8_t> skip;
    skip.assign(step.num_rows, 0);
    std::fill_n(skip.begin(), step.num_decode_rows, uint8_t{1});
    plan_prefill({offsets, step.num_rows + 1}, {contexts, step.num_rows}, forward_->group(), skip, tiles);
    const size_t at = align(bytes);
    if (at + tiles.size() * sizeof(PrefillTile) > staging_bytes_) throw Fault{Status::kFailed, "staging is full"};
    std::memcpy(staging + at, tiles.data(), tiles.size() * sizeof(PrefillTile));
    p.tiles = reinterpret_cast<const PrefillTile*>(staged_.data() + at);
    p.num_tiles = static_cast<uint32_t>(tiles.size());
    bytes = static_cast<uint32_t>(at + tiles.size() * sizeof(PrefillTile));
  }
  if (bytes > staging_bytes_) throw Fault{Status::kFailed, "staging is full"};
  check(cudaMemcpyAsync(staged_.data(), staging, bytes, cudaMemcpyHostToDevice, stream_), "staging");
  if (step.num_page_copies > 0) {
    check(launch_page_copy({.pool = kv_.data(),
                            .from = reinterpret_cast<const int32_t*>(staged_.data() + step.copy_from),
                            .to = reinterpret_cast<const int32_t*>(staged_.data() + step.copy_to),
                            .count = step.num_page_copies,
                            .page_bytes = page_bytes_},
                           {.stream = stream_}),
          "page copies");
  }
  if (step.num_count_starts > 0) {
    forward_->start_counts(reinterpret_cast<const CountStart*>(staging + step.count_starts), step.num_count_starts,
                           reinterpret_cast<const uint32_t*>(staged_.data() + step.count_tokens), stream_);
  }
  if (const Graph* graph = graph_of(step)) {
    check(cudaGraphLaunch(graph->exec, stream_), "graph");
  } else {
    forward_->run(p, step, stream_);
  }
  flight.num_samples = step.num_samples;
  flight.any_top = step.any_top != 0;
  if (step.num_samples > 0) {
    const ResultLayout layout(step.num_samples);
    check(cudaMemcpyAsync(flight.results.data(), forward_->results(), flight.any_top ? layout.end : layout.top,
                          cudaMemcpyDeviceToHost, stream_),
          "results");
  }
  check(cudaEventRecord(flight.done.get(), stream_), "step");
  flight.pending = true;
  last_ = step;
}

StepOutcome Device::collect(uint32_t index) {
  Flight& flight = flights_.at(index);
  if (!flight.pending) throw Fault{Status::kFailed, "no step of this flight was enqueued"};
  check(cudaEventSynchronize(flight.done.get()), "step");
  flight.pending = false;
  const ResultLayout layout(flight.num_samples);
  const std::byte* results = flight.results.data();
  return {.struct_size = sizeof(StepOutcome),
          .tokens = reinterpret_cast<const uint32_t*>(results),
          .logprobs = reinterpret_cast<const float*>(results + layout.logprobs),
          .not_finite = reinterpret_cast<const uint8_t*>(results + layout.not_finite),
          .top = flight.any_top ? reinterpret_cast<const TopLogprobOut*>(results + layout.top) : nullptr};
}

void Device::read_logits(bool of_tokens, const uint32_t* indices, uint32_t count, float* to) {
  const size_t vocab = forward_->vocab_size();
  if (!of_tokens) {
    for (uint32_t i = 0; i < count; ++i) {
      if (indices[i] >= last_.num_samples) throw Fault{Status::kFailed, "logits of no sample"};
      check(cudaMemcpyAsync(to + i * vocab, forward_->logits() + indices[i] * vocab, vocab * sizeof(float),
                            cudaMemcpyDeviceToHost, stream_),
            "logits");
    }
    check(cudaStreamSynchronize(stream_), "logits");
    return;
  }
  // The staged arrays of the step are still needed by nobody: the step is done when the stream gets here.
  for (uint32_t begin = 0; begin < count; begin += limits_.max_batch_size) {
    const uint32_t rows = std::min(count - begin, limits_.max_batch_size);
    check(cudaMemcpyAsync(staged_.data(), indices + begin, rows * sizeof(uint32_t), cudaMemcpyHostToDevice, stream_),
          "logits");
    forward_->project_tokens(reinterpret_cast<const int32_t*>(staged_.data()), rows, stream_);
    check(cudaMemcpyAsync(to + begin * vocab, forward_->logits(), rows * vocab * sizeof(float), cudaMemcpyDeviceToHost,
                          stream_),
          "logits");
    check(cudaStreamSynchronize(stream_), "logits");
  }
}

void Device::capture(const StagedStep& step) {
  // Once without a graph: libraries choose algorithms and kernels set attributes outside of the capture.
  StagedStep plain = step;
  enqueue(plain);
  collect(step.flight);
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
  try {
    forward_->run(pointers(step), step, stream_);
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_, &graph), "capture");
  Graph captured{.rows = step.bucket};
  const cudaError_t error = cudaGraphInstantiate(&captured.exec, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "graph");
  check(cudaGraphUpload(captured.exec, stream_), "graph");
  check(cudaStreamSynchronize(stream_), "graph");
  graphs_.push_back(captured);
  if (host_.log != nullptr) {
    const std::string text = "captured a CUDA graph of " + std::to_string(step.bucket) + " rows";
    host_.log(host_.user, kDebug, text.c_str());
  }
}

double Device::measure_read(uint64_t buffer_bytes) {
  auto buffer = DeviceMemory<std::byte>::allocate(buffer_bytes, "read probe");
  auto sink = DeviceMemory<float>::allocate(1, "read probe");
  check(cudaMemsetAsync(buffer.data(), 1, buffer_bytes, stream_), "read probe");
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin), "read probe");
  check(cudaEventCreate(&end), "read probe");
  double best = 0;
  for (int run = 0; run < 12; ++run) {
    check(cudaEventRecord(begin, stream_), "read probe");
    check(launch_read_probe(buffer.data(), buffer_bytes, sink.data(), stream_), "read probe");
    check(cudaEventRecord(end, stream_), "read probe");
    check(cudaEventSynchronize(end), "read probe");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "read probe");
    if (run > 1) best = std::max(best, static_cast<double>(buffer_bytes) / (static_cast<double>(ms) * 1e-3));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

}  // namespace dyn::native::cuda
