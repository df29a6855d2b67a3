"""Official frontends turn requests away from a worker that says its KV cache is full."""

from __future__ import annotations

import contextlib

import pytest

import dynamo_lab as lab
from dynamo_lab.settings import VERSIONS
from dynamo_lab.worker import Worker

# Up to 1.0 a frontend's own view of the worker replaces what the worker says.
BUSY_VERSIONS = [version for version in VERSIONS if lab.version_key(version) >= (1, 5)]
OVERLOADED = 529


@pytest.mark.parametrize("version", BUSY_VERSIONS)
def test_a_full_worker_is_spared(version):
    with lab.Lab() as box:
        store = box.file_store()
        worker = Worker(box, store, "--model", box.tiny_model(), "--engine", "mock", "--mock-vocab-size",
                        str(lab.TINY_VOCAB_SIZE), "--mock-step-ms", "20", "--mock-kv-blocks", "16", "--max-seq-len", "512",
                        "--publish-metrics", served_model_name="tiny").wait_ready()
        frontend = box.frontend(version, store, env={"DYN_EVENT_PLANE": "zmq"},
                                extra_args=["--active-decode-blocks-threshold", "0.3"]).wait_model("tiny")

        def is_refused() -> bool:
            try:
                frontend.completion("tiny", "short", max_tokens=1)
            except lab.HttpError as error:
                assert error.status == OVERLOADED, error
                return True
            return False

        assert not is_refused()
        # Ten of the sixteen blocks, for as long as it is read.
        with contextlib.closing(frontend.chat_stream("tiny", "x" * 300, max_tokens=150, ignore_eos=True)) as stream:
            next(stream)
            lab.wait_for("refusal of a busy worker", is_refused, 10)
        worker.wait_idle(10)
        lab.wait_for("acceptance by an idle worker", lambda: not is_refused(), 10)
