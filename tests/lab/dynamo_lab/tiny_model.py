"""A model directory without weights, for frontends and for workers with a mock engine."""

from __future__ import annotations

import json
import os
import pathlib


TINY_VOCAB_SIZE = 261  # 256 bytes and 5 special tokens


def make_tiny_model(directory: str | os.PathLike, *, context_length: int = 4096) -> str:
    """A model directory with a byte-level tokenizer: token id == byte value, specials above 255.

    Good enough for every frontend version; no weights.  Ids: 256 <s>, 257 </s> (eos),
    258 <|user|>, 259 <|assistant|>, 260 <|system|>.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {}, 0
    for byte in range(256):            # the usual printable stand-ins of byte-level tokenizers
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(256 + extra)
            extra += 1
    specials = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 256 + i, "content": s, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}
                         for i, s in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False,
                  "vocab": {letters[b]: b for b in range(256)}, "merges": []},
    }
    template = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
                "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": TINY_VOCAB_SIZE,
            "bos_token_id": 256, "eos_token_id": 257, "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
            "max_position_embeddings": context_length, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "torch_dtype": "bfloat16", "hidden_act": "silu"},
        "generation_config.json": {"bos_token_id": 256, "eos_token_id": 257},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "model_max_length": context_length, "clean_up_tokenization_spaces": False,
            "chat_template": template},
    }
    for name, body in files.items():
        (path / name).write_text(json.dumps(body, indent=1))
    return str(path)
