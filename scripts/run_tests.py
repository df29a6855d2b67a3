"""The stages of scripts/test: run, timed, counted, and summed up in one closing line."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple
from xml.etree import ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "test-logs"
FUZZ_SECONDS = int(os.environ.get("DYN_FUZZ_SECONDS", "15"))
SOAK_MINUTES = float(os.environ.get("DYN_SOAK_MINUTES", "1"))
FRONTENDS = os.environ.get("DYN_FRONTEND_VERSIONS", "1.6.1").split()
# Test programs of what has threads of its own; the rest is pure and gains nothing from the thread sanitizer.
THREADED = ("base", "net", "runtime", "request_plane", "engine", "native", "worker")

# A test that never ends must not hang the run. Sanitizers cost up to ten times the normal time.
CTEST_TIMEOUT_S = 600


class Count(NamedTuple):
    passed: int
    failed: int

    def __add__(self, other: object) -> "Count":
        assert isinstance(other, Count)
        return Count(self.passed + other.passed, self.failed + other.failed)


class Stage(NamedTuple):
    name: str
    what: str
    quick: bool
    run: Callable[["Log"], Count]


class Log:
    """The log file of one stage, and commands whose output goes there."""

    def __init__(self, name: str):
        self.path = LOGS / f"{name}.log"
        self.file = open(self.path, "w", encoding="utf-8", errors="replace")

    def command(self, *argv: object, env: dict[str, str] | None = None) -> int:
        line = " ".join(str(word) for word in argv)
        self.file.write(f"$ {line}\n")
        self.file.flush()
        status = subprocess.run([str(word) for word in argv], cwd=ROOT, env={**os.environ, **(env or {})},
                                stdin=subprocess.DEVNULL, stdout=self.file, stderr=subprocess.STDOUT,
                                check=False).returncode
        if status:
            self.file.write(f"[exit status {status}]\n")
            self.file.flush()
        return status

    def check(self, *argv: object, env: dict[str, str] | None = None) -> Count:
        """A command that is one test."""
        return Count(0, 1) if self.command(*argv, env=env) else Count(1, 0)

    def text(self) -> str:
        self.file.flush()
        return self.path.read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int) -> str:
        return "\n".join(self.text().splitlines()[-lines:])


def build(log: Log, preset: str, *targets: str) -> bool:
    return log.command("scripts/build", preset, *targets, env={"DYN_CMAKE_ARGS": "-DDYN_WERROR=ON"}) == 0


def junit_count(path: pathlib.Path) -> Count:
    """Test cases of all programs; a program that failed without naming a case (a crash, a time-out) is one failure."""
    total = Count(0, 0)
    for program in ElementTree.parse(path).getroot().iter("testcase"):
        text = program.findtext("system-out") or ""
        passed = sum(int(n) for n in re.findall(r"\[  PASSED  \] (\d+) test", text))
        failed = sum(int(n) for n in re.findall(r"\[  FAILED  \] (\d+) test", text))
        good = program.get("status") == "run"
        total += Count(passed if passed or not good else 1, failed if failed or good else 1)
    return total


def sanitizer_environment() -> dict[str, str]:
    symbolizer = f"/usr/bin/llvm-symbolizer-{os.environ.get('DYN_LLVM_VERSION', '19')}"
    return {"ASAN_OPTIONS": f"detect_stack_use_after_return=1:quarantine_size_mb=8:external_symbolizer_path={symbolizer}",
            "UBSAN_OPTIONS": f"print_stacktrace=1:external_symbolizer_path={symbolizer}",
            "TSAN_OPTIONS": f"halt_on_error=0:second_deadlock_stack=1:external_symbolizer_path={symbolizer}:"
                            f"suppressions={ROOT / 'tests/tsan.supp'}"}


def ctest(log: Log, preset: str, rooms: tuple[str, ...] | None = None) -> Count:
    if log.command("scripts/models", "--all"):  # golden tests compute with them
        return Count(0, 1)
    folder = ROOT / "build" / preset
    argv = ["ctest", "--test-dir", folder, "-j", str(os.cpu_count() or 1), "--output-on-failure",
            "--timeout", str(CTEST_TIMEOUT_S), "--no-tests=error", "--output-junit", folder / "junit.xml",
            "--test-output-size-passed", "4000000", "--test-output-size-failed", "4000000",
            "-E", "^fuzz_"]  # the fuzz stage starts from the same seeds
    if rooms:
        argv += ["-R", "^(" + "|".join(rooms) + ")$"]
    (folder / "junit.xml").unlink(missing_ok=True)
    status = log.command(*argv, env=sanitizer_environment())
    count = junit_count(folder / "junit.xml")
    return count if count.failed or not status else count + Count(0, 1)


def stage_static(log: Log) -> Count:
    total = log.check("scripts/check-layers", "--self-test") + log.check("scripts/check-layers")
    return total + log.check("scripts/format", "--check")


def stage_release(log: Log) -> Count:
    return Count(1, 0) if build(log, "release") else Count(0, 1)


def stage_unit(log: Log) -> Count:
    return ctest(log, "release")


def stage_cuda(log: Log) -> Count:
    """The CUDA module, and the tests of its host side; results on a GPU are scripts/gpu-check's."""
    if not shutil.which("nvcc") and not pathlib.Path("/usr/local/cuda/bin/nvcc").exists():
        log.file.write("no nvcc: the CUDA module is not built here\n")
        return Count(1, 0)
    if not build(log, "release", "dynamo_exec_cuda", "native_cuda_test", "native_test"):
        return Count(0, 1)
    return Count(1, 0) + log.check("build/release/bin/native_test", "--gtest_brief=1",
                                   "--gtest_filter=CudaHost.*:CudaModule.*:StepPacker.*:GraphBuckets.*")


def stage_docs(log: Log) -> Count:
    return log.check("scripts/check-docs")


def stage_asan(log: Log) -> Count:
    """Unit tests, then the whole worker under callers that misbehave."""
    if not build(log, "asan"):
        return Count(0, 1)
    return ctest(log, "asan") + pytest(log, "tests/fault/test_peer.py", frontends=FRONTENDS[-1:],
                                       env={"DYN_WORKER": str(ROOT / "build/asan/bin/dynamo-trtllm"),
                                            **sanitizer_environment()})


def stage_fuzz(log: Log) -> Count:
    """Every fuzz target for a bounded time, starting from its seed corpus; two share the cores."""
    if not build(log, "asan"):
        return Count(0, 1)
    targets = sorted((ROOT / "build/asan/bin").glob("*_fuzz"))
    if not targets:
        log.file.write("no fuzz targets\n")
        return Count(0, 1)

    def fuzz(target: pathlib.Path) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
        name = target.name.removesuffix("_fuzz")
        scratch = ROOT / "build/fuzz-corpus" / name  # new inputs go here, not into the seeds
        crashes = ROOT / "build/fuzz-crashes"
        for folder in (scratch, crashes):
            folder.mkdir(parents=True, exist_ok=True)
        return target, subprocess.run(
            [target, scratch, ROOT / "fuzz/corpus" / name, f"-max_total_time={FUZZ_SECONDS}", "-timeout=10",
             "-rss_limit_mb=2048", "-malloc_limit_mb=512", "-print_final_stats=1", f"-artifact_prefix={crashes}/{name}-"],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    total = Count(0, 0)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for target, done in pool.map(fuzz, targets):
            output = done.stdout.decode(errors="replace").splitlines()
            log.file.write(f"$ {target.name}: exit status {done.returncode}\n")
            log.file.write("\n".join(output[-12 if done.returncode == 0 else -80:]) + "\n")
            total += Count(0, 1) if done.returncode else Count(1, 0)
    return total


def stage_tsan(log: Log) -> Count:
    if not build(log, "tsan", *(f"{program}_test" for program in THREADED)):
        return Count(0, 1)
    return ctest(log, "tsan", THREADED)


def pytest(log: Log, *arguments: object, frontends: list[str], env: dict[str, str] | None = None) -> Count:
    if log.command("tests/lab/setup.sh", *frontends) or log.command("scripts/models", "--all"):
        return Count(0, 1)
    status = log.command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments,
                         env={"DYN_FRONTEND_VERSIONS": " ".join(frontends), **(env or {})})
    closing = log.text().splitlines()[-3:]
    numbers = dict((word.rstrip("s"), int(n)) for n, word in re.findall(r"(\d+) (passed|failed|errors?)", "\n".join(closing)))
    failed = numbers.get("failed", 0) + numbers.get("error", 0)
    return Count(numbers.get("passed", 0), failed or (1 if status else 0))


def stage_e2e(log: Log) -> Count:
    return pytest(log, "tests/e2e", frontends=FRONTENDS)


def stage_e2e_quick(log: Log) -> Count:
    return pytest(log, "tests/e2e", frontends=FRONTENDS[-1:])


def stage_fault(log: Log) -> Count:
    return pytest(log, "tests/fault", frontends=FRONTENDS)


def stage_soak(log: Log) -> Count:
    return log.check(sys.executable, "tests/soak/soak.py", "--minutes", SOAK_MINUTES)


STAGES = [
    Stage("static", "arrows between rooms, formatting", True, stage_static),
    Stage("release", "release build of everything, warnings are errors", True, stage_release),
    Stage("unit", "unit and golden tests", True, stage_unit),
    Stage("cuda", "the CUDA module and its host side, where nvcc is", False, stage_cuda),
    Stage("docs", "generated documentation is current", True, stage_docs),
    Stage("e2e-quick", "official frontend, newest release only", True, stage_e2e_quick),
    Stage("e2e", "official frontends of all releases, mock and native engine", False, stage_e2e),
    Stage("fault", "killed processes, cut streams, wrong configurations", False, stage_fault),
    Stage("soak", f"{SOAK_MINUTES:g} minutes of streams, cancels and slow readers", False, stage_soak),
    Stage("asan", "unit tests and misbehaving callers with address and undefined-behaviour sanitizers", False, stage_asan),
    Stage("fuzz", f"every decoder, {FUZZ_SECONDS} s each", False, stage_fuzz),
    Stage("tsan", "threaded tests with the thread sanitizer", False, stage_tsan),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("stage", nargs="*", choices=[[], *(stage.name for stage in STAGES)])
    options = parser.parse_args()
    if options.list:
        for stage in STAGES:
            print(f"{stage.name:10} {stage.what}")
        return 0
    if options.stage:
        chosen = [stage for stage in STAGES if stage.name in options.stage]
    elif options.quick:
        chosen = [stage for stage in STAGES if stage.quick]
    else:
        chosen = [stage for stage in STAGES if stage.name != "e2e-quick"]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running command, too
    LOGS.mkdir(parents=True, exist_ok=True)
    total, rows = Count(0, 0), []
    for stage in chosen:
        print(f"== {stage.name}: {stage.what}", flush=True)
        log, start = Log(stage.name), time.monotonic()
        try:
            count = stage.run(log)
        except Exception as error:  # a defect of a stage must not hide the others' results
            log.file.write(f"{type(error).__name__}: {error}\n")
            count = Count(0, 1)
        seconds = time.monotonic() - start
        if count.failed:
            print(log.tail(100), flush=True)
        rows.append(f"{stage.name:10} {count.passed:6} {count.failed:6} {seconds:8.1f} s")
        print(f"   {count.passed} passed, {count.failed} failed in {seconds:.1f} s", flush=True)
        total += count

    print("\nstage      passed failed     time")
    print("\n".join(rows))
    print(f"\nlogs in {LOGS.relative_to(ROOT)}\n")
    print(f"{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
