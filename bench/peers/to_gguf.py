#!/usr/bin/env python3
"""Writes a Llama or Qwen3 model directory as one GGUF file for llama.cpp: BF16 or Q8_0, norms F32, without a vocabulary.

    python3 to_gguf.py MODEL_DIRECTORY OUTPUT.gguf [--type bf16|q8_0]

The benchmark feeds token ids, so no tokenizer is needed (tokenizer.ggml.model "none"). Needs gguf and numpy.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import gguf
import numpy as np

PARTS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
       "lm_head.weight": "output.weight"}


def gguf_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{PARTS[rest.removesuffix('.weight')]}.weight"


def tensors(path: pathlib.Path):
    """Name and bfloat16 bit patterns of each tensor of a safetensors file."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path}: {name} is {entry['dtype']}, this script reads BF16")
        begin, end = entry["data_offsets"]
        yield name, np.frombuffer(data[begin:end].tobytes(), np.uint16).reshape(entry["shape"])


def permute(bits: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's Llama rotates neighbours, Hugging Face the two halves of a head."""
    return bits.reshape(heads, 2, len(bits) // heads // 2, *bits.shape[1:]).swapaxes(1, 2).reshape(bits.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--type", choices=["bf16", "q8_0"], default="bf16")
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    arch = config["model_type"]
    if arch not in ("llama", "qwen3") or config.get("rope_scaling"):
        raise SystemExit(f"{args.model}: this script writes llama and qwen3 without rope scaling, not {arch}")
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]

    out = gguf.GGUFWriter(str(args.output), arch)
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_rope_dimension_count(head)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("none")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if args.type == "bf16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    for file in sorted(args.model.glob("*.safetensors")):
        for name, bits in tensors(file):
            if arch == "llama" and "q_proj" in name:
                bits = permute(bits, config["num_attention_heads"])
            if arch == "llama" and "k_proj" in name:
                bits = permute(bits, config["num_key_value_heads"])
            if bits.ndim == 1 or args.type == "q8_0":
                values = (bits.astype(np.uint32) << 16).view(np.float32)
            if bits.ndim == 1:
                out.add_tensor(gguf_name(name), values)
            elif args.type == "q8_0":
                kind = gguf.GGMLQuantizationType.Q8_0
                out.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                out.add_tensor(gguf_name(name), np.ascontiguousarray(bits).view(np.uint8),
                               raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
