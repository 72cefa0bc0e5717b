"""Sums over HDF5 samples, by h5py: writes hdf5_sums.json.

    python hdf5_sums.py ../../../../shared/data > hdf5_sums.json
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

root = Path(sys.argv[1])
out = {}


def total(array):
    return float(np.asarray(array, dtype=np.float64).sum())


with h5py.File(root / "robomimic_gzip_image.hdf5") as file:
    demos = {}
    for name in sorted(file["data"], key=lambda n: int(n.split("_")[1])):
        demo = file["data"][name]
        images = demo["obs/agentview_rgb"][:]
        demos[name] = {
            "rows": len(demo["actions"]),
            "actions": total(np.float32(demo["actions"])),
            "actions_from_1": total(np.float32(demo["actions"][1:])),
            "ee_states": total(np.float32(demo["obs/ee_states"])),
            "gripper_states": total(np.float32(demo["obs/gripper_states"])),
            "gripper_states_to_last": total(np.float32(demo["obs/gripper_states"][:-1])),
            "agentview": int(images.astype(np.uint64).sum()),
            "corner": images[3, 0, 1].tolist(),
            "turned_corner": images[3, ::-1, ::-1][0, 1].tolist(),
        }
    out["robomimic"] = {
        "demos": demos,
        "train": [n.decode() for n in file["mask/train"][:]],
        "language": json.loads(file["data"].attrs["problem_info"])["language_instruction"],
    }
wipe = root / "robosuite_wipe/robosuite/models/assets/demonstrations/wipe/panda/demo.hdf5"
with h5py.File(wipe) as file:
    demo = file["data/demo_1"]
    out["wipe"] = {"actions": total(np.float32(demo["actions"])), "states": total(np.float32(demo["states"]))}
with h5py.File(root / "d4rl_layout_door/door-demos-v1.hdf5") as file:
    ends = np.flatnonzero(file["terminals"][:] | file["timeouts"][:])
    lengths = np.diff(np.concatenate([[-1], ends])).tolist()
    out["door"] = {
        "lengths": lengths + ([len(file["actions"]) - 1 - int(ends[-1])] if ends[-1] + 1 < len(file["actions"]) else []),
        "actions": total(file["actions"]),
        "observations": total(file["observations"]),
        "second_first": np.float64(file["observations"][int(ends[0]) + 1]).tolist(),
    }
print(json.dumps(out, indent=1))
