"""Discovery records that somebody else destroys."""

from __future__ import annotations

import os
import shutil

import dynamo_lab as lab
from dynamo_lab.settings import VERSIONS


def test_deleted_records_come_back(box, store, mock_worker):
    worker = mock_worker()
    before = {**worker.instances(), **worker.cards()}
    for path in store.root.rglob("*"):
        if path.is_file():
            path.unlink()
    lab.wait_for("records", lambda: {**worker.instances(), **worker.cards()} == before, 10)
    frontend = box.frontend(VERSIONS[-1], store).wait_model("tiny")
    assert frontend.completion("tiny", "abc", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3


def test_deleted_store_comes_back(store, mock_worker):
    worker = mock_worker()
    shutil.rmtree(store.root)
    lab.wait_for("records", lambda: worker.instances() and worker.cards(), 10)
    assert worker.process.returncode is None


def test_records_that_look_dead_are_revived(store, mock_worker):
    """A clock that jumps, or a suspended machine: the files look old and any reader may remove them."""
    worker = mock_worker()
    for path in store.root.rglob("*"):
        if path.is_file():
            os.utime(path, (0, 0))
    lab.wait_for("fresh records", lambda: worker.instances() and all(
        path.stat().st_mtime > 1e9 for path in store.root.rglob("*") if path.is_file()), 10)


def test_worker_is_listed_whether_it_starts_before_or_after_the_frontends(box, store, mock_worker):
    early = [box.frontend(version, store) for version in VERSIONS]
    mock_worker()
    late = [box.frontend(version, store) for version in VERSIONS]
    for frontend in early + late:
        frontend.wait_model("tiny", timeout=15)
