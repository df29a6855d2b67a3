// The border between the worker and an executor module (libdynamo_exec_cuda.so): plain structs and function pointers,
// private to one build.
//
//   const ExecutorApi* api = entry();                       // dlsym(module, kExecutorEntry)
//   if (api->struct_size != sizeof(ExecutorApi) || DYN_EXECUTOR_BUILD_ID differs from api->build_id) ...
//   api->open(&host, device, &handle, &error);
//
// Both sides are compiled from this header; DYN_EXECUTOR_BUILD_ID is a digest of it and of what else
// crosses the border (cmake/Cuda.cmake), so a module of another build is refused instead of misread. Requests, plans
// and sampling policy stay in the worker; the module sees one model, one KV pool and packed steps.
//
// Ownership: memory handed over belongs to the side that made it; the module is never closed. Thread rules: one thread
// for everything but upload_buffer() and upload(), which several threads may call, each with slots of its own. No
// exception crosses the border: functions return a Status and, when it is not kOk, one line in `error`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/exec/cuda/kernels/sample_params.h"

namespace dyn::native::cuda {

inline constexpr const char* kExecutorEntry = "dyn_executor_api";

enum class Status : int32_t {
  kOk = 0,
  kNoDevice = 1,  // no driver, no GPU, or one that this module has no code for
  kNoMemory = 2,  // the device's memory does not suffice
  kFailed = 3,    // a defect or a broken device
};

struct ErrorText {
  char text[512];
};

// What the module may call back. `level`: as log::Level.
struct HostCalls {
  uint32_t struct_size;
  void* user;
  void (*log)(void* user, int32_t level, const char* text);
};

struct DeviceFacts {
  uint32_t struct_size;
  char name[128];
  int32_t compute_major;
  int32_t compute_minor;
  int32_t driver_version;  // 13000: CUDA 13.0
  uint32_t multiprocessors;
  uint64_t total_bytes;
};

// Byte offsets into the weight arena.
inline constexpr uint64_t kNoTensor = ~uint64_t{0};

struct LayerSpec {
  uint64_t attention_norm;  // F32, as all norms and biases
  uint64_t qkv;             // BF16 [q + 2 kv][hidden], as all matrices: row-major [out][in]
  uint64_t qkv_bias;
  uint64_t q_norm;
  uint64_t k_norm;
  uint64_t o;
  uint64_t o_bias;
  uint64_t post_attention_norm;
  uint64_t mlp_norm;
  uint64_t gate_up;  // of experts: [experts][2 moe intermediate][hidden]
  uint64_t gate_up_bias;
  uint64_t down;  // of experts: [experts][hidden][moe intermediate]
  uint64_t down_bias;
  uint64_t post_mlp_norm;
  uint64_t router;  // [experts][hidden]; kNoTensor: one feed-forward network
  uint32_t window;  // 0: none
  uint32_t rope;    // which of ModelSpec::ropes
};

// `long_*`: for rows that take longrope's long factors; null where there are none.
struct RopeSpec {
  const float* frequencies;  // [half]
  const float* long_frequencies;
  float factor;   // cosine and sine are multiplied with it
  uint32_t half;  // rotary dimensions / 2; what is behind them is not rotated
};

struct ModelSpec {
  uint32_t struct_size;
  uint32_t vocab_size;
  uint32_t hidden_size;
  uint32_t intermediate_size;
  uint32_t num_layers;
  uint32_t num_heads;
  uint32_t num_kv_heads;
  uint32_t head_dim;
  uint32_t num_experts;
  uint32_t chosen_experts;
  uint32_t moe_intermediate_size;
  uint32_t normalize_experts;
  uint32_t gelu;  // 0: SiLU, 1: GELU by tanh
  uint32_t num_ropes;
  float norm_eps;
  float embedding_scale;
  float score_scale;
  uint32_t reserved;
  uint64_t embedding;
  uint64_t final_norm;
  uint64_t lm_head;
  const LayerSpec* layers;  // [num_layers], read during the call only, like ropes
  const RopeSpec* ropes;    // [num_ropes]
};

struct StepLimits {
  uint32_t struct_size;
  uint32_t max_batch_size;
  uint32_t max_num_tokens;
  uint32_t tokens_per_block;
  uint32_t max_seq_len;  // longest context of a row
  uint32_t reserved;
  uint64_t staging_bytes;  // of what the host packs, each of the two buffers
};

// What a staging buffer holds. Offsets are bytes from its start, multiples of 16. Decode rows (one token) come first.
// In a step for a CUDA graph every count but those of lists is the bucket's, filled up with rows of context 0.
struct StagedStep {
  uint32_t struct_size;
  uint32_t flight;  // staging buffer, 0 or 1
  uint32_t bytes;   // used
  uint32_t bucket;  // rows of the CUDA graph to replay; 0: none, kernels are launched one by one
  uint32_t num_tokens;
  uint32_t num_rows;
  uint32_t num_samples;
  uint32_t num_decode_rows;
  uint32_t max_context;  // of decode rows
  uint32_t any_top;      // some sample wants alternatives

  uint32_t token_ids;      // uint32 [tokens]; 0xFFFF'FFFF: that of sample from_sample of the step before
  uint32_t from_sample;    // uint32 [tokens]
  uint32_t positions;      // int32 [tokens]
  uint32_t kv_slots;       // int64 [tokens]: page * tokens_per_block + index in the page; -1: padding
  uint32_t long_tokens;    // uint8 [tokens]
  uint32_t row_offsets;    // uint32 [rows + 1]
  uint32_t context_lens;   // int32 [rows]
  uint32_t page_offsets;   // uint32 [rows + 1]
  uint32_t sample_tokens;  // int32 [samples]: token whose logits are sampled
  uint32_t sample_params;  // SampleRowParams [samples]; counts_row is a slot
  uint32_t mask_tokens;    // uint32
  uint32_t bias_tokens;    // uint32
  uint32_t bias_values;    // float
  uint32_t pages;          // int32 [page_offsets[rows]]

  uint32_t num_page_copies;
  uint32_t copy_from;  // int32 [num_page_copies]
  uint32_t copy_to;    // int32

  uint32_t num_count_starts;  // slots with penalties that a sequence enters
  uint32_t count_starts;      // CountStart [num_count_starts]
  uint32_t count_tokens;      // uint32
};

struct CountStart {
  uint32_t slot;
  uint32_t begin;  // first of count_tokens: the prompt's, then the answer's
  uint32_t num_prompt;
  uint32_t num_generated;
};

// Arrays of num_samples, valid until the flight is enqueued again.
struct StepOutcome {
  uint32_t struct_size;
  const uint32_t* tokens;
  const float* logprobs;
  const uint8_t* not_finite;
  const TopLogprobOut* top;  // [samples][kMaxTopLogprobs]; null without any_top
};

struct Device;  // the module's

struct ExecutorApi {
  uint32_t struct_size;
  const char* build_id;

  // Looks whether a device can be used, without taking memory of it.
  Status (*probe)(int32_t device, DeviceFacts* facts, ErrorText* error);
  Status (*open)(const HostCalls* host, int32_t device, Device** handle, ErrorText* error);
  void (*close)(Device* handle);
  Status (*memory)(Device* handle, uint64_t* free_bytes, uint64_t* total_bytes, ErrorText* error);

  // Weights: an arena, filled from pinned buffers. upload_buffer() waits until the slot's last copy is done.
  uint32_t (*upload_slots)(Device* handle);
  Status (*reserve_weights)(Device* handle, uint64_t bytes, ErrorText* error);
  Status (*upload_buffer)(Device* handle, uint32_t slot, void** buffer, uint64_t* capacity, ErrorText* error);
  Status (*upload)(Device* handle, uint32_t slot, uint64_t offset, uint64_t bytes, ErrorText* error);
  Status (*finish_uploads)(Device* handle, ErrorText* error);

  // Activations and staging, then the KV pool (`page_bytes`: of one page, all layers), then CUDA graphs, each from
  // a staged step of a bucket's padding rows.
  Status (*prepare)(Device* handle, const ModelSpec* model, const StepLimits* limits, ErrorText* error);
  Status (*reserve_kv)(Device* handle, uint32_t num_pages, uint64_t page_bytes, ErrorText* error);
  Status (*capture)(Device* handle, const StagedStep* step, ErrorText* error);
  Status (*staging)(Device* handle, uint32_t flight, void** buffer, ErrorText* error);

  // A step whose staging buffer is filled; returns before it is done.
  Status (*enqueue)(Device* handle, const StagedStep* step, ErrorText* error);
  // Waits for the flight's step.
  Status (*collect)(Device* handle, uint32_t flight, StepOutcome* outcome, ErrorText* error);
  // Logits of the step enqueued last, in F32, to the host: of its samples, or of any of its tokens. Waits for them, and
  // must come before the next enqueue().
  Status (*read_logits)(Device* handle, uint32_t of_tokens, const uint32_t* indices, uint32_t count, float* to,
                        ErrorText* error);

  // For benchmarks: bytes a second that a kernel reads from a buffer of this size.
  Status (*measure_read)(Device* handle, uint64_t buffer_bytes, double* bytes_per_s, ErrorText* error);
};

}  // namespace dyn::native::cuda
