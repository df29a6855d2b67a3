"""SIGTERM: records vanish first, running streams end well, exit status 0."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

import dynamo_lab as lab
from dynamo_lab.peer import Peer, request_body, tokens_of
from dynamo_lab.settings import VERSIONS

GRACE = {"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "2"}


def long_stream(frontend: lab.Frontend, tokens: int):
    return frontend.stream("/v1/completions", {"model": "tiny", "prompt": "abc", "max_tokens": tokens, "stream": True,
                                               "ignore_eos": True, "stream_options": {"include_usage": True}})


def completion_tokens(events: list[lab.SseEvent]) -> int:
    return next(event.json["usage"]["completion_tokens"] for event in events if event.json and event.json.get("usage"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_idle_worker_ends_at_once(store, mock_worker, number):
    worker = mock_worker()
    worker.process.signal(number)
    assert worker.process.popen.wait(10) == 0
    assert not store.records()


def test_records_vanish_before_the_service(box, store, mock_worker):
    worker = mock_worker(env=GRACE)
    frontends = [box.frontend(version, store).wait_model("tiny") for version in VERSIONS]
    worker.process.signal(signal.SIGTERM)
    lab.wait_for("removal of the records", lambda: not store.records(), 1)
    for frontend in frontends:
        frontend.wait_no_model("tiny", timeout=5)
    assert worker.get("/health")[0] == 503
    assert worker.process.popen.wait(10) == 0


def test_requests_of_the_grace_period_are_served(box, store, mock_worker):
    """A frontend that has not seen the removal yet still sends requests."""
    worker = mock_worker(env=GRACE)
    transport = worker.transport
    worker.process.signal(signal.SIGTERM)
    lab.wait_for("removal of the records", lambda: not store.records(), 1)

    async def ask() -> int:
        async with Peer() as peer:
            stream = await peer.open(transport, request_body([97, 98], max_tokens=5))
            return sum([len(tokens_of(item)) async for item in stream])
    assert asyncio.run(ask()) == 5
    assert worker.process.popen.wait(10) == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_running_stream_finishes(box, store, mock_worker, version):
    worker = mock_worker("--mock-step-ms", "10", env={"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0.5"})
    frontend = box.frontend(version, store).wait_model("tiny")
    stream = long_stream(frontend, 200)
    next(stream)
    worker.process.signal(signal.SIGTERM)
    events = list(stream)
    assert events[-1].data == "[DONE]"
    assert completion_tokens(events) == 200
    assert worker.process.popen.wait(10) == 0


def test_stream_beyond_the_drain_limit_moves_to_another_worker(box, store, mock_worker):
    flags = ("--mock-step-ms", "10", "--drain-timeout-secs", "1")
    workers = [mock_worker(*flags), mock_worker(*flags)]
    frontend = box.frontend(VERSIONS[-1], store, extra_args=["--migration-limit", "3"]).wait_model("tiny")
    lab.wait_for("both instances", lambda: len(frontend.health()["instances"]) == 2, 10)
    stream = long_stream(frontend, 600)
    next(stream)
    leaving = next(worker for worker in workers if worker.metric("dynamo_trtllm_requests_running") == 1)
    leaving.process.signal(signal.SIGTERM)
    events = list(stream)
    assert leaving.process.popen.wait(10) == 0
    assert events[-1].data == "[DONE]"
    assert completion_tokens(events) == 600


def test_second_signal_is_harmless(store, mock_worker):
    worker = mock_worker(env=GRACE)
    worker.process.signal(signal.SIGTERM)
    time.sleep(0.3)
    worker.process.signal(signal.SIGTERM)
    assert worker.process.popen.wait(10) is not None
    assert not store.records()
