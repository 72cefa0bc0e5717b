#!/usr/bin/env bash
# Makes the Python environment in which openpi's and OpenVLA's own clients talk to `serve`: .simloop/peers/serve, at once
# when it is there. `trainers/tests/serve_clients.rs` uses it.
#
#   scripts/serve_clients.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=.simloop/peers/serve
check='from openpi_client import websocket_client_policy; import json_numpy, requests'
if ! "$folder/bin/python" -c "$check" 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$folder"
    "$folder/bin/pip" install --quiet --no-deps -r scripts/serve-clients-pins.txt
    "$folder/bin/python" -c "$check"
fi
echo "openpi-client and json_numpy are in $folder"
