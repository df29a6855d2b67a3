"""What the runners of other engines share: loads, figures in the form of `dynamo-trtllm bench engine --json`.

    engine.start(first_load)           # everything up to readiness
    for load in loads: run(engine, load, seconds)

A runner is a process of its own, started with T0 in the environment: seconds since the epoch, just before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from typing import NamedTuple


class Load(NamedTuple):
    sequences: int
    input: int
    output: int


class Request(NamedTuple):
    """Of one round: seconds from its start."""
    first: float
    last: float


def parse_loads(text: str) -> list[Load]:
    return [Load(*map(int, one.split(":"))) for one in text.split(",")]


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--loads", required=True, type=parse_loads)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--seconds", required=True, type=float)
    parser.add_argument("--vocab-size", required=True, type=int)
    return parser.parse_args()


def quantile(values: list[float], q: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def peak_resident_bytes() -> int:
    """Of this process and its children, each at its own time."""
    total, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        try:
            with open(f"/proc/{pid}/status") as status:
                total += sum(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    pids += map(int, children.read().split())
        except OSError:
            pass  # it ended meanwhile
    return total


class Prompts:
    """Other token ids each time, so that no prefix is found in a cache."""

    def __init__(self, vocab_size: int):
        self.random, self.vocab_size = random.Random(42), vocab_size

    def next(self, length: int) -> list[int]:
        return [self.random.randrange(self.vocab_size // 2, self.vocab_size) for _ in range(length)]


def run(engine, load: Load, prompts: Prompts, seconds: float) -> dict:
    """engine.round(prompts, output) -> (seconds of the round, a Request each)."""
    total, rounds, ttft, tpot = 0.0, 0, [], []
    engine.round([prompts.next(load.input) for _ in range(load.sequences)], min(2, load.output))  # warm
    while rounds == 0 or total < seconds:
        took, requests = engine.round([prompts.next(load.input) for _ in range(load.sequences)], load.output)
        total += took
        rounds += 1
        ttft += [1e3 * request.first for request in requests]
        if load.output > 1:
            tpot += [1e3 * (request.last - request.first) / (load.output - 1) for request in requests]
    output, everything = load.sequences * load.output, load.sequences * (load.input + load.output)
    return {"sequences": load.sequences, "input_len": load.input, "output_len": load.output, "rounds": rounds,
            "seconds": total, "output_throughput": rounds * output / total,
            "total_token_throughput": rounds * everything / total,
            "ttft_ms": {"p50": quantile(ttft, 0.5), "p99": quantile(ttft, 0.99)},
            "tpot_ms": {"p50": quantile(tpot, 0.5), "p99": quantile(tpot, 0.99)}}


def report(engine, args: argparse.Namespace, version: str, settings: dict) -> None:
    """`engine` is ready; what is printed is the result of the process, its last line."""
    prompts = Prompts(args.vocab_size)
    engine.round([prompts.next(16)], 1)
    first_token = time.time() - float(os.environ["T0"])
    loads = [run(engine, load, prompts, args.seconds) for load in args.loads]
    print(json.dumps({"version": version, "settings": settings, "start_to_first_token_s": first_token,
                      "resident_peak_bytes": peak_resident_bytes(), "loads": loads}), flush=True)
