"""Official KV routers send a request to the worker that has its prompt in the KV cache, because the worker said so."""

from __future__ import annotations

import dataclasses

import pytest

import dynamo_lab as lab
from dynamo_lab.settings import VERSIONS
from dynamo_lab.worker import Worker

# Routers of 0.8 take KV events from NATS only.
KV_VERSIONS = [version for version in VERSIONS if lab.version_key(version) >= (0, 9)]
BLOCK = 32  # tokens; a token is a byte of the prompt

pytestmark = pytest.mark.skipif(not KV_VERSIONS, reason="no frontend that takes KV events over ZMQ")


@dataclasses.dataclass
class Pair:
    """Two workers of one model that publish KV events, on a store of their own."""

    box: lab.Lab
    store: lab.FileStore
    workers: list[Worker]

    def frontend(self, version: str) -> lab.Frontend:
        frontend = self.box.frontend(version, self.store, router_mode="kv", env={"DYN_EVENT_PLANE": "zmq"})
        return frontend.wait_model("tiny")

    def served_by(self, frontend: lab.Frontend, prompt: str) -> tuple[int, int]:
        """Asks, and tells which worker answered and how many tokens of the prompt it had cached."""
        before = [worker.metric("dynamo_trtllm_requests_finished_total") for worker in self.workers]
        answer = frontend.completion("tiny", prompt, max_tokens=2, ignore_eos=True)
        lab.wait_for("counted request", lambda: sum(self.finished()) == sum(before) + 1, 5)
        who = next(i for i, count in enumerate(self.finished()) if count != before[i])
        details = answer["usage"].get("prompt_tokens_details") or {}
        return who, details.get("cached_tokens") or 0

    def finished(self) -> list[float]:
        return [worker.metric("dynamo_trtllm_requests_finished_total") for worker in self.workers]

    def known_blocks(self) -> float:
        return sum(worker.metric("dynamo_trtllm_kv_event_blocks") for worker in self.workers)


@pytest.fixture(scope="module")
def pair():
    with lab.Lab() as box:
        store = box.file_store()
        model = box.tiny_model()
        workers = []
        for number in range(2):
            workers.append(Worker(box, store, "--model", model, "--load-format", "dummy", "--publish-kv-events",
                                  "--max-seq-len", "2048", "--threads", "1", served_model_name="tiny",
                                  name=f"worker-{number}").wait_ready())
        yield Pair(box, store, workers)
        for worker in workers:
            worker.process.check_alive()
            worker.wait_idle()
            assert worker.metric("dynamo_trtllm_kv_events_dropped_total") == 0


def prompts(tag: str, count: int) -> list[str]:
    """Prompts of eight blocks that share none, not even the first."""
    return [(f"{tag}-{i:02} " * 2 * BLOCK)[:8 * BLOCK] for i in range(count)]


def ask_all(pair: Pair, frontend: lab.Frontend, texts: list[str]) -> list[int]:
    before = pair.known_blocks()
    homes = [pair.served_by(frontend, text)[0] for text in texts]
    lab.wait_for("published blocks", lambda: pair.known_blocks() >= before + 8 * len(texts), 5)
    return homes


@pytest.mark.parametrize("version", KV_VERSIONS)
def test_a_prompt_goes_where_its_prefix_is(pair, version):
    frontend = pair.frontend(version)
    texts = prompts(version, 6)
    homes = ask_all(pair, frontend, texts)
    for text, home in zip(texts, homes):
        who, cached = pair.served_by(frontend, text + " and then?")
        assert who == home
        assert cached >= 7 * BLOCK
    assert frontend.stop() == 0


@pytest.mark.parametrize("version", KV_VERSIONS)
def test_a_router_that_comes_late_asks(pair, version):
    """It has seen none of the events: what it knows, it knows from the workers' answers to its query."""
    first = pair.frontend(version)
    texts = prompts(f"late-{version}", 6)
    homes = ask_all(pair, first, texts)
    first.stop()
    queries = [worker.metric("dynamo_trtllm_kv_event_queries_total") for worker in pair.workers]
    late = pair.frontend(version)
    lab.wait_for("queries of the late router", lambda: all(
        worker.metric("dynamo_trtllm_kv_event_queries_total") > count
        for worker, count in zip(pair.workers, queries)), 20)
    assert [pair.served_by(late, text)[0] for text in texts] == homes
    late.stop()


def test_two_generations_of_routers_agree(pair):
    """Whatever the first one caused, the other has learned from the events."""
    if len(KV_VERSIONS) < 2:
        pytest.skip("one version only")
    old, new = pair.frontend(KV_VERSIONS[0]), pair.frontend(KV_VERSIONS[-1])
    texts = prompts("both", 6)
    homes = ask_all(pair, old, texts[:3]) + ask_all(pair, new, texts[3:])
    assert [pair.served_by(new, text)[0] for text in texts[:3]] == homes[:3]
    assert [pair.served_by(old, text)[0] for text in texts[3:]] == homes[3:]
    old.stop()
    new.stop()


def test_records_go_with_the_worker(pair):
    """An orderly end leaves no channel, source or recovery endpoint behind."""
    before = set(pair.store.records())
    worker = Worker(pair.box, pair.store, "--model", pair.box.tiny_model("other"), "--load-format", "dummy",
                    "--publish-kv-events", "--component-name", "other", "--threads", "1",
                    served_model_name="other", name="worker-other").wait_ready()
    added = set(pair.store.records()) - before
    assert len([key for key in added if key.startswith("v1/event_channels/")]) == 2
    assert len([key for key in added if key.startswith("v1/event_sources/")]) == 1
    assert len([key for key in added if key.startswith("v1/instances/")]) == 4
    assert worker.process.stop() == 0
    assert set(pair.store.records()) == before


def test_a_killed_worker_is_routed_around(pair):
    version = KV_VERSIONS[-1]
    victim = Worker(pair.box, pair.store, "--model", pair.box.tiny_model(), "--load-format", "dummy",
                    "--publish-kv-events", "--max-seq-len", "2048", "--threads", "1", served_model_name="tiny",
                    name="worker-victim").wait_ready()
    workers, pair.workers = pair.workers, [*pair.workers, victim]
    try:
        frontend = pair.frontend(version)
        texts = prompts("kill", 12)
        homes = ask_all(pair, frontend, texts)
        assert 2 in homes, "twelve prompts, and none went to the third worker"
        victim.process.kill()
        pair.workers = workers
        lab.wait_for("its records to expire", lambda: len(
            [key for key in pair.store.records() if key.startswith("v1/event_sources/")]) == 2, 40)
        for text, home in zip(texts, homes):
            who, _ = pair.served_by(frontend, text)
            assert home == 2 or who == home
        frontend.stop()
    finally:
        pair.workers = workers
        if victim.process.returncode is None:
            victim.process.kill()
