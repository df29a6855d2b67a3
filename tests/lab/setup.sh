#!/usr/bin/env bash
# Installs official Dynamo frontends from PyPI, one virtual environment per version.
#
#   setup.sh VERSION...            e.g.  setup.sh 0.8.1.post3 1.0.2 1.5.1 1.6.1
#
# Environment:
#   DYNAMO_LAB_HOME    where the environments go  (default: ${XDG_CACHE_HOME:-~/.cache}/dynamo-lab)
#   DYNAMO_LAB_PYTHON  Python 3.10 ... 3.13 used to make them (default: python3)
#
# Only what `python -m dynamo.frontend` really imports is installed; the declared dependencies
# of the packages (transformers, kubernetes, ...) are left out on purpose. An environment that
# already works is left alone, so the script is cheap to call again.
set -euo pipefail

if [ $# -eq 0 ]; then
  sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//' >&2
  exit 2
fi

home=${DYNAMO_LAB_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/dynamo-lab}
python=${DYNAMO_LAB_PYTHON:-python3}
extras=(uvloop 'pydantic>=2.10.6,<2.13' typing_extensions packaging pyyaml msgspec)
mkdir -p "$home"

works() {  # works VENV
  [ -x "$1/bin/python" ] && (cd / && "$1/bin/python" -m dynamo.frontend --help >/dev/null 2>&1)
}

for version in "$@"; do
  venv=$home/venv-$version
  if works "$venv"; then
    echo "frontend $version: ready in $venv"
    continue
  fi
  # Two runs of this script may meet on one machine: the second one waits for the first.
  (
    flock 9
    works "$venv" && exit 0
    rm -rf "$venv"
    "$python" -m venv "$venv"
    pip=("$venv/bin/pip" --disable-pip-version-check -q install)
    "${pip[@]}" --no-deps "ai-dynamo==$version" "ai-dynamo-runtime==$version"
    "${pip[@]}" "${extras[@]}" 2>&1 | { grep -v -e 'dependency resolver' -e 'which is not installed' || true; }
    works "$venv" || {
      echo "frontend $version: installed, but it does not start:" >&2
      (cd / && "$venv/bin/python" -m dynamo.frontend --help) >&2 || true
      exit 1
    }
  ) 9>"$home/.lock-$version"
  echo "frontend $version: installed in $venv ($(du -sh "$venv" | cut -f1))"
done
