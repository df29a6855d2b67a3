"""Runs official Dynamo frontends (installed by setup.sh) against a worker under test.

    import dynamo_lab as lab

    with lab.Lab() as box:                             # temp directory, deleted if all went well
        store = box.file_store()
        model = box.tiny_model()
        box.worker(["build/release/bin/dynamo-trtllm", "--model", model,
                    "--served-model-name", "tiny", "--engine", "mock"], store)
        frontend = box.frontend("1.6.1", store)
        frontend.wait_model("tiny")
        reply = frontend.chat("tiny", "hello", max_tokens=8)   # one JSON document
        events = frontend.chat_stream("tiny", "hello")         # iterator of Server-Sent Events

Standard library only.  As a command: `python3 -m dynamo_lab --help`.
Environment: DYNAMO_LAB_HOME (see setup.sh), DYNAMO_LAB_KEEP=1 keeps the directory of a run.
"""

from .box import Lab
from .frontend import (Frontend, HttpError, SseEvent, chat_body, home, installed_versions, text_of,
                       version_key)
from .process import LabError, Process, clean_environment, free_port, on_free_port, wait_for
from .store import FileStore
from .tiny_model import TINY_VOCAB_SIZE, make_tiny_model

__all__ = ["FileStore", "Frontend", "HttpError", "Lab", "LabError", "Process", "SseEvent", "TINY_VOCAB_SIZE",
           "chat_body", "clean_environment", "free_port", "home", "installed_versions",
           "make_tiny_model", "on_free_port", "text_of", "version_key", "wait_for"]
