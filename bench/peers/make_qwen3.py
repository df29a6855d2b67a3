#!/usr/bin/env python3
"""Writes a model of the shape of Qwen3-0.6B with random weights: config.json and model.safetensors, no tokenizer.

    python3 make_qwen3.py OUTPUT_DIRECTORY

Values are those of tests/models/make_random.py, seeded by each parameter's name. Needs numpy and 4 GB of memory.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "models"))
from checkpoint import to_bf16, write_json, write_safetensors  # noqa: E402
from make_random import parameters, values  # noqa: E402

# config.json of the published Qwen3-0.6B.
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
          "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
          "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
          "rope_theta": 1000000, "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0,
          "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28,
          "initializer_range": 0.02, "bos_token_id": 151643, "eos_token_id": 151645, "torch_dtype": "bfloat16",
          "use_cache": True}


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors",
                      {name: to_bf16(values(name, shape, False)) for name, shape in parameters(CONFIG).items()})
    write_json(out / "config.json", CONFIG)


if __name__ == "__main__":
    main()
