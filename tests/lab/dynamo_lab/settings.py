"""What a run of the tests uses: releases of the frontend, where models are."""

from __future__ import annotations

import os
import pathlib

from .frontend import installed_versions

# $DYN_FRONTEND_VERSIONS (blank separated), else every installed one, oldest first.
VERSIONS = (os.environ.get("DYN_FRONTEND_VERSIONS") or " ".join(installed_versions())).split()

MODELS = pathlib.Path(os.environ.get("DYN_MODELS_DIR")
                      or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                                      "dynamo-trtllm", "models"))
