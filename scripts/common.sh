# Sourced by the scripts of this folder: strict mode, the repository as working directory, messages.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LLVM_VERSION=19
FRONTEND_VERSIONS=(0.8.1.post3 1.0.2 1.5.1 1.6.1)  # the frontends that the end-to-end tests start
DEMO_FRONTEND=1.6.1
MODELS=${DYN_MODELS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dynamo-trtllm/models}  # models that scripts make

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# usage FILE: the comment at the top of a script, as its help text.
usage() { sed -n '2,/^[^#]/p' "$1" | sed -n 's/^# \{0,1\}//p'; }

# Jobs for the build: one a core, but never more than one per 1.5 GiB of memory (a Beast file needs about 1 GiB).
build_jobs() {
  local cores memory_mib jobs
  cores=$(nproc)
  memory_mib=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
  jobs=$((memory_mib / 1536))
  ((jobs < cores)) || jobs=$cores
  ((jobs > 0)) || jobs=1
  echo "$jobs"
}
