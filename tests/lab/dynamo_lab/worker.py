"""The worker under test: its command line, its status server, its records."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import re
from typing import Any, Mapping

from .box import Lab
from .process import LabError, Process, free_port, wait_for
from .store import FileStore

ROOT = pathlib.Path(__file__).resolve().parents[3]


def worker_binary() -> str:
    """$DYN_WORKER, else the release build."""
    path = os.environ.get("DYN_WORKER") or str(ROOT / "build/release/bin/dynamo-trtllm")
    if not os.access(path, os.X_OK):
        raise LabError(f"no worker at {path}: run scripts/build, or set DYN_WORKER")
    return path


# Gauges that are zero exactly when no request is anywhere in the worker and none holds a KV block.
IDLE_GAUGES = ("dynamo_component_inflight_requests", "dynamo_trtllm_requests_open", "dynamo_trtllm_requests_running",
               "dynamo_trtllm_requests_waiting", "dynamo_trtllm_kv_blocks_used")


class Worker:
    """A running dynamo-trtllm with its status server on a free port of the loopback interface."""

    def __init__(self, box: Lab, store: FileStore, *flags: str | os.PathLike, served_model_name: str | None = None,
                 env: Mapping[str, str] | None = None, name: str | None = None):
        self.port, self.store = free_port(), store
        self._identity: str | None = None
        self._others = _identities(store.records())
        argv = [worker_binary(), *(str(flag) for flag in flags)]
        if served_model_name:
            argv += ["--served-model-name", served_model_name]
        self.process: Process = box.worker(argv, store, name=name, env={
            "DYN_SYSTEM_PORT": str(self.port), "DYN_SYSTEM_HOST": "127.0.0.1", "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0.5", **(env or {})})

    # -- status server

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def wait_ready(self, timeout: float = 60) -> "Worker":
        def ready() -> bool:
            self.process.check_alive()
            try:
                return self.get("/health")[0] == 200 and bool(self.instances())
            except OSError:
                return False
        try:
            wait_for("ready worker", ready, timeout)
        except LabError as error:
            raise LabError(f"{error}; log tail:\n{self.process.tail()}") from None
        return self

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[1])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of this name that carry these labels; 0 when there is none."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name and all(f'{k}="{v}"' in (match[2] or "") for k, v in labels.items()):
                total += float(match[3])
        return total

    def wait_metric(self, name: str, value: float, timeout: float = 10) -> None:
        try:
            wait_for(f"{name} == {value}", lambda: self.metric(name) == value, timeout)
        except LabError:
            raise LabError(f"{name} stays at {self.metric(name)}, not {value}") from None

    def wait_idle(self, timeout: float = 10) -> None:
        """No request anywhere in the worker, no KV block held by one."""
        for gauge in IDLE_GAUGES:
            self.wait_metric(gauge, 0, timeout)

    # -- records

    def instances(self) -> dict[str, Any]:
        """This worker's instance records: {key: value}."""
        return self._records("v1/instances/")

    def cards(self) -> dict[str, Any]:
        return self._records("v1/mdc/")

    def _records(self, prefix: str) -> dict[str, Any]:
        records = self.store.records()
        if self._identity is None:  # the one that was not there before; start workers of one store one after another
            self._identity = next((i for i in _identities(records) if i not in self._others), None)
        return {key: value for key, value in records.items()
                if key.startswith(prefix) and key.split("/")[5:6] == [self._identity]}

    @property
    def transport(self) -> str:
        """`ip:port/path` of its generate endpoint."""
        return next(iter(self.instances().values()))["transport"]["tcp"]

    # -- process

    def memory_kib(self) -> int:
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def _identities(records: Mapping[str, Any]) -> set[str]:
    """Instance ids of v1/instances/{namespace}/{component}/{endpoint}/{id}."""
    return {key.split("/")[5] for key in records if key.startswith("v1/instances/")}
