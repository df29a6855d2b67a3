#!/usr/bin/env python3
"""What serving costs: tokens/s of clients through an official frontend, beside the same load inside the engine.

    bench/serve.py                                   # SmolLM2 on the native engine, 8 streams
    bench/serve.py --streams 1,8,32 --min-ratio 0.9 --json

`dynamo-trtllm bench serve` sends completions (token ids) over HTTP to a frontend, which hands them to a worker; `bench
engine --measure load` gives the same number of requests of the same lengths to the same engine in its own process.
Rounds alternate; medians of output tokens/s are reported, and the median of the rounds' own ratios. Everything runs on
this machine, so frontend, worker and clients share its CPUs.

Needs a release build (scripts/build), scripts/models and a frontend (tests/lab/setup.sh 1.6.1). Standard library only.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lab"))
import dynamo_lab as lab  # noqa: E402
from dynamo_lab.settings import MODELS  # noqa: E402

NAME = "bench"
WAVES = 4  # requests of each stream in a round


def bench(binary: pathlib.Path, *words: object) -> dict:
    command = [str(binary), "bench", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}{done.stdout}")
    return json.loads(done.stdout)


def measure(args: argparse.Namespace) -> dict:
    vocab_size = json.loads((args.model / "config.json").read_text())["vocab_size"]
    rows = []
    with lab.Lab() as box:
        store = box.file_store()
        box.worker([args.binary, "--model", args.model, "--engine", "native", "--served-model-name", NAME,
                    "--max-batch-size", max(64, *args.streams), "--max-seq-len", args.input_len + args.output_len + 32],
                   store, env={"DYN_LOG": "warn"})
        frontend = box.frontend(args.version, store)
        frontend.wait_model(NAME, 120)
        for streams in args.streams:
            serve, engine = [], []
            for number in range(args.rounds):
                def through_frontend() -> None:
                    serve.append(bench(args.binary, "serve", "--url", frontend.address, "--model", NAME,
                                       "--endpoint-type", "completions", "--vocab-size", vocab_size, "--input-len",
                                       args.input_len, "--output-len", args.output_len, "--max-concurrency", streams,
                                       "--num-prompts", WAVES * streams, "--seed", number))

                def inside() -> None:
                    engine.append(bench(args.binary, "engine", "--model", args.model, "--measure", "load", "--loads",
                                        f"{streams}:{args.input_len}:{args.output_len}", "--seconds",
                                        serve[-1]["duration"] if serve else 3)["engine"]["loads"][0])
                for part in (through_frontend, inside) if number % 2 == 0 else (inside, through_frontend):
                    part()
                print(f"{streams} streams: {serve[-1]['output_throughput']:.1f} through the frontend, "
                      f"{engine[-1]['output_throughput']:.1f} inside", file=sys.stderr, flush=True)
            middle = statistics.median
            rows.append({"streams": streams,
                         "serve": middle(run["output_throughput"] for run in serve),
                         "engine": middle(run["output_throughput"] for run in engine),
                         "ratio": middle(s["output_throughput"] / e["output_throughput"]
                                         for s, e in zip(serve, engine)),
                         "serve_p50_ttft_ms": middle(run["p50_ttft_ms"] for run in serve),
                         "serve_p50_tpot_ms": middle(run["p50_tpot_ms"] for run in serve),
                         "engine_p50_ttft_ms": middle(run["ttft_ms"]["p50"] for run in engine),
                         "engine_p50_tpot_ms": middle(run["tpot_ms"]["p50"] for run in engine)})
            machine = serve[-1]["machine"]
    return {"machine": machine, "frontend": args.version, "model": args.model.name, "input_len": args.input_len,
            "output_len": args.output_len, "rounds": args.rounds, "rows": rows}


def markdown(report: dict) -> str:
    lines = [f"{report['machine']}; {report['model']}, frontend {report['frontend']}, prompts of {report['input_len']} "
             f"tokens, answers of {report['output_len']}; medians of {report['rounds']} rounds.", "",
             "| streams | output tokens/s served | inside the engine | ratio | TTFT p50 ms served, inside | "
             "TPOT p50 ms served, inside |", "|---|---|---|---|---|---|"]
    for row in report["rows"]:
        lines.append(f"| {row['streams']} | {row['serve']:.1f} | {row['engine']:.1f} | {row['ratio']:.2f} | "
                     f"{row['serve_p50_ttft_ms']:.1f}, {row['engine_p50_ttft_ms']:.1f} | "
                     f"{row['serve_p50_tpot_ms']:.2f}, {row['engine_p50_tpot_ms']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=lambda text: [int(word) for word in text.split(",")], default=[8])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=pathlib.Path, default=MODELS / "SmolLM2-135M-Instruct")
    parser.add_argument("--version", default="1.6.1", help="of the frontend")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/bin/dynamo-trtllm")
    parser.add_argument("--min-ratio", type=float, default=0.0, help="exit status 1 when a ratio is below")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.binary, args.model = args.binary.resolve(), args.model.resolve()
    report = measure(args)
    print(json.dumps(report, indent=2) if args.json else markdown(report))
    low = [row["streams"] for row in report["rows"] if row["ratio"] < args.min_ratio]
    for streams in low:
        print(f"{streams} streams: the ratio is below {args.min_ratio}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
