"""Child processes that are always ended, and small helpers of waiting."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Mapping, Sequence


class LabError(RuntimeError):
    """Something the lab waited for did not happen; the text holds the log tail."""


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def on_free_port(start: Callable[[], Any], tries: int = 3) -> Any:
    """Calls start() again when another process took the chosen port in the meantime."""
    for attempt in range(tries):
        try:
            return start()
        except LabError as error:
            if attempt == tries - 1 or "in use" not in str(error):
                raise


def clean_environment() -> dict[str, str]:
    """The caller's environment without settings that would leak into a run."""
    return {k: v for k, v in os.environ.items()
            if not k.startswith(("DYN_", "NATS_", "ETCD_", "OTEL_"))}


def wait_for(what: str, check: Callable[[], Any], timeout: float, interval: float = 0.1) -> Any:
    """Calls check() until it returns something true; returns that."""
    end = time.monotonic() + timeout
    while True:
        if value := check():
            return value
        if time.monotonic() >= end:
            raise LabError(f"no {what} within {timeout:g} s")
        time.sleep(interval)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)      # PR_SET_PDEATHSIG


class Process:
    """A child process in its own session, its output in a log file, ended by pid only.

    A child started from the main thread also gets SIGTERM when this process dies (Linux).
    """

    def __init__(self, name: str, argv: Sequence[str], log: pathlib.Path,
                 env: Mapping[str, str] | None = None, cwd: str | os.PathLike | None = None):
        self.name, self.argv, self.log = name, [str(a) for a in argv], pathlib.Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        tied = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
        try:
            with open(self.log, "wb") as out:
                self.popen = subprocess.Popen(
                    self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                    env=None if env is None else dict(env), cwd=cwd, start_new_session=True,
                    preexec_fn=_end_with_parent if tied else None)
        except OSError as error:
            raise LabError(f"cannot start {name}: {error}") from None

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def returncode(self) -> int | None:
        return self.popen.poll()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.output().splitlines()[-lines:])

    def check_alive(self) -> None:
        if self.popen.poll() is not None:
            raise LabError(f"{self.name} ended with status {self.popen.returncode}:\n{self.tail()}")

    def wait_output(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output())
            if not found:
                self.check_alive()
            return found
        try:
            return wait_for(f"{pattern!r} in the output of {self.name}", look, timeout)
        except LabError as error:
            if "\n" in str(error):
                raise
            raise LabError(f"{error}; log tail:\n{self.tail()}") from None

    def signal(self, number: int) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def stop(self, timeout: float = 15) -> int:
        """SIGTERM, then SIGKILL after `timeout`; returns the exit status."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL, as in a crash; also to what is left of the child's own process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.popen.wait()
