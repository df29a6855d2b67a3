"""The running part of scripts/demo: frontend, worker, one question, then serving until it is interrupted.

Both processes are ended by their pids however this program ends; if one of them dies, the other is ended too and
the last lines of the dead one's log are shown.
"""

from __future__ import annotations

import argparse
import pathlib
import signal
import socket
import sys
import time

import openai

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "lab"))
import dynamo_lab as lab  # noqa: E402

DEFAULT_PORT = 8000
DEFAULT_PROMPT = "Why is the sky blue? Answer in two or three sentences."


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", allow_abbrev=False)
    parser.add_argument("--worker", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--frontend", required=True, metavar="VERSION")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--max-tokens", type=int, default=128)
    return parser.parse_args()


def default_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
            return DEFAULT_PORT
        except OSError:
            return lab.free_port()


def ask(address: str, model: str, options: argparse.Namespace) -> None:
    """Streams one answer to standard output and its speed after it."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    print(f"> {options.prompt}\n", flush=True)
    start = time.perf_counter()
    first = usage = None
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": options.prompt}], stream=True,
        stream_options={"include_usage": True}, max_tokens=options.max_tokens, temperature=0)
    for chunk in stream:
        usage = chunk.usage or usage
        text = chunk.choices[0].delta.content if chunk.choices else None
        if text:
            first = first or time.perf_counter()
            print(text, end="", flush=True)
    end = time.perf_counter()
    print("\n")
    if first is None or usage is None or usage.completion_tokens == 0:
        raise lab.LabError("the answer is empty")
    decoded, seconds = usage.completion_tokens - 1, end - first
    speed = f", {decoded / seconds:.1f} tokens/s after the first" if decoded > 0 and seconds > 0 else ""
    print(f"{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} answer tokens: "
          f"first after {1000 * (first - start):.0f} ms{speed}", flush=True)


def serve(processes: list[lab.Process]) -> None:
    while True:
        for process in processes:
            process.check_alive()
        time.sleep(0.2)


def run(options: argparse.Namespace) -> None:
    name = options.model.name
    with lab.Lab() as box:
        store = box.file_store()
        frontend = box.frontend(options.frontend, store, port=options.port or default_port())
        worker = box.worker([str(options.worker), "--model", str(options.model), "--served-model-name", name], store,
                            # Nothing else is in this store, so nobody needs time to look for another worker.
                            env={"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0", "DYN_TCP_RPC_HOST": "127.0.0.1"},
                            name="worker")
        print(f"frontend {options.frontend} on {frontend.address}, loading {name} ...", flush=True)

        def listed() -> bool:
            worker.check_alive()
            frontend.process.check_alive()
            return name in frontend.models()
        lab.wait_for(f"model {name}", listed, timeout=120)

        try:
            ask(frontend.address, name, options)
        except openai.OpenAIError as error:
            worker.check_alive()
            frontend.process.check_alive()
            raise lab.LabError(f"the request failed: {error}\nworker's log:\n{worker.tail()}") from None
        if options.once:
            return
        print(f"\nserving on {frontend.address}/v1 (model {name}); try\n\n"
              f"  curl {frontend.address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
              f"    -d '{{\"model\": \"{name}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'\n\n"
              "Ctrl-C ends it.", flush=True)
        serve([worker, frontend.process])


def interrupted(number: int, _frame: object) -> None:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)  # a second Ctrl-C must not cut the orderly end short
    raise SystemExit(0 if number == signal.SIGINT else 128 + number)


def main() -> int:
    options = parse_arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        run(options)
    except (lab.LabError, OSError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
