"""The lab by hand: `python3 -m dynamo_lab frontend 1.6.1` (see --help)."""

from __future__ import annotations

import argparse
import pathlib
import signal
import sys

from . import FileStore, Lab, installed_versions, make_tiny_model


def run_frontend(options: argparse.Namespace) -> int:
    with Lab(options.dir, keep=options.keep) as box:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        store = FileStore(pathlib.Path(options.store_dir).resolve()) if options.store_dir else box.file_store()
        frontend = box.frontend(options.version, store, request_plane=options.request_plane,
                                router_mode=options.router_mode, extra_args=options.extra,
                                log_level=options.log_level)
        print(f"http://127.0.0.1:{frontend.port}")
        print("# environment for workers:")
        for key, value in store.environment().items():
            print(f"export {key}={value}")
        print(f"# log: {frontend.process.log}", flush=True)
        try:
            return frontend.process.popen.wait()
        except KeyboardInterrupt:
            return 0


def selftest(versions: list[str]) -> int:
    for version in versions or installed_versions():
        with Lab() as box:
            frontend = box.frontend(version, box.file_store())
            if frontend.models():
                raise SystemExit(f"{version}: lists {frontend.models()} without a worker")
            print(f"{version}: ok, stopped with status {frontend.stop()}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="dynamo_lab", description="Official Dynamo frontends for testing a worker.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("frontend", help="run a frontend until it is interrupted",
                              epilog="Arguments after -- go to the frontend unchanged.")
    run.add_argument("version")
    run.add_argument("--store-dir", help="directory of the file store (default: in the run's directory)")
    run.add_argument("--request-plane", default="tcp", choices=["tcp", "nats", "http"])
    run.add_argument("--router-mode")
    run.add_argument("--log-level", default="info")
    run.add_argument("--dir", help="directory of this run (default: a temporary one)")
    run.add_argument("--keep", action="store_true", help="keep the directory")
    tiny = commands.add_parser("tiny-model", help="write the tiny test model")
    tiny.add_argument("dir")
    commands.add_parser("versions", help="list installed frontends")
    check = commands.add_parser("selftest", help="start and stop frontends, no worker needed")
    check.add_argument("version", nargs="*", help="default: all installed ones")

    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    options.extra = arguments[cut + 1:]
    if options.command == "frontend":
        return run_frontend(options)
    if options.command == "tiny-model":
        print(make_tiny_model(options.dir))
    elif options.command == "selftest":
        return selftest(options.version)
    else:
        print("\n".join(installed_versions()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
