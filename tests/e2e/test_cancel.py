"""A client that goes away costs the engine nothing more."""

from __future__ import annotations

import concurrent.futures
import http.client
import json

import dynamo_lab as lab

LONG = 500  # tokens; at 2 ms a step the mock engine needs a second


def streams(worker, end: str) -> float:
    return worker.metric("dynamo_trtllm_streams_total", end=end)


def test_client_of_a_stream_disconnects(frontend, mock):
    cancelled = streams(mock, "cancelled")
    stream = frontend.chat_stream("mock", "hi", max_tokens=LONG, ignore_eos=True)
    next(stream)
    stream.close()
    mock.wait_idle(5)
    lab.wait_for("cancelled stream", lambda: streams(mock, "cancelled") == cancelled + 1, 5)
    assert frontend.completion("mock", "abc", max_tokens=3)["choices"][0]["text"] == "abc"


def test_client_of_a_whole_answer_disconnects(frontend, mock):
    cancelled, generated = streams(mock, "cancelled"), mock.metric("dynamo_trtllm_generated_tokens_total")
    connection = http.client.HTTPConnection("127.0.0.1", frontend.port)
    body = {"model": "mock", "prompt": "abc", "max_tokens": LONG}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    lab.wait_for("request in the engine", lambda: mock.metric("dynamo_trtllm_generated_tokens_total") > generated, 10)
    connection.close()
    mock.wait_idle(5)
    lab.wait_for("cancelled stream", lambda: streams(mock, "cancelled") == cancelled + 1, 5)


def test_native_engine_frees_its_blocks(frontend, native):
    aborted = native.metric("dynamo_trtllm_requests_aborted_total")
    stream = frontend.chat_stream("smollm2", "Tell me a long story.", max_tokens=900, ignore_eos=True)
    next(stream)
    stream.close()
    native.wait_idle(10)
    assert native.metric("dynamo_trtllm_requests_aborted_total") == aborted + 1


def test_many_disconnects_at_once(frontend, mock):
    cancelled = streams(mock, "cancelled")

    def hang_up(_: int) -> None:
        stream = frontend.chat_stream("mock", "hi", max_tokens=LONG, ignore_eos=True)
        next(stream)
        stream.close()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(hang_up, range(32)))
    mock.wait_idle(10)
    assert streams(mock, "cancelled") > cancelled
