"""Wrong configurations: a few plain lines, exit status 2, nothing registered."""

from __future__ import annotations

import json
import pathlib
import socket
from typing import Any

import pytest

from dynamo_lab.worker import worker_binary

EXIT_STATUS = 2


@pytest.fixture
def refused(box, store):
    """refused("word", ..., flags=[...]) starts a worker that must not come up and whose message holds the words."""
    def check(*words: str, flags: list[Any], env: dict[str, str] | None = None) -> str:
        process = box.worker([worker_binary(), *map(str, flags)], store, env={
            "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_SYSTEM_HOST": "127.0.0.1", **(env or {})})
        status = process.popen.wait(30)
        output = process.output()
        assert status == EXIT_STATUS, output
        assert not store.root.exists() or not store.records()
        for word in words:
            assert word in output, output
        for trace in ("terminate called", "Sanitizer", "Segmentation", "runtime error"):
            assert trace not in output
        lines = [line for line in output.splitlines() if line.strip()]
        assert len(lines) <= 8, "a few lines are enough:\n" + output
        return output
    return check


def write_model(path: pathlib.Path, source: str, **changes: Any) -> pathlib.Path:
    """A copy of the tiny model's files with a changed config.json."""
    path.mkdir(parents=True)
    for file in pathlib.Path(source).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_missing_model(refused):
    refused("/nonexistent/model", flags=["--model", "/nonexistent/model"])


def test_folder_without_a_model(refused, tmp_path):
    refused("config.json", flags=["--model", tmp_path])


def test_broken_config_json(refused, tmp_path, tiny_model):
    model = write_model(tmp_path / "m", tiny_model)
    (model / "config.json").write_text('{"architectures": [')
    refused("config.json", flags=["--model", model])


def test_unknown_architecture(refused, tmp_path, tiny_model):
    model = write_model(tmp_path / "m", tiny_model, architectures=["MambaForCausalLM"], model_type="mamba")
    refused("MambaForCausalLM", "LlamaForCausalLM", flags=["--model", model, "--engine", "native"])


def test_quantised_checkpoint(refused, tmp_path, tiny_model):
    model = write_model(tmp_path / "m", tiny_model, quantization_config={"quant_method": "gptq", "bits": 4})
    refused("quant", flags=["--model", model, "--engine", "native"])


def test_model_without_weights(refused, tiny_model):
    refused("safetensors", flags=["--model", tiny_model, "--engine", "native"])


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}",
                                     (2).to_bytes(8, "little") + b"{}", (9).to_bytes(8, "little") + b'{"a": [[['],
                         ids=["empty", "huge", "longer-than-file", "no-tensors", "bad-json"])
def test_broken_safetensors(refused, tmp_path, tiny_model, content):
    model = write_model(tmp_path / "m", tiny_model)
    (model / "model.safetensors").write_bytes(content)
    refused(flags=["--model", model, "--engine", "native"])


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "- 1\n- 2", "\tx: 1"],
                         ids=["unclosed", "duplicate", "list", "tab"])
def test_bad_yaml(refused, tmp_path, tiny_model, text):
    file = tmp_path / "engine.yaml"
    file.write_text(text)
    refused("engine.yaml", flags=["--model", tiny_model, "--engine", "mock", "--extra-engine-args", file])


def test_unknown_engine_key(refused, tmp_path, tiny_model):
    file = tmp_path / "engine.yaml"
    file.write_text("max_bach_size: 8\n")
    refused("max_bach_size", "max_batch_size", flags=["--model", tiny_model, "--engine", "mock", "--extra-engine-args", file])


def test_missing_yaml(refused, tiny_model):
    refused("/nonexistent.yaml", flags=["--model", tiny_model, "--engine", "mock", "--extra-engine-args", "/nonexistent.yaml"])


@pytest.mark.parametrize("flags, words", [
    (["--max-bach-size", "8"], ["--max-bach-size", "--max-batch-size"]),
    (["--max-batch-size", "many"], ["max-batch-size", "many"]),
    (["--max-batch-size", "0"], ["max-batch-size"]),
    (["--override-engine-args", "{"], ["override-engine-args"]),
    (["--tensor-parallel-size", "2"], ["tensor-parallel-size"]),
    (["--disaggregation-mode", "prefill"], ["prefill"]),
    (["--request-plane", "nats"], ["nats"]),
    (["--discovery-backend", "etcd"], ["etcd"]),
    (["--endpoint", "a.b"], ["a.b"]),
    (["--engine", "trtllm"], ["trtllm"]),
], ids=lambda value: value[0].lstrip("-") if isinstance(value, list) else None)
def test_flag_that_cannot_be_honoured(refused, tiny_model, flags, words):
    refused(*words, flags=["--model", tiny_model, *([] if "--engine" in flags else ["--engine", "mock"]), *flags])


@pytest.mark.parametrize("variable", ["DYN_SYSTEM_PORT", "DYN_TCP_RPC_PORT"])
def test_port_in_use(refused, tiny_model, variable):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(str(port), flags=["--model", tiny_model, "--engine", "mock"], env={variable: str(port)})


def test_store_below_a_file(refused, tmp_path, tiny_model):
    (tmp_path / "file").write_text("")
    refused("file", flags=["--model", tiny_model, "--engine", "mock"], env={"DYN_FILE_KV": str(tmp_path / "file" / "store")})
