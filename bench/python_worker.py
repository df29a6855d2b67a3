"""A worker in Python on the official `ai-dynamo-runtime`, for comparison with `dynamo-trtllm --engine mock`.

    python bench/python_worker.py --step-ms 10          # DYN_DISCOVERY_BACKEND, DYN_FILE_KV as for any worker

It serves `bench.backend.generate` and gives every running request one token a step, like a mock engine. As around a real
engine (and as in dynamo-trtllm) the steps happen on a thread of their own, which hands each step's tokens over to the
event loop at once; there a queue a request feeds its generator. Detokenizer, statistics and logging are left out, so the
CPU time per token is a lower bound for a Python worker.

Token ids are microseconds of CLOCK_MONOTONIC modulo 2^31, which `dynamo-trtllm bench sink --stamps` turns into latency.
"""

import argparse
import asyncio
import signal
import threading
import time

import uvloop
from dynamo.runtime import DistributedRuntime

STAMP_MODULUS = 1 << 31


class Engine(threading.Thread):
    """Every step puts one token into the queue of each running request."""

    def __init__(self, loop: asyncio.AbstractEventLoop, step_s: float):
        super().__init__(name="engine", daemon=True)
        self.loop, self.step_s = loop, step_s
        self.queues: set[asyncio.Queue] = set()     # of the loop's thread
        self.stopped = threading.Event()

    def run(self):
        deadline = time.monotonic()
        while not self.stopped.is_set():
            deadline = max(deadline + self.step_s, time.monotonic())     # a late step is not caught up with
            time.sleep(max(0.0, deadline - time.monotonic()))
            token = time.monotonic_ns() // 1000 % STAMP_MODULUS
            self.loop.call_soon_threadsafe(self.deliver, token)

    def deliver(self, token: int):
        for queue in self.queues:
            queue.put_nowait(token)

    async def generate(self, request, context):
        max_tokens = request["stop_conditions"]["max_tokens"]
        queue: asyncio.Queue = asyncio.Queue()
        self.queues.add(queue)
        try:
            for index in range(max_tokens):
                output = {"token_ids": [await queue.get()]}
                if index + 1 == max_tokens:
                    output["finish_reason"] = "length"
                yield output
        finally:
            self.queues.discard(queue)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-ms", type=float, default=10.0)
    args = parser.parse_args()

    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, "file", "tcp")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.shutdown)
    engine = Engine(loop, args.step_ms / 1e3)
    engine.start()
    try:
        await runtime.endpoint("bench.backend.generate").serve_endpoint(engine.generate, graceful_shutdown=False)
    finally:
        engine.stopped.set()


if __name__ == "__main__":
    uvloop.run(main())
