#!/usr/bin/env bash
# Makes a Python environment in which lerobot 0.4.4 reads and writes data sets, for the tests that ask lerobot itself:
#
#   scripts/lerobot_venv.sh FOLDER
#   SIMLOOP_LEROBOT_PYTHON=FOLDER/bin/python SIMLOOP_AV_PYTHON=FOLDER/bin/python cargo test -p simloop-trainers
#
# Every package is pinned and installed without its dependencies: lerobot's own list brings robots and simulators. torch
# needs its CUDA libraries to be imported even where there is no GPU (3 GB). Python 3.11 or 3.10.
set -euo pipefail

folder=${1:?usage: scripts/lerobot_venv.sh FOLDER}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3.11}

"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet --no-deps -r "$here/libtorch-cuda.txt"
"$folder/bin/pip" install --quiet --no-deps -r "$here/lerobot-pins.txt"
HF_HUB_OFFLINE=1 "$folder/bin/python" -c \
    'from lerobot.datasets.lerobot_dataset import LeRobotDataset; import av, h5py, torch; print("lerobot 0.4.4, torch", torch.__version__)'
