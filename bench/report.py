#!/usr/bin/env python3
"""Measures everything that docs/benchmarks.md shows, on a machine that does nothing else, and writes the tables.

    bench/report.py                     # about 15 minutes; tables to standard output and build/report/
    bench/report.py --update            # also into docs/benchmarks.md, between the markers of each section
    bench/report.py --only engine,serve

Sections: stream (bench stream), side_by_side, engine (bench engine), engines (llama.cpp and vLLM, those that
bench/engines.py --install has installed), serve (through the frontend). A section that fails is told at the end; the others stand.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "build/release/bin/dynamo-trtllm"
PAGE = ROOT / "docs/benchmarks.md"
MODEL = pathlib.Path(os.environ.get("DYN_MODELS_DIR") or
                     os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                                  "dynamo-trtllm", "models")) / "SmolLM2-135M-Instruct"

# Name: command, and whether its output is Markdown (else it is shown as it is).
SECTIONS: dict[str, tuple[list, bool]] = {
    "stream": ([BINARY, "bench", "stream", "--streams", "32,256,2048", "--rounds", "3", "--duration", "2"], False),
    "side_by_side": ([ROOT / "bench/side_by_side.py", "--streams", "128", "--rounds", "2", "--duration", "3"], False),
    "engine": ([BINARY, "bench", "engine", "--model", MODEL, "--seconds", "1", "--markdown"], True),
    "engines": ([ROOT / "bench/engines.py", "--rounds", "2", "--seconds", "1"], True),
    "serve": ([ROOT / "bench/serve.py", "--streams", "1,8"], True),
}


def run(name: str) -> str:
    command, is_markdown = SECTIONS[name]
    # Paths of this machine are not for the page.
    shown = " ".join(os.path.relpath(w, ROOT) if isinstance(w, pathlib.Path) and w.is_relative_to(ROOT)
                     else w.name if isinstance(w, pathlib.Path) else str(w) for w in command)
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"{shown} ended with status {done.returncode}")
    text = done.stdout.replace(str(MODEL), MODEL.name).strip()
    if not is_markdown:
        text = "\n".join(("    " + line).rstrip() for line in text.splitlines())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    return f"{datetime.date.today()}, commit {commit}; `{shown}`:\n\n{text}\n"


def put_into_page(name: str, text: str) -> None:
    page = PAGE.read_text()
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    if not pattern.search(page):
        raise RuntimeError(f"{PAGE.name} has no place for '{name}'")
    PAGE.write_text(pattern.sub(lambda found: found[1] + text + found[2], page))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--update", action="store_true", help="writes the tables into docs/benchmarks.md")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(SECTIONS)
    for name in names:
        if name not in SECTIONS:
            parser.error(f"unknown section: {name}")
    if not os.access(BINARY, os.X_OK):
        parser.error(f"no {BINARY}: run scripts/build")
    if os.getloadavg()[0] > 0.3:
        print(f"warning: load average {os.getloadavg()[0]:.1f}: the machine is busy", file=sys.stderr)
    out = ROOT / "build" / "report"
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        print(f"== {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            text = run(name)
            (out / f"{name}.md").write_text(text)
            if args.update:
                put_into_page(name, text)
            print(f"## {name}\n\n{text}", flush=True)
        except (RuntimeError, OSError) as error:
            failed.append(f"{name}: {error}")
        print(f"== {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
