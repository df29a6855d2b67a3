// Flags of the Python worker that this build cannot act on: without effect, or refused with the reason and the way out.
#include "app/options/table_internal.h"

namespace dyn::app {

namespace {

constexpr Place kFlag = Place::kFlag;

constexpr std::string_view kNoParallelism = "the engine runs on one device";
constexpr std::string_view kNoMultimodal = "this build serves text models only";
constexpr std::string_view kNoGuided = "structural tags need guided decoding, which is not built";
constexpr std::string_view kNoTls = "TLS on the request plane is not built";
constexpr std::string_view kPlainText = "leave it out here and at the frontend, and protect the network between them";
constexpr std::string_view kNoNats = "there is no connection to NATS";

constexpr Option diffusion(std::string_view name, Type type, std::string_view fallback, std::string_view help,
                           std::string_view choices = {}) {
  return choosing(
      refused(kFlag, name, type, fallback, Group::kDiffusion, "diffusion models are not served by this build",
              "leave it out, and serve a text model", help),
      choices);
}

// The frontend's own policy applies; the variables of the same names are the frontend's and are not looked at.
constexpr Option router(std::string_view name, Type type = Type::kText, std::string_view aliases = {}) {
  return named(without_effect(kFlag, name, type, {}, Group::kRouter,
                              "routing is not advertised on the model card, the frontend's own settings apply",
                              "Routing policy that the worker asks the frontend for."),
               {}, aliases);
}

constexpr Option kOptions[] = {
    // ---- Model and engine
    with(refused(kFlag, "revision", Type::kText, {}, Group::kModel,
                 "nothing is downloaded, and the cache is read at its main revision",
                 "pass the snapshot folder of that revision with --model",
                 "Revision of the model on the Hugging Face hub."),
         [](Option& row) { row.engine_key = "revision"; }),
    with(accepting(refused(kFlag, "model-loader-extra-config", Type::kJson, {}, Group::kModel,
                           "there is no GPU memory service in this build", "leave it out",
                           "Options of the loader for GPU memory service."),
                   "{}"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(choosing(
             refused(kFlag, "guided-decoding-backend", Type::kEnum, {}, Group::kEngine, "guided decoding is not built",
                     "leave it out; requests that ask for a constraint get an error", "Engine of constrained answers."),
             "xgrammar llguidance"),
         [](Option& row) { row.engine_key = "guided_decoding_backend"; }),
    with(
        without_effect(kFlag, "disable-request-abort", Type::kBool, "false", Group::kEngine,
                       "a cancelled request is always ended in the engine", "Let cancelled requests run to their end."),
        [](Option& row) { row.note = "1.0 only, there on by default"; }),
    with(accepting(refused(kFlag, "max-beam-width", Type::kInt, "1", Group::kBatching, "beam search is not built",
                           "leave it out, or set 1", "Beams of a request."),
                   "1"),
         [](Option& row) {
           row.engine_key = "max_beam_width";
           row.low = 1;
         }),

    // ---- Memory and KV cache
    named(accepting(refused(kFlag, "connector", Type::kList, {}, Group::kKvCache, "KV connectors are not built",
                            "leave it out, or set none", "KV cache connectors."),
                    "none"),
          "DYN_CONNECTOR"),

    // ---- Parallelism
    with(accepting(refused(kFlag, "tensor-parallel-size", Type::kInt, "1", Group::kParallelism, kNoParallelism,
                           "set it to 1, or leave it out", "Devices that share each layer."),
                   "1"),
         [](Option& row) {
           row.engine_key = "tensor_parallel_size";
           row.low = 1;
         }),
    with(accepting(refused(kFlag, "pipeline-parallel-size", Type::kInt, "1", Group::kParallelism, kNoParallelism,
                           "set it to 1, or leave it out", "Devices that share the layers one after the other."),
                   "1"),
         [](Option& row) {
           row.engine_key = "pipeline_parallel_size";
           row.low = 1;
         }),
    with(accepting(refused(kFlag, "expert-parallel-size", Type::kInt, {}, Group::kParallelism, kNoParallelism,
                           "set it to 1, or leave it out", "Devices that share the experts."),
                   "1 -1"),
         [](Option& row) {
           row.engine_key = "moe_expert_parallel_size";
           row.low = -1;
         }),
    with(without_effect(kFlag, "enable-attention-dp", Type::kBool, "false", Group::kParallelism,
                        "the engine has one rank", "Data-parallel attention."),
         [](Option& row) {
           row.note = "since 1.0";
           row.engine_key = "enable_attention_dp";
         }),
    with(without_effect(kFlag, "gpus-per-node", Type::kInt, {}, Group::kParallelism, "the engine uses no GPUs",
                        "GPUs of one machine."),
         [](Option& row) {
           row.engine_key = "gpus_per_node";
           row.low = 0;
         }),
    with(named(refused(kFlag, "conversation-affinity", Type::kBool, "false", Group::kParallelism,
                       "attention data parallelism is not built", "leave it out; there is one rank",
                       "Keep a conversation on one rank."),
               "DYN_ENGINE_CONV_AFFINITY"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(choosing(without_effect(kFlag, "conversation-affinity-dp-rank-source", Type::kEnum, "engine",
                                       Group::kParallelism, "there is one rank",
                                       "Who places the first turn of a conversation."),
                        "engine dynamo"),
               "DYN_ENGINE_CONV_AFFINITY_DP_RANK_SOURCE"),
         [](Option& row) { row.note = "since 1.5"; }),

    // ---- Disaggregated serving
    with(named(accepting(choosing(refused(kFlag, "disaggregation-mode", Type::kEnum, "agg", Group::kDisaggregation,
                                          "this build serves prefill and decode in one worker", "use agg",
                                          "Role of the worker."),
                                  "agg prefill decode encode"),
                         "agg"),
               "*", "disagg-mode"),
         [](Option& row) { row.value_aliases = "pd=agg prefill_and_decode=agg aggregated=agg"; }),
    with(without_effect(kFlag, "use-nixl-connect", Type::kBool, "false", Group::kDisaggregation,
                        "nothing is transferred; the original never used it either", "Use NIXL for transfers."),
         [](Option& row) {
           row.note = "0.8 only";
           row.arity = Arity::kOptional;
         }),
    refused(kFlag, "encode-endpoint", Type::kText, {}, Group::kDisaggregation, kNoMultimodal, "leave it out",
            "Endpoint of the encode worker."),

    // ---- KV events and metrics
    with(named(
             without_effect(kFlag, "health-check-payload", Type::kText, {}, Group::kHealth,
                            "the canary is a probe of the worker's own, one greedy token under a cache salt of its own",
                            "Request that is sent as canary."),
             "DYN_HEALTH_CHECK_PAYLOAD"),
         [](Option& row) { row.metavar = "JSON|@FILE"; }),
    with(named(without_effect(kFlag, "enable-local-indexer", Type::kBool, {}, Group::kEvents,
                              "who publishes KV events keeps an index of them, who does not has none",
                              "Let the worker keep its own index of KV blocks."),
               "DYN_LOCAL_INDEXER"),
         [](Option& row) {
           row.note = "0.8 only";
           row.arity = Arity::kOptional;
         }),
    with(named(refused(kFlag, "durable-kv-events", Type::kBool, "false", Group::kEvents,
                       "durable KV events need NATS JetStream, which this build does not speak",
                       "leave it out here and at the frontend (--router-durable-kv-events): events go over ZMQ",
                       "Durable KV events."),
               "DYN_DURABLE_KV_EVENTS"),
         [](Option& row) { row.note = "1.0 only"; }),
    with(named(refused(kFlag, "kv-state-endpoint", Type::kText, {}, Group::kEvents,
                       "KV events belong to the endpoint that serves the model", "leave it out",
                       "Endpoint that owns the identity of the KV events."),
               "DYN_KV_STATE_ENDPOINT"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "fpm-trace", Type::kBool, "false", Group::kEvents,
                       "forward-pass metrics are not published by this build", "leave it out",
                       "Log the metrics of each forward pass."),
               "DYN_FPM_TRACE"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(without_effect(kFlag, "enable-session-prefix-index", Type::kBool, "false", Group::kEvents,
                              "nothing reads it", "Index of session prefixes."),
               "DYN_ENABLE_SESSION_PREFIX_INDEX"),
         [](Option& row) { row.note = "since 1.6"; }),

    // ---- Model card
    with(named(choosing(refused(kFlag, "dyn-default-thinking-mode", Type::kEnum, {}, Group::kModelCard,
                                "the model card of this build cannot carry it",
                                "leave it out, and let requests say it in chat_template_kwargs",
                                "Whether the model thinks when a request does not say."),
                        "enabled disabled"),
               "DYN_DEFAULT_THINKING_MODE"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(accepting(refused(kFlag, "dyn-structural-tag", Type::kText, "false", Group::kModelCard, kNoGuided,
                                 "leave it out, or set false",
                                 "Constrain tool calls by structural tags. On by default in 1.6, off here."),
                         "false 0 no off"),
               "DYN_STRUCTURAL_TAG"),
         [](Option& row) {
           row.note = "since 1.6";
           row.arity = Arity::kOptional;
           row.metavar = "JSON|BOOL";
         }),
    with(named(refused(kFlag, "dyn-enable-structural-tag", Type::kBool, "false", Group::kModelCard, kNoGuided,
                       "leave it out", "Constrain tool calls by structural tags."),
               "DYN_ENABLE_STRUCTURAL_TAG"),
         [](Option& row) { row.note = "1.5, deprecated in 1.6"; }),
    with(named(choosing(without_effect(kFlag, "dyn-structural-tag-scope", Type::kEnum, "auto", Group::kModelCard,
                                       "structural tags are off", "Which tool calls structural tags constrain."),
                        "auto always"),
               "DYN_STRUCTURAL_TAG_SCOPE"),
         [](Option& row) { row.note = "1.5, deprecated in 1.6"; }),
    with(named(choosing(without_effect(kFlag, "dyn-structural-tag-schema", Type::kEnum, "auto", Group::kModelCard,
                                       "structural tags are off", "How strictly structural tags follow a schema."),
                        "auto strict"),
               "DYN_STRUCTURAL_TAG_SCHEMA"),
         [](Option& row) { row.note = "1.5, deprecated in 1.6"; }),

    // ---- Multimodal
    accepting(choosing(refused(kFlag, "modality", Type::kEnum, "text", Group::kMultimodal, kNoMultimodal, "use text",
                               "What the model takes and makes."),
                       "text multimodal image_diffusion video_diffusion"),
              "text"),
    with(refused(kFlag, "enable-multimodal", Type::kBool, "false", Group::kMultimodal, kNoMultimodal, "leave it out",
                 "Serve a multimodal model."),
         [](Option& row) { row.note = "since 1.5"; }),
    named(accepting(refused(kFlag, "output-modalities", Type::kList, "text", Group::kMultimodal, kNoMultimodal,
                            "use text", "What the model makes."),
                    "text"),
          "DYN_OUTPUT_MODALITIES"),
    with(refused(kFlag, "frontend-decoding", Type::kBool, "false", Group::kMultimodal, kNoMultimodal, "leave it out",
                 "Let the frontend decode images."),
         [](Option& row) { row.note = "since 1.5"; }),
    without_effect(kFlag, "allowed-local-media-path", Type::kPath, {}, Group::kMultimodal,
                   "a text worker reads no media", "Folder from which local media may be read."),
    with(without_effect(kFlag, "max-file-size-mb", Type::kInt, "50", Group::kMultimodal, "a text worker reads no media",
                        "Largest media file."),
         [](Option& row) { row.low = 0; }),
    with(named(accepting(refused(kFlag, "multimodal-embedding-cache-capacity-gb", Type::kFloat, "0", Group::kMultimodal,
                                 kNoMultimodal, "leave it out, or set 0", "Memory for embeddings of images."),
                         "0"),
               "DYN_MULTIMODAL_EMBEDDING_CACHE_CAPACITY_GB", "dyn-encoder-cache-capacity-gb"),
         [](Option& row) { row.low = 0; }),
    with(named(refused(kFlag, "multimodal-embedding-cache-publisher", Type::kBool, "false", Group::kMultimodal,
                       kNoMultimodal, "leave it out", "Publish events of the embedding cache."),
               "DYN_MULTIMODAL_EMBEDDING_CACHE_PUBLISHER"),
         [](Option& row) { row.note = "since 1.5"; }),

    // ---- Diffusion
    diffusion("default-height", Type::kInt, "480", "Height of an image."),
    diffusion("default-width", Type::kInt, "832", "Width of an image."),
    diffusion("default-num-frames", Type::kInt, "81", "Frames of a video."),
    diffusion("default-num-inference-steps", Type::kInt, "50", "Denoising steps."),
    diffusion("default-guidance-scale", Type::kFloat, "5.0", "Guidance scale."),
    diffusion("default-num-images-per-prompt", Type::kInt, "1", "Images of a prompt."),
    diffusion("torch-dtype", Type::kEnum, "bfloat16", "Type of the weights.", "bfloat16 float16 float32"),
    diffusion("enable-teacache", Type::kBool, "false", "TeaCache."),
    diffusion("teacache-use-ret-steps", Type::kBool, "true", "TeaCache on retained steps."),
    diffusion("teacache-thresh", Type::kFloat, "0.2", "Threshold of TeaCache."),
    diffusion("attn-backend", Type::kEnum, "VANILLA", "Attention of the diffusion model.", "VANILLA TRTLLM"),
    diffusion("quant-algo", Type::kEnum, {}, "Quantization of the diffusion model.",
              "FP8 FP8_BLOCK_SCALES NVFP4 W4A16_AWQ W4A8_AWQ W8A8_SQ_PER_CHANNEL"),
    diffusion("quant-dynamic", Type::kBool, "true", "Dynamic quantization."),
    diffusion("disable-torch-compile", Type::kBool, "false", "No torch.compile."),
    diffusion("torch-compile-mode", Type::kEnum, "default", "Mode of torch.compile.",
              "default reduce-overhead max-autotune"),
    diffusion("enable-fullgraph", Type::kBool, "false", "Full graph in torch.compile."),
    diffusion("fuse-qkv", Type::kBool, "true", "Fused QKV projections."),
    diffusion("enable-cuda-graph", Type::kBool, "false", "CUDA graphs."),
    diffusion("enable-layerwise-nvtx-marker", Type::kBool, "false", "Profiler markers."),
    diffusion("warmup-steps", Type::kInt, "1", "Warm-up steps."),
    diffusion("skip-warmup", Type::kBool, "false", "No warm-up."),
    diffusion("dit-dp-size", Type::kInt, "1", "Data parallelism."),
    diffusion("dit-tp-size", Type::kInt, "1", "Tensor parallelism."),
    diffusion("dit-ulysses-size", Type::kInt, "1", "Ulysses parallelism."),
    diffusion("dit-ring-size", Type::kInt, "1", "Ring parallelism."),
    diffusion("dit-cfg-size", Type::kInt, "1", "Guidance parallelism."),
    diffusion("dit-fsdp-size", Type::kInt, "1", "FSDP."),
    diffusion("enable-async-cpu-offload", Type::kBool, "false", "Offload to the host."),
    diffusion("skip-components", Type::kText, {}, "Parts of the pipeline that are not loaded."),
    named(diffusion("media-output-fs-url", Type::kText, "file:///tmp/dynamo_media", "Where media are stored."),
          "DYN_MEDIA_OUTPUT_FS_URL"),
    named(diffusion("media-output-http-url", Type::kText, {}, "How stored media are addressed."),
          "DYN_MEDIA_OUTPUT_HTTP_URL"),

    // ---- TLS
    with(named(refused(kFlag, "tcp-tls-cert-path", Type::kPath, {}, Group::kTls, kNoTls, kPlainText,
                       "Certificate of the request listener."),
               "DYN_TCP_TLS_CERT_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "tcp-tls-key-path", Type::kPath, {}, Group::kTls, kNoTls, kPlainText,
                       "Key of the request listener."),
               "DYN_TCP_TLS_KEY_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "tcp-tls-ca-cert-path", Type::kPath, {}, Group::kTls, kNoTls, kPlainText,
                       "CA of the frontends."),
               "DYN_TCP_TLS_CA_CERT_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "tcp-tls-server-name", Type::kText, {}, Group::kTls, kNoTls, kPlainText,
                       "Name to verify in the frontend's certificate."),
               "DYN_TCP_TLS_SERVER_NAME"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "tcp-tls-client-cert-path", Type::kPath, {}, Group::kTls, kNoTls, kPlainText,
                       "Certificate for outgoing connections."),
               "DYN_TCP_TLS_CLIENT_CERT_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "tcp-tls-client-key-path", Type::kPath, {}, Group::kTls, kNoTls, kPlainText,
                       "Key for outgoing connections."),
               "DYN_TCP_TLS_CLIENT_KEY_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "tcp-tls-client-ca-cert-path", Type::kPath, {}, Group::kTls, kNoTls, kPlainText,
                       "CA of the clients of the request listener."),
               "DYN_TCP_TLS_CLIENT_CA_CERT_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(refused(kFlag, "tcp-tls-insecure", Type::kBool, "false", Group::kTls, kNoTls, kPlainText,
                       "TLS on outgoing connections without verification."),
               "DYN_TCP_TLS_INSECURE"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(without_effect(kFlag, "tcp-tls-handshake-timeout", Type::kInt, {}, Group::kTls, kNoTls,
                              "Seconds for a TLS handshake."),
               "DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS"),
         [](Option& row) {
           row.note = "since 1.5";
           row.low = 0;
         }),
    with(named(without_effect(kFlag, "nats-tls-ca-cert-path", Type::kPath, {}, Group::kTls, kNoNats, "TLS to NATS."),
               "NATS_TLS_CA_CERT_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(
        named(without_effect(kFlag, "nats-tls-client-cert-path", Type::kPath, {}, Group::kTls, kNoNats, "TLS to NATS."),
              "NATS_TLS_CLIENT_CERT_PATH"),
        [](Option& row) { row.note = "since 1.5"; }),
    with(named(without_effect(kFlag, "nats-tls-client-key-path", Type::kPath, {}, Group::kTls, kNoNats, "TLS to NATS."),
               "NATS_TLS_CLIENT_KEY_PATH"),
         [](Option& row) { row.note = "since 1.5"; }),
    with(named(without_effect(kFlag, "nats-tls-insecure", Type::kBool, "false", Group::kTls, kNoNats,
                              "TLS to NATS without verification."),
               "NATS_TLS_INSECURE"),
         [](Option& row) { row.note = "since 1.5"; }),

    // ---- Routing that a worker advertises on its card (since 1.5)
    router("router-mode"),
    router("router-session-affinity-ttl-secs"),
    router("router-session-affinity-mode"),
    router("active-decode-blocks-threshold"),
    router("active-prefill-tokens-threshold"),
    router("active-prefill-tokens-threshold-frac"),
    router("admission-control"),
    router("enforce-disagg", Type::kBool),
    router("router-min-initial-workers"),
    router("load-aware", Type::kBool),
    router("router-kv-overlap-score-credit"),
    router("router-kv-overlap-score-credit-decay"),
    router("router-kv-overlap-score-weight", Type::kText, "kv-overlap-score-weight"),
    router("router-prefill-load-scale"),
    router("router-decode-active-request-weight"),
    router("router-host-cache-hit-weight"),
    router("router-disk-cache-hit-weight"),
    router("router-temperature"),
    router("router-kv-events", Type::kBool, "kv-events"),
    router("router-replica-sync", Type::kBool),
    router("router-track-active-blocks", Type::kBool, "track-active-blocks"),
    router("router-track-output-blocks", Type::kBool, "track-output-blocks"),
    router("router-assume-kv-reuse", Type::kBool, "assume-kv-reuse"),
    router("router-track-prefill-tokens", Type::kBool),
    router("router-tracking-hash"),
    router("router-tracking-key-file"),
    router("router-tracking-key-id"),
    router("router-prefill-load-model"),
    router("router-ttl-secs"),
    router("router-approximate-cache-policy"),
    router("router-queue-threshold"),
    router("router-policy-config"),
    router("router-conditional-disagg", Type::kBool),
    router("router-conditional-disagg-config"),
    router("router-prefill-policy"),
    router("router-decode-policy"),
    router("router-event-threads"),
    router("router-queue-policy"),
    router("use-remote-indexer", Type::kBool),
    router("shared-cache-multiplier"),
    router("shared-cache-type"),
    router("router-predicted-ttl-secs"),
};

}  // namespace

std::span<const Option> unsupported_options() {
  return kOptions;
}

}  // namespace dyn::app
