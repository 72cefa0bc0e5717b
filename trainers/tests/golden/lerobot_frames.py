"""What PyAV makes of LeRobot's videos: writes lerobot_frames.json, or all frames of one video as raw RGB.

    python lerobot_frames.py golden ../../../../shared/data/lerobot > lerobot_frames.json
    python lerobot_frames.py raw VIDEO.mp4 > frames.rgb24        (all frames, [N, H, W, 3] u8)

Made with PyAV 15.1.0 (libdav1d, libx264's files through FFmpeg's own H.264 decoder), `to_ndarray(format="rgb24")`.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np

GRID = 12  # pixels per side that are kept of a frame
FRAMES = 8  # frames that are kept of a video


def frames(path):
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def golden(root):
    out = {}
    for path in sorted(Path(root).glob("*/videos/*/chunk-000/file-000.mp4")):
        every = np.stack(list(frames(path)))
        n, height, width, _ = every.shape
        picked = [int(i) for i in np.linspace(0, n - 1, FRAMES).round()]
        rows = [int(i) for i in np.linspace(0, height - 1, GRID).round()]
        columns = [int(i) for i in np.linspace(0, width - 1, GRID).round()]
        out[path.relative_to(root).parts[0]] = {
            "frames": n,
            "means": [round(float(m), 4) for m in every.mean(axis=(1, 2, 3))],
            "picked": picked,
            "rows": rows,
            "columns": columns,
            "pixels": every[np.ix_(picked, rows, columns)].ravel().tolist(),
        }
    print(json.dumps(out, separators=(",", ":")))


if sys.argv[1] == "golden":
    golden(sys.argv[2])
else:
    for frame in frames(sys.argv[2]):
        sys.stdout.buffer.write(frame.tobytes())
