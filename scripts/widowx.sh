#!/usr/bin/env bash
# Creates the Python environment of the WidowX stand-in server, for tests, in .simloop/widowx (70 MB).
#
# Environment: SIMLOOP_PYTHON    a CPython 3.11 (default: python3.11 on the PATH)
# Safe to run again: nothing is installed when the pins have not changed. A real robot needs none of this.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
pins="$root/envs/python/requirements-widowx.txt"
venv="$root/.simloop/widowx"

python="${SIMLOOP_PYTHON:-$(command -v python3.11 || true)}"
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "The stand-in's pins need CPython 3.11, and ${python:-python3.11} is not one." >&2
    echo "Install it (Debian and Ubuntu: apt-get install python3.11 python3.11-venv) or set SIMLOOP_PYTHON." >&2
    exit 1
fi

stamp="$venv/simloop-pins.sha256"
wanted="$(sha256sum < "$pins" | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    mkdir -p "$root/.simloop"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$pins"
    echo "$wanted" > "$stamp"
fi
"$venv/bin/python" -c 'import lz4, numpy, zmq; print(f"WidowX stand-in: numpy {numpy.__version__}, pyzmq {zmq.__version__}, lz4 {lz4.__version__}")'
