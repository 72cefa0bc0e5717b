"""Loads a data set with lerobot itself and prints every frame: python lerobot_loads.py FOLDER

One line per frame: index | task | state | action | sums of the cameras' pixels (top, wrist). Also pads a chunk, reads
the statistics and runs a DataLoader over all of it, since those touch parts that plain indexing does not.
"""

import sys
from pathlib import Path

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

root = Path(sys.argv[1])
data = LeRobotDataset(f"local/{root.name}", root=root)
print(f"lerobot loads {data.num_episodes} episodes, {data.num_frames} frames, {data.fps} Hz: {sorted(data.features)}")


def numbers(tensor):
    return " ".join(f"{v:.4f}" for v in tensor.flatten().tolist())


for i in range(len(data)):
    frame = data[i]
    assert int(frame["index"]) == i
    sums = [
        int((frame[f"observation.images.{camera}"] * 255).round().to(torch.int64).sum())
        for camera in ("top", "wrist")
    ]
    print(i, frame["task"], numbers(frame["observation.state"]), numbers(frame["action"]), f"{sums[0]} {sums[1]}", sep=" | ")

stats = data.meta.stats
actions = torch.stack([data[i]["action"] for i in range(len(data))]).double()
assert torch.allclose(torch.tensor(stats["action"]["mean"]), actions.mean(dim=0))
for q, name in ((0.01, "q01"), (0.5, "q50"), (0.99, "q99")):
    assert torch.allclose(torch.tensor(stats["action"][name]), torch.quantile(actions, q, dim=0)), name
assert tuple(stats["observation.images.top"]["mean"].shape) == (3, 1, 1)

chunks = LeRobotDataset(
    f"local/{root.name}", root=root, delta_timestamps={"action": [i / data.fps for i in range(4)]}
)
last = chunks[int(data.meta.episodes[0]["dataset_to_index"]) - 1]
assert last["action"].shape[0] == 4 and last["action_is_pad"].tolist() == [False, True, True, True]
batches = torch.utils.data.DataLoader(chunks, batch_size=3)
print("a loader gives", sum(len(batch["index"]) for batch in batches), "samples")
