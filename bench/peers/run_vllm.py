#!/usr/bin/env python3
"""vLLM's CPU engine under the loads of `bench engine`: its LLM class with its defaults, tokens as its steps give them.

    T0=$(date +%s.%N) python3 run_vllm.py --model DIR --loads 8:128:64 --threads 2 --seconds 2 --vocab-size 49152

The engine runs in this process, so that its memory is this process's.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import measure  # noqa: E402


class Vllm:
    def __init__(self, args):
        from vllm import LLM, SamplingParams
        from vllm.sampling_params import RequestOutputKind
        longest = max(load.input + load.output for load in args.loads)
        self.params = lambda tokens: SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=tokens,
                                                    detokenize=False, output_kind=RequestOutputKind.DELTA)
        self.llm = LLM(model=args.model, dtype="bfloat16", skip_tokenizer_init=True,
                       max_model_len=-(-max(longest, 512) // 128) * 128 + 128,
                       max_num_seqs=max(load.sequences for load in args.loads))
        self.serial = 0

    def round(self, prompts: list[list[int]], output: int):
        engine = self.llm.llm_engine
        start = time.perf_counter()
        stamps: dict[str, list[float]] = {}
        counts: dict[str, int] = {}
        for prompt in prompts:
            self.serial += 1
            name = str(self.serial)
            stamps[name], counts[name] = [], 0
            engine.add_request(name, {"prompt_token_ids": prompt}, self.params(output))
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - start
            for one in outputs:
                # The engine may add a suffix to the name it was given.
                name = one.request_id if one.request_id in stamps else one.request_id.split("-")[0]
                new = len(one.outputs[0].token_ids)
                counts[name] += new
                if new:
                    stamps[name].append(now)
        took = time.perf_counter() - start
        if any(count != output for count in counts.values()):
            raise SystemExit(f"vLLM gave {sorted(counts.values())} tokens, {output} were asked for")
        return took, [measure.Request(times[0], times[-1]) for times in stamps.values()]


def main() -> None:
    args = measure.arguments(__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    engine = Vllm(args)
    import torch
    import vllm
    measure.report(engine, args, f"vllm-cpu {vllm.__version__}",
                   {"torch": torch.__version__, "kv_cache_gib": os.environ["VLLM_CPU_KVCACHE_SPACE"]})


if __name__ == "__main__":
    main()
