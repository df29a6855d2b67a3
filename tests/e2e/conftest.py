"""One file store with official frontends of every release and one worker of each engine, for the whole session."""

from __future__ import annotations

import dataclasses

import pytest

import dynamo_lab as lab
from dynamo_lab.settings import VERSIONS
from dynamo_lab.worker import Worker

MOCK_MAX_SEQ_LEN = 512


@dataclasses.dataclass
class Cluster:
    store: lab.FileStore
    workers: dict[str, Worker]  # by served model name: "mock" echoes its prompt, "smollm2" is a real model
    frontends: dict[str, lab.Frontend]


@pytest.fixture(scope="session")
def cluster(smollm2):
    with lab.Lab() as box:
        store = box.file_store()
        # Each model on a component of its own: frontends balance over all instances of an endpoint.
        workers = {
            "mock": Worker(box, store, "--model", box.tiny_model(), "--engine", "mock", "--mock-tokens", "echo",
                           "--mock-vocab-size", str(lab.TINY_VOCAB_SIZE),
                           "--mock-step-ms", "2", "--max-seq-len", str(MOCK_MAX_SEQ_LEN), "--component-name", "mock",
                           served_model_name="mock", name="worker-mock").wait_ready(),
            "smollm2": Worker(box, store, "--model", smollm2, "--engine", "native", "--max-seq-len", "1024",
                              "--component-name", "native", served_model_name="smollm2",
                              name="worker-native").wait_ready(120),
        }
        frontends = {version: box.frontend(version, store, wait=False) for version in VERSIONS}
        for frontend in frontends.values():
            for model in workers:
                frontend.wait_ready().wait_model(model)
        yield Cluster(store, workers, frontends)
        for worker in workers.values():
            worker.process.check_alive()
            worker.wait_idle()


@pytest.fixture(params=VERSIONS)
def frontend(request, cluster) -> lab.Frontend:
    return cluster.frontends[request.param]


@pytest.fixture
def since_1_5(frontend) -> bool:
    return lab.version_key(frontend.version) >= (1, 5)


@pytest.fixture(params=["mock", "smollm2"])
def model(request) -> str:
    """Tests with this fixture run against both engines."""
    return request.param


@pytest.fixture
def mock(cluster) -> Worker:
    return cluster.workers["mock"]


@pytest.fixture
def native(cluster) -> Worker:
    return cluster.workers["smollm2"]
