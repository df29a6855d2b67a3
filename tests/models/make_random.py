#!/usr/bin/env python3
"""Write small models with random weights, one directory a model in Hugging Face's layout.

    python3 make_random.py OUTPUT_DIRECTORY [--shards N] [NAME ...]

Weights come from numpy generators seeded by the parameter's name: every run on every machine writes the same bytes
(tests/golden/random/SHA256SUMS). What transformers computes with them is in tests/golden/random/NAME.json. With
--shards the weights are split into N files with an index. Needs numpy.
"""
import argparse
import math
import pathlib
import zlib

import numpy as np

from checkpoint import to_bf16, write_json, write_safetensors, write_shards

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|start|>", "<|end|>", "<|image|>", "<|vision_start|>", "<|vision_end|>"]
VOCAB = 384  # 8 special tokens, 256 bytes, 120 merges
TEMPLATE = ("{% for message in messages %}{{ '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>' "
            "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}")

COMMON = {"vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu",
          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16", "use_cache": True,
          "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": False}


def dims(hidden, layers, heads, kv_heads, head_dim, intermediate, **more):
    return {**COMMON, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": intermediate, **more}


QWEN3_MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "rope_theta": 1e6,
             "rope_scaling": None, "attention_bias": False, "decoder_sparse_step": 1, "moe_intermediate_size": 96,
             "num_experts": 8, "num_experts_per_tok": 2, "output_router_logits": False,
             "router_aux_loss_coef": 0.001, "use_sliding_window": False, "sliding_window": None}

GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "rope_theta": 1e6,
          "rope_local_base_freq": 1e4, "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh",
          "sliding_window": 32, "final_logit_softcapping": None, "attn_logit_softcapping": None,
          "tie_word_embeddings": True}

CONFIGS = {
    "gemma3": dims(192, 6, 4, 1, 256, 384, **GEMMA3, rope_scaling=None, query_pre_attn_scalar=256,
                   sliding_window_pattern=6, layer_types=["sliding_attention"] * 5 + ["full_attention"]),
    "gemma3_linear": dims(192, 4, 4, 2, 128, 384, **GEMMA3, rope_scaling={"factor": 8.0, "rope_type": "linear"},
                          query_pre_attn_scalar=168, sliding_window_pattern=2,
                          layer_types=["sliding_attention", "full_attention"] * 2),
    "llama3": dims(256, 3, 4, 2, 64, 512, architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=5e5,
                   attention_bias=False, mlp_bias=False,
                   rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 64, "rope_type": "llama3"}),
    "mistral": dims(256, 3, 4, 2, 64, 512, architectures=["MistralForCausalLM"], model_type="mistral", rope_theta=1e4,
                    sliding_window=32),
    "phi3": dims(192, 3, 4, 2, 48, 384, architectures=["Phi3ForCausalLM"], model_type="phi3", rope_theta=1e4,
                 rope_scaling=None, sliding_window=32, embd_pdrop=0.0, resid_pdrop=0.0),
    # Of a head of 96 three quarters are rotated: 36 pairs.
    "phi3_longrope": dims(384, 2, 4, 2, 96, 512, architectures=["Phi3ForCausalLM"], model_type="phi3", rope_theta=1e4,
                          embd_pdrop=0.0, resid_pdrop=0.0, sliding_window=None, partial_rotary_factor=0.75,
                          original_max_position_embeddings=64, tie_word_embeddings=True,
                          rope_scaling={"type": "longrope",
                                        "short_factor": [round(1 + 0.02 * i, 4) for i in range(36)],
                                        "long_factor": [round(1 + 0.2 * i, 4) for i in range(36)]}),
    "qwen2": dims(256, 3, 4, 2, 64, 512, architectures=["Qwen2ForCausalLM"], model_type="qwen2", rope_theta=1e6,
                  rope_scaling=None, use_sliding_window=False, sliding_window=512, max_window_layers=3,
                  tie_word_embeddings=True),
    "qwen3": dims(192, 3, 4, 2, 128, 384, architectures=["Qwen3ForCausalLM"], model_type="qwen3", rope_theta=1e6,
                  rope_scaling=None, attention_bias=False, use_sliding_window=False, sliding_window=None,
                  max_window_layers=3, tie_word_embeddings=True),
    "qwen3_moe": dims(192, 3, 4, 2, 128, 384, norm_topk_prob=True, mlp_only_layers=[], **QWEN3_MOE),
    "qwen3_moe_mixed": dims(192, 3, 4, 1, 64, 384, norm_topk_prob=False, mlp_only_layers=[1], **QWEN3_MOE),
}


def parameters(config):
    """Names and shapes of a model's parameters."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    vocab = config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,),
                 "self_attn.q_proj.weight": (q, hidden), "self_attn.k_proj.weight": (kv, hidden),
                 "self_attn.v_proj.weight": (kv, hidden), "self_attn.o_proj.weight": (hidden, q),
                 "mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden),
                 "mlp.down_proj.weight": (hidden, inner)}
        if config["model_type"] == "phi3":
            parts = ("q_proj.", "k_proj.", "v_proj.", "gate_proj.", "up_proj.")
            layer = {name: shape for name, shape in layer.items() if not any(part in name for part in parts)}
            layer.update({"self_attn.qkv_proj.weight": (q + 2 * kv, hidden),
                          "mlp.gate_up_proj.weight": (2 * inner, hidden)})
        if config["model_type"] == "qwen2":
            layer.update({f"self_attn.{p}_proj.bias": (n,) for p, n in (("q", q), ("k", kv), ("v", kv))})
        if "num_experts" in config and i not in config["mlp_only_layers"]:
            count, size = config["num_experts"], config["moe_intermediate_size"]
            layer = {name: shape for name, shape in layer.items() if not name.startswith("mlp.")}
            layer.update({"mlp.gate.weight": (count, hidden), "mlp.experts.gate_up_proj": (count, 2 * size, hidden),
                          "mlp.experts.down_proj": (count, hidden, size)})
        if config["model_type"] == "gemma3_text":
            layer.update({f"{place}_feedforward_layernorm.weight": (hidden,) for place in ("pre", "post")})
        if config["model_type"] in ("qwen3", "qwen3_moe", "gemma3_text"):
            layer.update({"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)})
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def values(name, shape, gemma):
    """Values of a parameter: float32, seeded by its name, scaled so that tokens differ and none is sure. Gemma
    multiplies embeddings with sqrt(hidden) and norms with 1 + weight."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        return 0.3 * x
    sharp = 1.5 if any(s in name for s in ("q_norm", "k_norm", "q_proj", "k_proj", "qkv_proj")) else 1.0
    if "norm" in name:
        last = 13.0 if gemma and name == "model.norm.weight" else sharp
        return 0.2 * x + last - gemma
    if "embed_tokens" in name or "lm_head" in name:
        return x * ((0.3 if gemma else 4) / math.sqrt(shape[-1]))
    gain = 2.0 if any(s in name for s in ("o_proj", "down_proj", "mlp.gate.weight")) else sharp
    return x * (gain / math.sqrt(shape[-1]))


def stored(name, value):
    """A parameter as the checkpoint's tensors: the experts of a layer are apart, and so are their gate and up."""
    before, experts, after = name.partition(".experts.")
    if not experts:
        return {name: value}
    parts = {}
    for e, x in enumerate(value):
        half = len(x) // 2
        split = {"gate_proj": x[:half], "up_proj": x[half:]} if after == "gate_up_proj" else {after: x}
        parts.update({f"{before}.experts.{e}.{part}.weight": x for part, x in split.items()})
    return parts


def bytes_to_unicode():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {**{b: chr(b) for b in keep}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def write_tokenizer(out):
    letters = bytes_to_unicode()
    merges = [(a, b) for a in "etaoinshrdl" for b in "etaoinshrdl"][:VOCAB - 256 - len(SPECIAL)]
    vocab = SPECIAL + [letters[b] for b in range(256)] + [a + b for a, b in merges]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(out / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, t in enumerate(SPECIAL)],
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(vocab)}, "merges": [list(m) for m in merges]}})
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[1], "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0], "clean_up_tokenization_spaces": False, "model_max_length": 512,
        "chat_template": TEMPLATE})


def write_model(out, config, shards=1):
    out.mkdir(parents=True, exist_ok=True)
    tensors, gemma = {}, "gemma" in config["model_type"]
    for name, shape in parameters(config).items():
        tensors.update(stored(name, to_bf16(values(name, shape, gemma))))
    if shards > 1:
        write_shards(out, tensors, shards)
    else:
        write_safetensors(out / "model.safetensors", tensors)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    write_tokenizer(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CONFIGS)} (all)")
    parser.add_argument("--shards", type=int, default=1, help="number of weight files")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in CONFIGS]
    if unknown:
        parser.error(f"unknown model: {unknown[0]}; known: {', '.join(CONFIGS)}")
    for name in args.names or CONFIGS:
        write_model(args.output / name, CONFIGS[name], args.shards)
        print(args.output / name)


if __name__ == "__main__":
    main()
