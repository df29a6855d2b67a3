"""What a worker shows besides answers: its records in the store and its status server."""

from __future__ import annotations

import json
import time

import pytest


@pytest.fixture(params=["mock", "smollm2"])
def worker(request, cluster):
    return cluster.workers[request.param]


def test_one_instance_and_one_card(worker):
    (instance_key, instance), = worker.instances().items()
    (card_key, card), = worker.cards().items()
    assert instance_key.removeprefix("v1/instances/") == card_key.removeprefix("v1/mdc/")
    identity = instance_key.rsplit("/", 1)[1]
    assert instance["type"] == "Endpoint" and card["type"] == "Model"
    assert instance["instance_id"] == card["instance_id"] == int(identity, 16)
    assert identity == f"{int(identity, 16):x}"
    assert list(instance["transport"]) == ["tcp"]
    assert instance["transport"]["tcp"].split("/", 1)[1] == f"{identity}/generate"


def test_card_has_what_every_release_needs(worker):
    (card,) = (value["card_json"] for value in worker.cards().values())
    for key in ("display_name", "slug", "context_length", "kv_cache_block_size", "migration_limit", "model_type",
                "model_input"):
        assert key in card, key
    assert card["context_length"] in (512, 1024)


def test_records_are_kept_alive(cluster):
    """Readers drop a record whose file is older than 10 s."""
    end = time.monotonic() + 12
    while time.monotonic() < end:
        files = [path for path in (cluster.store.root / "v1").rglob("*") if path.is_file()]
        assert len(files) == 4
        for path in files:
            assert time.time() - path.stat().st_mtime < 8, path
        time.sleep(1)


@pytest.mark.parametrize("path", ["/health", "/live"])
def test_health(worker, path):
    status, text = worker.get(path)
    assert status == 200
    body = json.loads(text)
    assert body["status"] == "ready"
    assert body["endpoints"] == {"generate": "ready"}
    assert set(body["uptime"]) == {"secs", "nanos"}


def test_metrics(worker, cluster):
    frontend = next(iter(cluster.frontends.values()))
    model = "mock" if worker is cluster.workers["mock"] else "smollm2"
    before = worker.metric("dynamo_component_requests_total", dynamo_endpoint="generate")
    frontend.completion(model, "abc", max_tokens=3)
    worker.wait_metric("dynamo_component_requests_total", before + 1)
    text = worker.get("/metrics")[1]
    for name in ("request_duration_seconds_bucket", "inflight_requests", "request_bytes_total", "response_bytes_total",
                 "uptime_seconds", "total_blocks"):
        assert f"dynamo_component_{name}" in text, name


def test_unknown_route(worker):
    assert worker.get("/nothing")[0] == 404
    assert worker.get("/engine/nothing")[0] == 404
