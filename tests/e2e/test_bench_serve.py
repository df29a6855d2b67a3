"""`dynamo-trtllm bench serve` against official frontends: its counts are those of the server."""

from __future__ import annotations

import json
import subprocess

import pytest

import dynamo_lab as lab


@pytest.fixture
def bench(binary, frontend):
    def run(*options: object, model: str = "mock", status: int = 0) -> subprocess.CompletedProcess:
        command = [binary, "bench", "serve", "--url", frontend.address, "--model", model, *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, done.stdout + done.stderr
        return done
    return run


def test_completions_have_exact_lengths(bench):
    report = json.loads(bench("--endpoint-type", "completions", "--vocab-size", lab.TINY_VOCAB_SIZE, "--input-len", 20,
                              "--output-len", 12, "--num-prompts", 16, "--max-concurrency", 8, "--json").stdout)
    assert (report["completed"], report["failed"]) == (16, 0)
    assert report["total_input_tokens"] == 16 * 20
    assert report["total_output_tokens"] == 16 * 12
    assert report["answers_without_usage"] == 0
    assert report["peak_concurrency"] == 8
    assert 0 < report["p50_ttft_ms"] <= report["p50_e2el_ms"] <= report["max_e2el_ms"]


def test_chat_at_a_rate(bench, model):
    report = json.loads(bench("--input-len", "4:12", "--output-len", "2:6", "--num-prompts", 12, "--request-rate", 200,
                              "--seed", 3, "--json", model=model).stdout)
    assert (report["completed"], report["failed"]) == (12, 0)
    assert report["total_output_tokens"] == report["requested_output_tokens"]
    assert report["total_input_tokens"] >= 12 * 4


def test_a_data_set(bench, tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "hello", "output_tokens": 3}\n'
                    '{"messages": [{"role": "user", "content": "hi"}], "output_tokens": 5}\n')
    report = json.loads(bench("--dataset-path", path, "--num-prompts", 4, "--num-warmups", 0, "--json").stdout)
    assert report["total_output_tokens"] == 2 * 3 + 2 * 5


def test_a_model_that_is_not_there(bench):
    assert "http 404" in bench(model="absent", status=1).stderr


def test_requests_that_the_server_refuses(bench):
    # Longer than the context of the model.
    options = ("--endpoint-type", "completions", "--vocab-size", lab.TINY_VOCAB_SIZE, "--input-len", 600,
               "--num-prompts", 3, "--num-warmups", 0, "--json")
    report = json.loads(bench(*options, status=1).stdout)
    assert (report["completed"], report["failed"]) == (0, 3)
    assert all(kind in ("http 400", "error event") for kind in report["failures"]), report["failures"]


def test_thresholds(bench):
    options = ("--num-prompts", 2, "--input-len", 8, "--output-len", 4)
    bench(*options, "--max-p99-ttft-ms", 60_000, "--min-output-throughput", 0.001)
    assert "output tokens/s are below" in bench(*options, "--min-output-throughput", 1e9, status=1).stderr
