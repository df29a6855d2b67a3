"""Processes that are killed: the others notice, and the survivors serve on."""

from __future__ import annotations

import time

import pytest

import dynamo_lab as lab
from dynamo_lab.settings import VERSIONS


def test_killed_worker_is_dropped_by_every_frontend(box, store, mock_worker):
    worker = mock_worker()
    frontends = [box.frontend(version, store).wait_model("tiny") for version in VERSIONS]
    worker.process.kill()
    start = time.monotonic()
    for frontend in frontends:
        frontend.wait_no_model("tiny", timeout=20)
    # 10 s until a record counts as dead, and the sweeps that find it.
    assert time.monotonic() - start < 20
    assert not [key for key in store.records() if key.startswith("v1/instances/")]


def test_restarted_worker_is_found_again(box, store, mock_worker):
    frontend = box.frontend(VERSIONS[-1], store)
    mock_worker().process.kill()
    replacement = mock_worker()
    frontend.wait_model("tiny")

    def answered_by_the_replacement() -> bool:
        """Until the dead record expires, some requests may still be sent to it."""
        try:
            return frontend.completion("tiny", "abc", max_tokens=3)["usage"]["completion_tokens"] == 3
        except lab.HttpError:
            return False
    lab.wait_for("answer", answered_by_the_replacement, 20)
    lab.wait_for("removal of the dead worker's record", lambda: len(
        [key for key in store.records() if key.startswith("v1/instances/")]) == 1, 20)
    assert replacement.process.returncode is None


@pytest.mark.parametrize("version", VERSIONS)
def test_killed_frontend_frees_its_requests_and_the_next_one_is_served(box, store, mock_worker, version):
    worker = mock_worker("--mock-step-ms", "5")
    frontend = box.frontend(version, store).wait_model("tiny")
    streams = [frontend.stream("/v1/completions", {"model": "tiny", "prompt": f"{n}", "max_tokens": 3000, "stream": True,
                                                   "ignore_eos": True}) for n in range(8)]
    for stream in streams:
        next(stream)
    assert worker.metric("dynamo_trtllm_requests_running") == 8
    frontend.process.kill()
    worker.wait_idle()
    successor = box.frontend(version, store).wait_model("tiny")
    assert successor.completion("tiny", "abc", max_tokens=4, ignore_eos=True)["usage"]["completion_tokens"] == 4


def test_two_workers_share_the_load_and_one_may_die(box, store, mock_worker):
    workers = [mock_worker(), mock_worker()]
    frontend = box.frontend(VERSIONS[-1], store, extra_args=["--migration-limit", "3"]).wait_model("tiny")
    lab.wait_for("both instances", lambda: len(frontend.health()["instances"]) == 2, 10)
    for _ in range(8):
        frontend.completion("tiny", "abc", max_tokens=2, ignore_eos=True)
    assert all(worker.metric("dynamo_component_requests_total") >= 1 for worker in workers)
    workers[0].process.kill()
    for _ in range(4):  # a refused connection is moved to the survivor
        assert frontend.completion("tiny", "abc", max_tokens=2, ignore_eos=True)["usage"]["completion_tokens"] == 2


def test_stream_of_a_killed_worker_continues_on_another(box, store, mock_worker):
    workers = [mock_worker("--mock-step-ms", "10"), mock_worker("--mock-step-ms", "10")]
    frontend = box.frontend(VERSIONS[-1], store, extra_args=["--migration-limit", "3"]).wait_model("tiny")
    lab.wait_for("both instances", lambda: len(frontend.health()["instances"]) == 2, 10)
    stream = frontend.stream("/v1/completions", {"model": "tiny", "prompt": "abc", "max_tokens": 300, "stream": True,
                                                 "ignore_eos": True, "stream_options": {"include_usage": True}})
    next(stream)
    busy = next(worker for worker in workers if worker.metric("dynamo_trtllm_requests_running") == 1)
    busy.process.kill()
    events = list(stream)
    assert events[-1].data == "[DONE]"
    usage = next(event.json["usage"] for event in events if event.json and event.json.get("usage"))
    assert usage["completion_tokens"] == 300


def test_dead_engine_ends_the_process(box, store, mock_worker):
    worker = mock_worker("--mock-die-after-steps", "20")
    frontend = box.frontend(VERSIONS[-1], store).wait_model("tiny")
    with pytest.raises(lab.HttpError):
        frontend.completion("tiny", "abc", max_tokens=3000, ignore_eos=True)
    assert worker.process.popen.wait(15) == 1
    frontend.wait_no_model("tiny", timeout=2)
    assert not store.records()
