#!/usr/bin/env python3
"""llama.cpp under the loads of `bench engine`, through the C interface of llama-cpp-python: batches of sequences, greedy.

    T0=$(date +%s.%N) python3 run_llamacpp.py --model M.gguf --loads 8:128:64 --threads 2 --seconds 2 --vocab-size 49152

Defaults of llama.cpp throughout (KV cache F16, flash attention as it chooses, micro-batches of 512).
"""

from __future__ import annotations

import ctypes
import time

import llama_cpp
from llama_cpp import llama_cpp as c

import measure

BATCH = 2048  # tokens of a llama_decode call, llama.cpp's default


class LlamaCpp:
    def __init__(self, args):
        # Its messages go nowhere; the callback must outlive the calls.
        self.log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        c.llama_log_set(ctypes.cast(self.log, c.llama_log_callback), None)
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = c.llama_model_load_from_file(args.model.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {args.model}")
        self.threads, self.context, self.shape = args.threads, None, None
        self.sampler = c.llama_sampler_init_greedy()
        self.batch = c.llama_batch_init(BATCH, 0, 1)

    def make_context(self, sequences: int, length: int) -> None:
        if self.shape is not None and sequences <= self.shape[0] and length <= self.shape[1]:
            return
        if self.context:
            c.llama_free(self.context)
        params = c.llama_context_default_params()
        params.n_ctx = sequences * (-(-length // 256) * 256)
        params.n_batch = BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self.threads
        self.context = c.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context")
        self.shape = (sequences, length)

    def add(self, token: int, position: int, sequence: int, logits: bool) -> None:
        batch, i = self.batch, self.batch.n_tokens
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, logits
        batch.n_tokens = i + 1

    def decode(self) -> None:
        if c.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")

    def round(self, prompts: list[list[int]], output: int):
        self.make_context(len(prompts), len(prompts[0]) + output)
        c.llama_memory_clear(c.llama_get_memory(self.context), False)
        start = time.perf_counter()
        first, tokens = [0.0] * len(prompts), [0] * len(prompts)
        self.batch.n_tokens, ends = 0, []

        def flush():
            self.decode()
            for sequence, at in ends:
                tokens[sequence] = c.llama_sampler_sample(self.sampler, self.context, at)
                first[sequence] = time.perf_counter() - start
            self.batch.n_tokens = 0
            ends.clear()

        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                last = position + 1 == len(prompt)
                self.add(token, position, sequence, last)
                if last:
                    ends.append((sequence, self.batch.n_tokens - 1))
                if self.batch.n_tokens == BATCH:
                    flush()
        if self.batch.n_tokens:
            flush()
        for step in range(1, output):
            self.batch.n_tokens = 0
            for sequence, prompt in enumerate(prompts):
                self.add(tokens[sequence], len(prompt) + step - 1, sequence, True)
            self.decode()
            for sequence in range(len(prompts)):
                tokens[sequence] = c.llama_sampler_sample(self.sampler, self.context, sequence)
        took = time.perf_counter() - start
        return took, [measure.Request(at, took) for at in first]


def main() -> None:
    args = measure.arguments(__doc__)
    measure.report(LlamaCpp(args), args, f"llama-cpp-python {llama_cpp.__version__}",
                   {"system": c.llama_print_system_info().decode()})


if __name__ == "__main__":
    main()
