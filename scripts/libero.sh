#!/usr/bin/env bash
# Creates the Python environment of LIBERO in .simloop/libero and says where its assets were found.
#
#   scripts/libero.sh                  the pinned stack (mujoco 3.2.3)
#   scripts/libero.sh --mujoco-3.8.1   a second environment with a MuJoCo that breaks a task, for the preflight's own test
#
# Environment: SIMLOOP_PYTHON    a CPython 3.11 (default: python3.11 on the PATH)
#              LIBERO_ASSETS     the folder with LIBERO's assets
# Safe to run again: nothing is installed when the pins have not changed.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
pins="$root/envs/python/requirements-libero.txt"
venv="$root/.simloop/libero"
layers=("$pins")
case "${1:-}" in
    "") ;;
    --mujoco-3.8.1)
        venv="$root/.simloop/libero-mujoco-3.8.1"
        layers+=("$root/envs/python/requirements-libero-mujoco-3.8.1.txt")
        ;;
    *)
        echo "usage: $0 [--mujoco-3.8.1]" >&2
        exit 2
        ;;
esac

python="${SIMLOOP_PYTHON:-}"
if [ -z "$python" ]; then
    python="$(command -v python3.11 || true)"
fi
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "LIBERO's pins need CPython 3.11, and ${python:-python3.11} is not one." >&2
    echo "Install it (Debian and Ubuntu: apt-get install python3.11 python3.11-venv) or set SIMLOOP_PYTHON." >&2
    exit 1
fi

stamp="$venv/simloop-pins.sha256"
wanted="$(cat "${layers[@]}" | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "Installing LIBERO's stack into $venv (about 1.2 GB)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    for layer in "${layers[@]}"; do
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$layer"
    done
    echo "$wanted" > "$stamp"
fi
"$venv/bin/python" - <<'PY'
from importlib.metadata import version
names = ("hf-libero", "robosuite", "mujoco", "numpy")
print("LIBERO stack: " + ", ".join(f"{name} {version(name)}" for name in names))
PY

package="$("$venv/bin/python" -c 'import importlib.util as u; print(list(u.find_spec("libero").submodule_search_locations)[0])')"
found=""
echo "Assets are looked for in this order (--assets DIR comes before all):"
look() {
    local label="$1" dir="$2"
    if [ -z "$dir" ]; then
        echo "  $label: not set"
    elif [ -f "$dir/scenes/libero_tabletop_base_style.xml" ]; then
        echo "  $label: $dir (found)"
        found="${found:-$dir}"
    else
        echo "  $label: $dir (nothing there)"
    fi
}
look '$LIBERO_ASSETS' "${LIBERO_ASSETS:-}"
look "the package's own folder" "$package/libero/assets"
look "beside the repository" "$(dirname "$root")/shared/data/libero_assets"
if [ -z "$found" ]; then
    echo "No assets yet. Where the Hugging Face hub can be reached: bench libero --download-assets"
    exit 0
fi

# The first control step ever compiles robosuite's kernels; do it once here instead of once per worker.
if [ ! -e "$venv/simloop-warm" ]; then
    if "$venv/bin/python" "$root/envs/python/warm_libero.py" "$found" > "$venv/simloop-warm.log" 2>&1; then
        touch "$venv/simloop-warm"
    else
        echo "LIBERO is installed but did not start; the end of $venv/simloop-warm.log:" >&2
        tail -n 5 "$venv/simloop-warm.log" >&2
        exit 1
    fi
fi
echo "LIBERO is ready. Next: bench libero --suite spatial --policy scripted --trials 5"
