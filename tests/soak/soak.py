#!/usr/bin/env python3
"""Hours of traffic in minutes: many streams, cancels and slow readers against a worker with a mock engine.

    tests/soak/soak.py --minutes 20 [--streams 128] [--seed 1]

Every stream's tokens are compared with the sequence that the mock engine must give: nothing lost, doubled or swapped.
Between rounds the worker is idle; then no request, KV block, stream or descriptor may be left, and after the first
quarter memory may not grow any more. Prints one line a round; exit status 0 if everything held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lab"))
import dynamo_lab as lab  # noqa: E402
from dynamo_lab import mock_tokens  # noqa: E402
from dynamo_lab.peer import Peer, Stream, request_body, tokens_of  # noqa: E402
from dynamo_lab.worker import Worker  # noqa: E402

VOCABULARY = 32_000
STEP_MS = 10
ROUND_SECONDS = 8
MEMORY_GROWTH_KIB = 8 * 1024  # allocators keep some; a leak of one request in a thousand is far above this
DESCRIPTOR_GROWTH = 8         # pooled connections of the status server


@dataclasses.dataclass
class Tally:
    finished: int = 0
    cancelled: int = 0
    slow: int = 0
    cut_off: int = 0
    tokens: int = 0


class Checked:
    """A stream whose tokens are compared with what must come."""

    def __init__(self, stream: Stream, prompt: list[int], tally: Tally):
        self.stream, self._items, self._tally = stream, aiter(stream), tally
        self._expected, self.count, self.usage = mock_tokens.hashed(prompt, VOCABULARY), 0, None
        self.error: str | None = None

    async def next(self) -> bool:
        """Checks one item; false at the end of the stream."""
        try:
            item = await anext(self._items)
        except StopAsyncIteration:
            return False
        content = item["data"]
        if content.get("event") == "error":
            self.error = content["error"]["message"]
            return True
        for token in tokens_of(item):
            expected = next(self._expected)
            if token != expected:
                raise AssertionError(f"token {self.count} is {token}, not {expected}")
            self.count += 1
            self._tally.tokens += 1
        self.usage = content["data"].get("completion_usage") or self.usage
        return True


async def whole(peer: Peer, transport: str, rng: random.Random, tally: Tally, delay: float) -> None:
    """Reads to the end, with a pause after each item if `delay`."""
    prompt = [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(1, 200))]
    count = rng.randrange(1, 400)
    checked = Checked(await peer.open(transport, request_body(prompt, max_tokens=count)), prompt, tally)
    while await checked.next():
        if delay:
            await asyncio.sleep(delay * rng.random())
    if checked.count != count or checked.stream.end != "sentinel" or not checked.stream.final:
        raise AssertionError(f"{checked.count} of {count} tokens, end {checked.stream.end}, error {checked.error}")
    if checked.usage["completion_tokens"] != count or checked.usage["prompt_tokens"] != len(prompt):
        raise AssertionError(f"wrong usage: {checked.usage}")
    tally.finished += 1
    tally.slow += bool(delay)


async def cancelled(peer: Peer, transport: str, rng: random.Random, tally: Tally) -> None:
    prompt = [rng.randrange(3, VOCABULARY)]
    checked = Checked(await peer.open(transport, request_body(prompt, max_tokens=3000)), prompt, tally)
    for _ in range(rng.randrange(0, 60)):
        await checked.next()
    way = rng.choice(["kill", "stop", "close", "reset"])
    if way in ("kill", "stop"):
        with contextlib.suppress(ConnectionError):
            await checked.stream.control(way)
        if way == "stop":
            while await checked.next():
                pass
    checked.stream.close(reset=way == "reset")
    tally.cancelled += 1


async def stuck(peer: Peer, transport: str, rng: random.Random, tally: Tally, until: float) -> None:
    """Does not read at all until the round ends, then takes what is there: a correct beginning, then an end."""
    prompt = [rng.randrange(3, VOCABULARY)]
    checked = Checked(await peer.open(transport, request_body(prompt, max_tokens=3000)), prompt, tally)
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    checked.stream.close(reset=rng.random() < 0.5)
    tally.cut_off += 1


async def client(peer: Peer, transport: str, rng: random.Random, tally: Tally, until: float) -> None:
    while time.monotonic() < until:
        kind = rng.random()
        if kind < 0.6:
            await whole(peer, transport, rng, tally, 0)
        elif kind < 0.7:
            await whole(peer, transport, rng, tally, 0.02)
        elif kind < 0.97:
            await cancelled(peer, transport, rng, tally)
        else:
            await stuck(peer, transport, rng, tally, until)


async def one_round(worker: Worker, rng: random.Random, streams: int, tally: Tally) -> None:
    until = time.monotonic() + ROUND_SECONDS
    async with Peer() as peer:
        await asyncio.gather(*(client(peer, worker.transport, random.Random(rng.random()), tally, until)
                               for _ in range(streams)))


def soak(worker: Worker, options: argparse.Namespace) -> None:
    rng, tally = random.Random(options.seed), Tally()
    start = time.monotonic()
    duration = options.minutes * 60
    base: tuple[int, int] | None = None
    rounds = 0
    while rounds < 3 or time.monotonic() - start < duration:
        asyncio.run(one_round(worker, rng, options.streams, tally))
        worker.process.check_alive()
        worker.wait_idle(10)
        lab.wait_for("closed sockets", lambda: base is None or worker.open_files() <= base[1] + DESCRIPTOR_GROWTH, 12)
        memory, files = worker.memory_kib(), worker.open_files()
        rounds += 1
        elapsed = time.monotonic() - start
        print(f"{elapsed:7.1f} s  {tally.finished} whole ({tally.slow} slow)  {tally.cancelled} cancelled  "
              f"{tally.cut_off} never read  {tally.tokens} tokens  {memory} KiB  {files} descriptors", flush=True)
        if base is None and rounds >= 2 and elapsed >= duration / 4:
            base = memory, files
        if base is not None and memory > base[0] + MEMORY_GROWTH_KIB:
            raise AssertionError(f"memory grew from {base[0]} to {memory} KiB")
    leaked = worker.metric("dynamo_trtllm_streams_total", end="abandoned")
    if leaked:
        raise AssertionError(f"{leaked:g} streams abandoned")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--streams", type=int, default=96, help="streams at a time")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with lab.Lab() as box:
        worker = Worker(box, box.file_store(), "--model", box.tiny_model(), "--engine", "mock", "--mock-step-ms",
                        str(STEP_MS), "--mock-vocab-size", str(VOCABULARY), "--max-batch-size", "1024",
                        "--mock-kv-blocks", "200000", served_model_name="tiny").wait_ready()
        try:
            soak(worker, options)
        except (AssertionError, lab.LabError) as error:
            print(f"soak: {error}\n{worker.process.tail()}", file=sys.stderr)
            return 1
        status = worker.process.stop()
        if status:
            print(f"soak: the worker ended with status {status}\n{worker.process.tail()}", file=sys.stderr)
        return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
