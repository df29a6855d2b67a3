"""The owner of everything one test run starts and writes."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from typing import Any, Mapping, Sequence

from .frontend import Frontend
from .process import Process, clean_environment, on_free_port
from .store import FileStore
from .tiny_model import make_tiny_model


class Lab:
    """Owns a temporary directory and every process started through it.

    Leaving the `with` block stops all processes (the last started first).  The directory with
    all logs is deleted unless the block raised, keep=True or DYNAMO_LAB_KEEP is set.
    """

    def __init__(self, directory: str | os.PathLike | None = None, keep: bool = False):
        if directory is None:
            # Resolved, because the file store of frontends up to 1.0 wants the canonical path.
            self.dir = pathlib.Path(tempfile.mkdtemp(prefix="dynamo-lab-")).resolve()
        else:
            self.dir, keep = pathlib.Path(directory).resolve(), True
            self.dir.mkdir(parents=True, exist_ok=True)
        self.keep = keep or bool(os.environ.get("DYNAMO_LAB_KEEP"))
        self._processes: list[Process] = []
        self._count = 0

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self.stop_all()
        if kind not in (None, SystemExit, KeyboardInterrupt) or self.keep:
            print(f"dynamo_lab: logs kept in {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def stop_all(self) -> None:
        """Ends every process that still runs; all are told at once, then each is waited for."""
        for process in reversed(self._processes):
            process.signal(signal.SIGTERM)
        for process in reversed(self._processes):
            with contextlib.suppress(Exception):
                process.stop()

    def file_store(self, name: str = "store") -> FileStore:
        return FileStore(self.dir / name)

    def tiny_model(self, name: str = "tiny", **options: Any) -> str:
        return make_tiny_model(self.dir / "models" / name, **options)

    def frontend(self, version: str, store: FileStore, *, wait: bool = True,
                 **options: Any) -> Frontend:
        def start() -> Frontend:
            frontend = Frontend(version, self.dir, store.environment(), store_kind=store.kind,
                                **options)
            self._processes.append(frontend.process)
            return frontend.wait_ready() if wait else frontend
        return on_free_port(start)

    def worker(self, argv: Sequence[str], store: FileStore, *,
               env: Mapping[str, str] | None = None, name: str | None = None) -> Process:
        """Starts the worker under test with the discovery environment of `store`."""
        return self.process(argv, env={**store.environment(), **(env or {})}, name=name)

    def process(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None,
                name: str | None = None) -> Process:
        """Any other program, with a clean environment plus `env`."""
        self._count += 1
        name = name or f"worker-{self._count}"
        process = Process(name, argv, self.dir / f"{name}.log", {**clean_environment(), **(env or {})})
        self._processes.append(process)
        return process
