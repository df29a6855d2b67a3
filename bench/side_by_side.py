#!/usr/bin/env python3
"""CPU time per token of three workers that stream the same tokens to the same sink, side by side.

    bench/side_by_side.py                            # a table
    bench/side_by_side.py --streams 128 --json       # for machines

    dynamo-trtllm   this worker with its mock engine
    python worker   bench/python_worker.py on the official ai-dynamo-runtime
    rust mocker     python -m dynamo.mocker of the official ai-dynamo (its engine and its runtime are Rust)
    bare send       no worker: a process that only writes the same frames with send(2), which nobody can undercut

Each runs alone, registers in a file store and serves `bench sink`, which plays the frontend: N streams, one token a step.
The mocker has no step clock; trial runs find the speed at which it keeps the same pace. CPU time is the
kernel's, of the worker process only, over a window of steady streaming. Rounds alternate between the workers; medians
are reported, and ratios are medians of each round's own.

Needs a release build (scripts/build) and the official packages (tests/lab/setup.sh 1.6.1). Standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lab"))
import dynamo_lab as lab  # noqa: E402

MODEL = "bench"
PROMPT_TOKENS = 16
STAMP_MODULUS = 1 << 31


class Setup:
    """What every run of the comparison shares."""

    def __init__(self, args: argparse.Namespace, box: lab.Lab):
        self.args, self.box = args, box
        self.binary = pathlib.Path(args.binary).resolve()
        self.python = lab.home() / f"venv-{args.version}" / "bin" / "python"
        self.tokens = int((args.duration + 3.0) * 1e3 / args.step_ms)     # ramp and settling included
        self.model = box.tiny_model(context_length=2 * (self.tokens + PROMPT_TOKENS))

    def sink(self, store: lab.FileStore, worker: lab.Process, streams: int, *, tokens: int, duration: float,
             stamped: bool) -> dict:
        command = [self.binary, "bench", "sink", "--json", "--instance-dir", store.root, "--pid", worker.pid,
                   "--model", MODEL, "--streams", streams, "--tokens", tokens, "--prompt-tokens", PROMPT_TOKENS,
                   "--duration", duration, "--step-ms", self.args.step_ms] + (["--stamps"] if stamped else [])
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise lab.LabError(f"the sink failed with {worker.name}: {done.stderr or done.stdout}\n{worker.tail(10)}")
        return json.loads(done.stdout)


class Worker:
    """One kind of worker. `start` launches it for a number of streams; `stamped`: its token ids are time stamps."""

    name = ""
    stamped = True

    def __init__(self, setup: Setup):
        self.setup, self.runs = setup, 0

    def argv(self, streams: int) -> list:
        raise NotImplementedError

    def start(self, streams: int) -> tuple[lab.FileStore, lab.Process]:
        self.runs += 1
        store = self.setup.box.file_store(f"{type(self).__name__}-{self.runs}")
        return store, self.setup.box.worker(self.argv(streams), store, env={"DYN_EVENT_PLANE": "zmq", "DYN_LOG": "warn"})

    def run(self, streams: int) -> dict:
        store, process = self.start(streams)
        try:
            return self.setup.sink(store, process, streams, tokens=self.setup.tokens, stamped=self.stamped,
                                   duration=self.setup.args.duration)
        finally:
            process.stop()


class DynamoTrtllm(Worker):
    name = "dynamo-trtllm"

    def argv(self, streams: int) -> list:
        context = self.setup.tokens + 2 * PROMPT_TOKENS
        return [self.setup.binary, "--engine", "mock", "--model", self.setup.model, "--served-model-name", MODEL,
                "--mock-step-ms", self.setup.args.step_ms, "--mock-tokens", "timestamp",
                "--mock-vocab-size", STAMP_MODULUS, "--max-batch-size", max(streams, 8), "--max-seq-len", context,
                "--mock-kv-blocks", streams * (context // 32 + 2)]


class PythonWorker(Worker):
    name = "python worker"

    def argv(self, streams: int) -> list:
        return [self.setup.python, ROOT / "bench" / "python_worker.py", "--step-ms", self.setup.args.step_ms]


class RustMocker(Worker):
    name = "rust mocker"
    stamped = False

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.speed: dict[int, float] = {}

    def argv(self, streams: int) -> list:
        blocks = streams * ((self.setup.tokens + PROMPT_TOKENS) // 64 + 2)
        return [self.setup.python, "-m", "dynamo.mocker", "--model-path", self.setup.model, "--model-name", MODEL,
                "--discovery-backend", "file", "--endpoint", "dyn://bench.mocker.generate", "--max-num-seqs",
                max(streams, 8), "--num-gpu-blocks-override", blocks, "--no-enable-prefix-caching",
                "--decode-speedup-ratio", self.speed.get(streams, 1.0)]

    def run(self, streams: int) -> dict:
        if streams not in self.speed:
            self.calibrate(streams)
        return super().run(streams)

    def calibrate(self, streams: int) -> None:
        """The time of a step is a constant and a part that the ratio divides, so that one trial is not enough."""
        self.speed[streams] = 1.0
        for _ in range(4):
            store, process = self.start(streams)
            try:
                trial = self.setup.sink(store, process, streams, tokens=600, duration=2.0, stamped=False)
            finally:
                process.stop()
            too_slow = 1e3 * streams / trial["tokens_per_s"] / self.setup.args.step_ms
            if abs(too_slow - 1) < 0.05:
                return
            self.speed[streams] = round(self.speed[streams] * too_slow, 3)


class BareSend(Worker):
    name = "bare send"

    def run(self, streams: int) -> dict:
        command = [self.setup.binary, "bench", "stream", "--json", "--baseline", "--no-pin", "--rounds", "1",
                   "--streams", streams, "--step-ms", self.setup.args.step_ms,
                   "--duration", self.setup.args.duration]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise lab.LabError(f"the bare send loop failed: {done.stderr}")
        report = json.loads(done.stdout)
        return {**report["results"][0]["bare_send"], "machine": report["machine"]}


WORKERS = {"dynamo-trtllm": DynamoTrtllm, "python": PythonWorker, "mocker": RustMocker, "bare": BareSend}


def measure(setup: Setup, kinds: list[str], stream_counts: list[int], rounds: int) -> list[dict]:
    workers = {kind: WORKERS[kind](setup) for kind in kinds}
    results = []
    for streams in stream_counts:
        runs: dict[str, list[dict]] = {kind: [] for kind in kinds}
        for number in range(rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                run = workers[kind].run(streams)
                runs[kind].append(run)
                print(f"{streams} streams  {workers[kind].name:14} {run['cpu_us_per_token']:7.2f} us CPU per token",
                      file=sys.stderr)
        for kind in kinds:
            results.append(summary(workers[kind].name, streams, runs[kind], runs.get("dynamo-trtllm", [])))
    return results


def summary(name: str, streams: int, runs: list[dict], ours: list[dict]) -> dict:
    def median(*keys: str) -> float:
        values = []
        for run in runs:
            value = run
            for key in keys:
                value = value[key]
            values.append(value)
        return statistics.median(values)

    ratios = [other["cpu_us_per_token"] / own["cpu_us_per_token"] for other, own in zip(runs, ours)]
    return {
        "worker": name, "streams": streams, "rounds": len(runs),
        "cpu_us_per_token": median("cpu_us_per_token"),
        "cpu_us_per_token_of_rounds": [run["cpu_us_per_token"] for run in runs],
        "times_dynamo_trtllm": statistics.median(ratios) if ratios else None,
        "tokens_per_s": median("tokens_per_s"),
        "context_switches_per_1000_tokens": median("context_switches_per_1000_tokens"),
        "bytes_per_token": median("bytes_per_token"),
        "latency_p50_us": median("latency_us", "p50"), "latency_p99_us": median("latency_us", "p99"),
        "others_cpus": median("others_cpus"), "machine": runs[0]["machine"],
    }


def table(report: dict) -> str:
    lines = [f"{report['machine']}; commit {report['commit']}; {report['date']}; official packages {report['version']}", "",
             f"{'streams':>7}  {'worker':14} {'CPU us':>8} {'times':>7}  {'tokens/s':>9} {'switches':>9} {'bytes':>6}"
             f"  {'p50 us':>8} {'p99 us':>8} {'others':>7}"]
    for row in report["results"]:
        times = f"{row['times_dynamo_trtllm']:.1f}" if row["times_dynamo_trtllm"] else "-"
        latency = [f"{row[key]:.0f}" if row[key] else "-" for key in ("latency_p50_us", "latency_p99_us")]
        lines.append(f"{row['streams']:>7}  {row['worker']:14} {row['cpu_us_per_token']:>8.2f} {times:>7}"
                     f"  {row['tokens_per_s']:>9.0f} {row['context_switches_per_1000_tokens']:>9.1f}"
                     f" {row['bytes_per_token']:>6.0f}  {latency[0]:>8} {latency[1]:>8} {row['others_cpus']:>7.2f}")
    lines += ["", "CPU us: user + system time of the worker process per token. times: of dynamo-trtllm's. switches: context",
              "switches per 1,000 tokens. p50, p99: hand-out to the sink, where token ids are time stamps. others: CPUs",
              "that other processes kept busy meanwhile."]
    return "\n".join(lines)


def check(results: list[dict], least: dict[str, float]) -> list[str]:
    return [f"{row['streams']} streams: the {row['worker']} needs {row['times_dynamo_trtllm']:.1f} times the CPU, "
            f"less than {least[row['worker']]:g}" for row in results
            if row["times_dynamo_trtllm"] and row["times_dynamo_trtllm"] < least.get(row["worker"], 0)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="128,32", help="stream counts, comma separated [%(default)s]")
    parser.add_argument("--step-ms", type=float, default=10.0, help="one token a stream and step [%(default)s]")
    parser.add_argument("--duration", type=float, default=5.0, help="measured window, seconds [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--workers", default=",".join(WORKERS), help="which of %(default)s")
    parser.add_argument("--binary", default=ROOT / "build" / "release" / "bin" / "dynamo-trtllm", help="[%(default)s]")
    parser.add_argument("--version", default="1.6.1", help="of the official packages [%(default)s]")
    parser.add_argument("--min-python", type=float, default=0, help="exit status 1 below this ratio [off]")
    parser.add_argument("--min-mocker", type=float, default=0, help="exit status 1 below this ratio [off]")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    args = parser.parse_args()

    kinds = args.workers.split(",")
    if unknown := [kind for kind in kinds if kind not in WORKERS]:
        parser.error(f"--workers: {', '.join(unknown)} is none of {', '.join(WORKERS)}")
    stream_counts = [int(count) for count in args.streams.split(",")]
    if not pathlib.Path(args.binary).exists():
        parser.error(f"{args.binary} is missing: run scripts/build release, or name a build with --binary")
    python = lab.home() / f"venv-{args.version}" / "bin" / "python"
    if set(kinds) - {"dynamo-trtllm"} and not python.exists():
        parser.error(f"{python} is missing: run tests/lab/setup.sh {args.version}")

    with lab.Lab() as box:
        results = measure(Setup(args, box), kinds, stream_counts, args.rounds)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    report = {"date": datetime.date.today().isoformat(), "commit": commit.stdout.strip() or "unknown",
              "version": args.version, "machine": results[0]["machine"], "step_ms": args.step_ms, "results": results}
    print(json.dumps(report, indent=2) if args.json else table(report))
    failures = check(results, {PythonWorker.name: args.min_python, RustMocker.name: args.min_mocker})
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except lab.LabError as error:
        sys.exit(f"side_by_side: {error}")
