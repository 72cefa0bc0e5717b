#!/usr/bin/env bash
# Prints the interpreter that a comparison's Python side runs in: $PEER_PYTHON, or that of the virtual environment
# .simloop/peers/NAME, which is made from PyPI when it is missing, incomplete or of other versions.
#
#   python=$(benchmarks/peers/python.sh loader|pusht|torch)
#
# `torch` takes about 5 GB: PyPI's torch loads CUDA's libraries even where it computes on a CPU only.
set -euo pipefail
cd "$(dirname "$0")/../.."
pusht=(gym-pusht==0.1.8 gymnasium==1.4.0 pymunk==6.11.1 numpy==1.26.4)
case ${1:-} in
    loader) packages=(numpy==1.26.4 zarr==2.18.3 numcodecs==0.12.1 pillow==13.0.0 protobuf==7.36.2) ;;
    pusht) packages=("${pusht[@]}") ;;
    torch) packages=("${pusht[@]}" torch==2.11.0 stable-baselines3==2.9.2) ;;
    *)
        echo "give loader, pusht or torch" >&2
        exit 2
        ;;
esac
if [[ -n ${PEER_PYTHON:-} ]]; then
    echo "$PEER_PYTHON"
    exit
fi
folder=.simloop/peers/$1
if [[ "$(cat "$folder/packages" 2>/dev/null)" != "${packages[*]}" ]]; then
    echo "making $folder: ${packages[*]}" >&2
    rm -rf "$folder"
    python3 -m venv "$folder" >&2
    "$folder/bin/pip" install --quiet "${packages[@]}" >&2
    echo "${packages[*]}" >"$folder/packages"
fi
echo "$folder/bin/python"
