"""A worker in Python on the official `ai-dynamo-runtime`, for comparison with `dynamo-trtllm --engine mock`.

    python bench/python_worker.py --step-ms 10          # DYN_DISCOVERY_BACKEND, DYN_FILE_KV as for any worker

It serves `bench.backend.generate` and gives every running request one token a step, like a mock engine. The engine is a
task on the event loop that fills one queue a request: no engine thread, no detokenizer, no logits. That is less than a
worker around a real engine does, so its CPU time per token is a lower bound for a Python worker.

Token ids are microseconds of CLOCK_MONOTONIC modulo 2^31, which `dynamo-trtllm bench sink --stamps` turns into latency.
"""

import argparse
import asyncio
import signal
import time

import uvloop
from dynamo.runtime import DistributedRuntime

STAMP_MODULUS = 1 << 31


class Engine:
    """Every step puts one token into the queue of each running request."""

    def __init__(self, step_s: float):
        self.step_s = step_s
        self.queues: set[asyncio.Queue] = set()

    async def run(self):
        deadline = time.monotonic()
        while True:
            deadline += self.step_s
            await asyncio.sleep(max(0.0, deadline - time.monotonic()))
            token = time.monotonic_ns() // 1000 % STAMP_MODULUS
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
    engine = Engine(args.step_ms / 1e3)
    steps = asyncio.create_task(engine.run())
    try:
        await runtime.endpoint("bench.backend.generate").serve_endpoint(engine.generate, graceful_shutdown=False)
    finally:
        steps.cancel()


if __name__ == "__main__":
    uvloop.run(main())
