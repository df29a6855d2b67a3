"""Fixtures of the tests that run the whole worker: one store, official frontends, workers of both engines."""

from __future__ import annotations

import pathlib

import pytest

import dynamo_lab as lab
from dynamo_lab.settings import MODELS, VERSIONS
from dynamo_lab.worker import Worker, worker_binary


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not VERSIONS and items:
        raise pytest.UsageError("no official frontend is installed: run tests/lab/setup.sh 1.6.1")


@pytest.fixture(scope="session", autouse=True)
def binary() -> str:
    return worker_binary()


@pytest.fixture
def box():
    with lab.Lab() as owner:
        yield owner


@pytest.fixture
def store(box: lab.Lab) -> lab.FileStore:
    return box.file_store()


@pytest.fixture
def tiny_model(box: lab.Lab) -> str:
    return box.tiny_model()


@pytest.fixture(scope="session")
def smollm2() -> pathlib.Path:
    path = MODELS / "SmolLM2-135M-Instruct"
    if not (path / "config.json").is_file():
        pytest.fail(f"no model in {path}: run scripts/models")
    return path


@pytest.fixture
def mock_worker(box: lab.Lab, store: lab.FileStore, tiny_model: str):
    """Starts mock workers: mock_worker("--mock-step-ms", "5", env={...})."""
    def start(*flags: str, **options) -> Worker:
        options.setdefault("served_model_name", "tiny")
        return Worker(box, store, "--model", tiny_model, "--engine", "mock", "--mock-vocab-size",
                      str(lab.TINY_VOCAB_SIZE), *flags, **options).wait_ready()
    return start
