"""Official frontends (installed by setup.sh) and the requests that tests send to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

from .process import LabError, Process, clean_environment, free_port, wait_for


def home() -> pathlib.Path:
    if value := os.environ.get("DYNAMO_LAB_HOME"):
        return pathlib.Path(value)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache) / "dynamo-lab"


def installed_versions() -> list[str]:
    found = [p.name[len("venv-"):] for p in home().glob("venv-*")
             if list(p.glob("lib/python*/site-packages/dynamo/frontend/main.py"))]
    return sorted(found, key=version_key)


def version_key(version: str) -> tuple[int, ...]:
    """Release numbers only: '0.8.1.post3' -> (0, 8, 1), '1.7.0.dev2026' -> (1, 7, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    if not match:
        raise ValueError(f"not a version: {version!r}")
    return tuple(int(part) for part in match.group(0).split("."))


class SseEvent(NamedTuple):
    """One Server-Sent Event; `json` is the parsed data, None for [DONE] or no data."""
    event: str | None
    data: str
    comment: str
    json: Any


class HttpError(LabError):
    def __init__(self, status: int, body: str):
        super().__init__(f"HTTP {status}: {body}")
        self.status, self.body = status, body


class Frontend:
    """One official `python -m dynamo.frontend`."""

    def __init__(self, version: str, directory: pathlib.Path, environment: Mapping[str, str], *,
                 store_kind: str, request_plane: str = "tcp", router_mode: str | None = None,
                 extra_args: Sequence[str] = (), port: int | None = None,
                 env: Mapping[str, str] | None = None, log_level: str = "info"):
        self.version, self.port = version, port or free_port()
        python = home() / f"venv-{version}" / "bin" / "python"
        if not python.exists():
            raise LabError(f"frontend {version} is not installed; run setup.sh {version}")
        old = version_key(version) < (1, 0)
        argv = [str(python), "-m", "dynamo.frontend", "--http-port", str(self.port),
                "--store-kv" if old else "--discovery-backend", store_kind,
                "--request-plane", request_plane]
        if router_mode:
            argv += ["--router-mode", router_mode]
        argv += [str(a) for a in extra_args]
        full = clean_environment()
        # A private HOME: newer versions copy model files to $HOME/.cache/dynamo.
        full.update({"HOME": str(directory), "HF_HUB_OFFLINE": "1", "DYN_LOG": log_level,
                     "DYN_SDK_DISABLE_ANSI_LOGGING": "1", "PYTHONUNBUFFERED": "1"})
        full.update(environment)
        full.update(env or {})
        self.process = Process(f"frontend {version}", argv,
                               directory / f"frontend-{version}-{self.port}.log", full, directory)

    # -- waiting

    def wait_ready(self, timeout: float = 60) -> "Frontend":
        def up() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.get("/health", raise_error=False)[0] in (200, 503)
            return False
        self._wait("ready frontend", up, timeout)
        return self

    def wait_model(self, name: str, timeout: float = 60) -> "Frontend":
        self._wait(f"model {name!r}", lambda: name in self.models(), timeout)
        return self

    def wait_no_model(self, name: str, timeout: float = 30) -> "Frontend":
        self._wait(f"removal of model {name!r}", lambda: name not in self.models(), timeout)
        return self

    def _wait(self, what: str, check: Callable[[], Any], timeout: float) -> None:
        def alive_and_check() -> Any:
            self.process.check_alive()
            return check()
        try:
            wait_for(what, alive_and_check, timeout)
        except LabError as error:
            if "\n" in str(error):
                raise
            raise LabError(f"{error}; log tail:\n{self.process.tail()}") from None

    # -- requests

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, *, timeout: float = 10, raise_error: bool = True) -> tuple[int, str]:
        status, body = _http("127.0.0.1", self.port, "GET", path, timeout=timeout)
        text = body.decode(errors="replace")
        if raise_error and status >= 400:
            raise HttpError(status, text)
        return status, text

    def models(self) -> list[str]:
        return [m["id"] for m in json.loads(self.get("/v1/models")[1])["data"]]

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[1])

    def metrics(self) -> str:
        return self.get("/metrics")[1]

    def post(self, path: str, body: Mapping[str, Any], *, timeout: float = 60,
             headers: Mapping[str, str] | None = None, raise_error: bool = True) -> tuple[int, Any]:
        status, raw = _http("127.0.0.1", self.port, "POST", path, body, timeout, headers)
        if raise_error and status >= 400:
            raise HttpError(status, raw.decode(errors="replace"))
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode(errors="replace")

    def chat(self, model: str, prompt: str | list, *, timeout: float = 60,
             headers: Mapping[str, str] | None = None, **body: Any) -> dict[str, Any]:
        return self.post("/v1/chat/completions", chat_body(model, prompt, body),
                         timeout=timeout, headers=headers)[1]

    def completion(self, model: str, prompt: str | list, *, timeout: float = 60,
                   **body: Any) -> dict[str, Any]:
        return self.post("/v1/completions", {"model": model, "prompt": prompt, **body},
                         timeout=timeout)[1]

    def chat_stream(self, model: str, prompt: str | list, *, timeout: float = 60,
                    headers: Mapping[str, str] | None = None, **body: Any) -> Iterator[SseEvent]:
        """Closing the iterator early disconnects, as a client going away would."""
        return self.stream("/v1/chat/completions",
                           chat_body(model, prompt, {**body, "stream": True}), timeout, headers)

    def stream(self, path: str, body: Mapping[str, Any], timeout: float = 60,
               headers: Mapping[str, str] | None = None) -> Iterator[SseEvent]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body),
                               {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            if response.status >= 400:
                raise HttpError(response.status, response.read().decode(errors="replace"))
            yield from _sse(response)
        finally:
            connection.close()

    def stop(self, timeout: float = 20) -> int:
        return self.process.stop(timeout)


def chat_body(model: str, prompt: str | list, extra: Mapping[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"model": model, "messages": messages, **extra}


def text_of(events: Iterator[SseEvent]) -> str:
    """The concatenated text of a chat or completions stream."""
    parts = []
    for event in events:
        for choice in (event.json or {}).get("choices", []):
            parts.append(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
    return "".join(parts)


def _sse(response: http.client.HTTPResponse) -> Iterator[SseEvent]:
    event, data, comment = None, [], []
    for raw in response:
        line = raw.decode(errors="replace").rstrip("\r\n")
        if not line:
            if event is not None or data or comment:
                text, parsed = "\n".join(data), None
                with contextlib.suppress(ValueError):
                    parsed = json.loads(text)
                yield SseEvent(event, text, "\n".join(comment), parsed)
            event, data, comment = None, [], []
        elif line.startswith(":"):
            comment.append(line[1:].strip())
        elif line.startswith("event:"):
            event = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].strip())


def _http(host: str, port: int, method: str, path: str, body: Any = None, timeout: float = 10,
          headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload,
                           {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
