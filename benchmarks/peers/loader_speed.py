"""Speed of Python's usual readers: samples per CPU-second, as JSON.

The same work as `cargo run --release -p simloop-trainers --example loader_speed`:

* bridge: BridgeData V2 in RLDS from closed files to batches of 64, again for every epoch. Records are read with struct
  (their checksums are not even checked), parsed by protobuf's C parser, standardised in numpy as OpenVLA's `bridge_orig`,
  shuffled, two JPEGs per sample decoded by Pillow (libjpeg-turbo).
* pusht_open: the first 40 episodes of PushT's zarr into numpy arrays, as diffusion_policy's ReplayBuffer.copy_from_path.
* pusht_images: windows as diffusion_policy's SequenceSampler cuts them (horizon 16, the first 2 frames only,
  `key_first_k`), frames moved to channels first and divided by 255 as PushTImageDataset does, batches of 64 stacked.

    python loader_speed.py BRIDGE_FOLDER PUSHT_ZARR [SECONDS]
"""

import io
import json
import struct
import sys
import time

import numpy as np
import zarr
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

BATCH = 64
PUSHT_EPISODES = 40


def example_class():
    """tf.train.Example without TensorFlow."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = [("BytesList", 12), ("FloatList", 2), ("Int64List", 3)]
    for name, kind in kinds:
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=3)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(kinds, 1):
        feature.field.add(
            name=name.lower(), number=number, type=11, label=1, type_name=f".t.{name}", oneof_index=0
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".t.Feature")
    features.field.add(name="feature", number=1, type=11, label=3, type_name=".t.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=11, label=1, type_name=".t.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


Example = example_class()


def records(path):
    with open(path, "rb") as file:
        while head := file.read(12):
            (length,) = struct.unpack("<Q", head[:8])
            yield file.read(length)
            file.read(4)


def binarize(gripper):
    out, carry = gripper.copy(), gripper[-1]
    for i in range(len(out) - 1, -1, -1):
        carry = 1.0 if out[i] > 0.95 else 0.0 if out[i] < 0.05 else carry
        out[i] = carry
    return out


def bridge_epoch(folder, rng):
    samples = []
    for record in records(f"{folder}/bridge_dataset-train.tfrecord-00000-of-00001"):
        example = Example()
        example.ParseFromString(record)
        feature = example.features.feature
        if not feature["steps/language_instruction"].byteslist.value[0]:
            continue
        action = np.array(feature["steps/action"].floatlist.value, np.float32).reshape(-1, 7)[1:]
        state = np.array(feature["steps/observation/state"].floatlist.value, np.float32).reshape(-1, 7)[1:]
        gripper = binarize(action[:, 6])
        motion = state[1:, :6] - state[:-1, :6]
        action = np.concatenate([motion, gripper[:-1, None]], axis=1)
        proprio = np.concatenate([state[:-1, :6], np.zeros((len(motion), 1), np.float32), state[:-1, 6:]], axis=1)
        images = [feature[f"steps/observation/image_{c}"].byteslist.value[1:-1] for c in (0, 1)]
        for t in range(len(motion)):
            samples.append((images[0][t], images[1][t], proprio[t], action[t]))
    order = rng.permutation(len(samples))
    for start in range(0, len(order), BATCH):
        chosen = [samples[i] for i in order[start : start + BATCH]]
        frames = [
            np.stack([np.asarray(Image.open(io.BytesIO(s[c])).convert("RGB")) for s in chosen]) for c in (0, 1)
        ]
        yield frames, np.stack([s[2] for s in chosen]), np.stack([s[3] for s in chosen])


def bridge(folder, seconds):
    rng = np.random.default_rng(0)
    samples, epochs, total = 0, 0, 0.0
    start = time.process_time()
    while time.process_time() - start < seconds:
        for frames, proprio, action in bridge_epoch(folder, rng):
            samples += len(action)
            total += sum(float(f.mean()) * len(action) for f in frames) + float(action.sum())
        epochs += 1
    return rate(samples, time.process_time() - start, total / epochs)


def pusht_open(path):
    group = zarr.open(path, "r")
    ends = group["meta/episode_ends"][:PUSHT_EPISODES]
    n = ends[-1]
    data = {key: group[f"data/{key}"][:n] for key in ("img", "state", "action")}
    return data, ends


def indices(ends, horizon=16, pad_before=1, pad_after=7):
    """diffusion_policy `create_indices`: buffer start and end, sample start and end."""
    out, first = [], 0
    for end in ends:
        length = end - first
        for start in range(-pad_before, length - horizon + pad_after + 1):
            a, b = max(start, 0) + first, min(start + horizon, length) + first
            out.append((a, b, a - (start + first), horizon - (start + horizon + first - b)))
        first = end
    return np.array(out)


def window(array, a, b, s, e, horizon=16, first_k=None):
    """diffusion_policy `SequenceSampler.sample_sequence` for one key; with `first_k` only the first rows are made."""
    if first_k is not None:
        b, e, horizon = min(b, a + first_k), min(e, first_k), first_k
    sample = array[a:b]
    if s == 0 and e == horizon:
        return sample
    data = np.zeros((horizon,) + array.shape[1:], dtype=array.dtype)
    data[:s] = sample[0]
    data[s:e] = sample[: e - s]
    data[e:] = sample[-1]
    return data


def pusht_images(data, ends, seconds):
    rng = np.random.default_rng(0)
    places = indices(ends)
    samples, total, epoch = 0, 0.0, None
    start = time.process_time()
    while epoch is None or time.process_time() - start < seconds:
        order = rng.permutation(len(places))
        for begin in range(0, len(order), BATCH):
            images, states, actions = [], [], []
            for i in order[begin : begin + BATCH]:
                place = places[i]
                image = window(data["img"], *place, first_k=2)
                images.append(np.moveaxis(image, -1, 1) / 255)
                states.append(window(data["state"], *place, first_k=2)[:, :2])
                actions.append(window(data["action"], *place))
            images, states, actions = np.stack(images), np.stack(states), np.stack(actions)
            samples += len(actions)
            if epoch is None:
                total += float(actions.sum(dtype=np.float64)) + float(states.sum(dtype=np.float64))
            elif time.process_time() - start >= seconds:
                break
        epoch = total if epoch is None else epoch
    return rate(samples, time.process_time() - start, epoch)


def rate(samples, seconds, checksum):
    return {"samples_per_cpu_second": samples / seconds, "cpu_seconds": seconds, "checksum": checksum}


def main():
    bridge_folder, pusht_path = sys.argv[1:3]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 3.0
    results = {"bridge": bridge(bridge_folder, seconds)}
    start = time.process_time()
    data, ends = pusht_open(pusht_path)
    results["pusht_open"] = rate(int(ends[-1]), time.process_time() - start, 0.0)
    results["pusht_images"] = pusht_images(data, ends, seconds)
    print(json.dumps({"engine": "python", "results": results}))


if __name__ == "__main__":
    main()
