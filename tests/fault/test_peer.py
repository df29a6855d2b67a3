"""Callers that misbehave on the request plane, spoken by hand."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest

import dynamo_lab as lab
from dynamo_lab import mock_tokens
from dynamo_lab.peer import Peer, request_body, request_frame, tokens_of


async def collect(stream) -> list[int]:
    return [token async for item in stream for token in tokens_of(item)]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def answer(transport: str, prompt: list[int], count: int) -> list[int]:
    async with Peer() as peer:
        return await collect(await peer.open(transport, request_body(prompt, max_tokens=count)))


def expected(prompt: list[int], count: int) -> list[int]:
    tokens = mock_tokens.hashed(prompt, lab.TINY_VOCAB_SIZE)
    return [next(tokens) for _ in range(count)]


def serves(worker) -> bool:
    return run(answer(worker.transport, [1, 2, 3], 20)) == expected([1, 2, 3], 20)


def test_tokens_are_exact(mock_worker):
    assert serves(mock_worker())


@pytest.mark.parametrize("word", ["stop", "kill"])
def test_control_frames_end_a_request(mock_worker, word):
    worker = mock_worker("--mock-step-ms", "5")

    async def scenario() -> str:
        async with Peer() as peer:
            stream = await peer.open(worker.transport, request_body([1], max_tokens=3000))
            items = aiter(stream)
            await anext(items)
            await stream.control(word)
            async for _ in items:
                pass
            return stream.end
    assert run(scenario()) in ("sentinel", "closed")
    worker.wait_idle()
    assert worker.metric("dynamo_trtllm_streams_total", end="cancelled") == 1
    assert serves(worker)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_caller_closes(mock_worker, reset):
    worker = mock_worker("--mock-step-ms", "5")

    async def scenario() -> None:
        async with Peer() as peer:
            for _ in range(10):
                stream = await peer.open(worker.transport, request_body([1], max_tokens=3000))
                await anext(aiter(stream))
                stream.close(reset=reset)
    run(scenario())
    worker.wait_idle()
    assert worker.metric("dynamo_trtllm_streams_total", end="cancelled") == 10
    assert serves(worker)


def test_slow_reader_is_cut_off_and_disturbs_nobody(box, store, mock_worker):
    """The stream is bounded in bytes; beyond that the engine stops working for it."""
    model = box.tiny_model("long", context_length=4_000_000)
    worker = mock_worker("--model", model, "--max-seq-len", "4000000", "--mock-kv-blocks", "200000", "--mock-step-ms", "0",
                         "--response-buffer-bytes", "64KiB")

    async def scenario() -> tuple[int, str]:
        async with Peer(receive_buffer=128 * 1024) as peer:
            stream = await peer.open(worker.transport, request_body([1], max_tokens=3_000_000))
            while worker.metric("dynamo_trtllm_streams_total", end="too_slow") == 0:
                await asyncio.sleep(0.05)
            memory = worker.memory_kib()
            received, errors = 0, []
            async for item in stream:  # what was under way still arrives
                received += len(tokens_of(item))
                if (item.get("data") or {}).get("event") == "error":
                    errors.append(item)
            assert 0 < received < 3_000_000
            assert stream.end == "closed" or errors
            return memory
    idle = worker.memory_kib()
    assert run(scenario()) < idle + 32 * 1024
    worker.wait_idle()
    assert serves(worker)


def test_caller_that_cannot_be_reached(mock_worker):
    worker = mock_worker()

    async def scenario() -> None:
        async with Peer() as peer:
            peer._address = f"127.0.0.1:{lab.free_port()}"
            await peer.send(worker.transport, json.dumps(request_body([1], max_tokens=3000)).encode())
    run(scenario())
    worker.wait_idle()
    assert serves(worker)


BODIES = {
    "not json": b"\x00\xff\x00",
    "empty": b"",
    "truncated": json.dumps(request_body([1, 2], max_tokens=3)).encode()[:-10],
    "trailing": json.dumps(request_body([1, 2], max_tokens=3)).encode() + b"{}",
    "deep": b'{"token_ids":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "text for a list": json.dumps({**request_body([1], max_tokens=3), "token_ids": "abc"}).encode(),
    "negative id": json.dumps(request_body([-1], max_tokens=3)).encode(),
    "huge id": json.dumps(request_body([2**40], max_tokens=3)).encode(),
    "no prompt": json.dumps(request_body([], max_tokens=3)).encode(),
    "NaN": json.dumps(request_body([1], max_tokens=3, sampling={"temperature": float("nan")})).encode(),
    "overflow": b'{"token_ids":[1],"sampling_options":{"temperature":1e999}}',
    "fraction": json.dumps(request_body([1], max_tokens=3) | {"token_ids": [1.5]}).encode(),
    "negative temperature": json.dumps(request_body([1], max_tokens=3, sampling={"temperature": -1})).encode(),
    "top_p of 7": json.dumps(request_body([1], max_tokens=3, sampling={"temperature": 1, "top_p": 7})).encode(),
    "max_tokens of text": json.dumps(request_body([1], max_tokens="x")).encode(),
    "beam search": json.dumps(request_body([1], max_tokens=3, sampling={"use_beam_search": True})).encode(),
    "best_of": json.dumps(request_body([1], max_tokens=3, sampling={"best_of": 4})).encode(),
}


def test_impossible_requests_are_errors_of_themselves(mock_worker):
    worker = mock_worker()

    async def refusal(peer: Peer, body: bytes) -> str:
        stream = await asyncio.wait_for(await peer.send(worker.transport, body), 10)
        if stream.prologue.get("error"):
            return stream.prologue["error"]
        texts = []
        async for item in stream:
            assert not tokens_of(item)
            if item["data"].get("event") == "error":
                assert item["data"]["error"]["error_type"] == "InvalidArgument"
                assert item["data"]["comment"]
                texts.append(item["data"]["error"]["message"])
        assert stream.end == "sentinel"
        return texts[0] if texts else ""

    async def scenario() -> dict[str, str]:
        async with Peer() as peer:
            return {name: await refusal(peer, body) for name, body in BODIES.items()}
    silent = [name for name, text in run(scenario()).items() if not text]
    assert not silent
    worker.wait_idle()
    assert serves(worker)


def raw_connection(worker) -> socket.socket:
    host, port = worker.transport.split("/")[0].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def test_unknown_route_is_named_and_the_connection_lives(mock_worker):
    worker = mock_worker()
    with raw_connection(worker) as connection:
        for _ in range(2):
            connection.sendall(request_frame("123/nowhere", {"id": "x"}, b"{}"))
            (length,) = struct.unpack(">I", connection.recv(4, socket.MSG_WAITALL))
            assert connection.recv(length, socket.MSG_WAITALL).startswith(b"Server unavailable: unknown endpoint")
    assert serves(worker)


@pytest.mark.parametrize("data", [b"\xff" * 4096, b"\x00" * 4096, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                  struct.pack(">H", 4) + b"path" + struct.pack(">H", 0) + struct.pack(">I", 0xFFFFFFFF)],
                         ids=["ones", "zeros", "http", "4 GiB"])
def test_garbage_on_the_request_port(mock_worker, data):
    worker = mock_worker()
    memory = worker.memory_kib()
    with raw_connection(worker) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert worker.memory_kib() < memory + 16 * 1024
    assert serves(worker)


def test_frame_in_single_bytes_and_many_frames_at_once(mock_worker):
    worker = mock_worker()
    frame = request_frame("123/nowhere", {"id": "x"}, b"{}")
    with raw_connection(worker) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(frame)):
            connection.sendall(frame[index:index + 1])
        connection.sendall(frame * 1000)
        received = b""
        text = b"Server unavailable: unknown endpoint 123/nowhere"
        acknowledgement = struct.pack(">I", len(text)) + text
        while len(received) < 1001 * len(acknowledgement):
            chunk = connection.recv(65536)
            assert chunk
            received += chunk
        assert received == 1001 * acknowledgement


def test_idle_and_half_sent_connections_are_kept(mock_worker):
    worker = mock_worker()
    files = worker.open_files()
    idle = [raw_connection(worker) for _ in range(200)]
    try:
        for connection in idle[:100]:
            connection.sendall(b"\x00\x10half")
        assert serves(worker)
    finally:
        for connection in idle:
            connection.close()
    lab.wait_for("closed connections", lambda: worker.open_files() <= files + 8, 10)
