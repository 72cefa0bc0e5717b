"""Sums over the episodes of LeRobot samples, by pyarrow: writes lerobot_numbers.json.

    python lerobot_numbers.py ../../../../shared/data/lerobot > lerobot_numbers.json
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

out = {}
for path in sorted(Path(sys.argv[1]).glob("*/data/chunk-000/file-000.parquet")):
    table = pq.read_table(path).to_pandas()
    episodes = []
    for _, rows in table.groupby("episode_index"):
        entry = {"len": len(rows)}
        for key in ("observation.state", "action"):
            values = np.stack(rows[key].to_list()).astype(np.float64)
            entry[key] = {"sum": values.sum(axis=0).tolist(), "last": values[-1].tolist()}
        if "observation.image" in rows:
            pixels = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in rows["observation.image"]]
            entry["pixel_sum"] = int(np.stack(pixels).astype(np.uint64).sum())
        episodes.append(entry)
    out[path.relative_to(sys.argv[1]).parts[0]] = episodes
print(json.dumps(out, indent=1))
