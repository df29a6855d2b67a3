"""Writing model directories in Hugging Face's layout with numpy alone: safetensors, JSON."""
import json
import pathlib

import numpy as np


def to_bf16(x):
    """float32 -> bfloat16 bit patterns, rounding to nearest even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(path, tensors):
    """tensors: {name: array of bfloat16 bit patterns}; the bytes are those of the reference implementation."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(tensors[name].astype("<u2").tobytes())


def write_shards(folder: pathlib.Path, tensors, count):
    """The same tensors as `count` files and an index."""
    names = sorted(tensors)
    weight_map = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[i::count]}
        write_safetensors(folder / file, part)
        weight_map.update({name: file for name in part})
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map})
