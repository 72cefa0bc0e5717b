"""Plain LIBERO stepped in one Python process: CPU seconds of stepping alone, as one JSON line.

The same steps as `bench speed libero --tasks <task> --steps <steps>` takes with chunks of one: episode k starts from stored
initial state k mod 10 in the scene of that trial, settles for ten steps and ends on success or at LIBERO's usual limit;
decision d plays the action that the random policy draws for noise seed d. Construction, resets and settling are left out,
as they are there.

    libero_speed.py [--suite spatial] [--task 0] [--steps 200] [--cameras none|both] [--observables all|policy]

`all` leaves robosuite's observables as LIBERO sets them up: what a user of LIBERO pays. `policy` turns off those that no
policy reads, as the bridge does: what remains is what the bridge itself costs. Cameras are rendered at every step.

Run it with the Python that has LIBERO. Assets: --assets, else $LIBERO_ASSETS, else ../shared/data/libero_assets. Of
simloop it uses what makes LIBERO importable without prompts and network; environment, resets and steps are LIBERO's own.
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import time

# One thread for small matrices and for software rendering: what the worker sets too.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "envs", "python"))
from simloop_libero import bootstrap  # noqa: E402  (its path is found above)

CAMERAS = ["agentview", "robot0_eye_in_hand"]
SIZE = 256
PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
# openpi examples/libero/main.py
SETTLE_STEPS, SETTLE_ACTION = 10, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]
STEP_LIMITS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}
TRIALS = 10
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1


def chacha8_block(key):
    """The first 16 words of ChaCha with 8 rounds (RFC 8439's quarter round), counter and stream zero."""
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *key, 0, 0, 0, 0]
    x = list(start)

    def quarter(a, b, c, d):
        for into, by, turn, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[into] = (x[into] + x[by]) & MASK32
            word = x[turn] ^ x[into]
            x[turn] = ((word << bits) | (word >> (32 - bits))) & MASK32

    for _ in range(4):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return [(a + b) & MASK32 for a, b in zip(x, start)]


def random_action(seed):
    """What `bench`'s random policy draws in `[-1, 1]^7` for a noise seed, in the same single precision."""
    key = []
    for _ in range(8):  # rand_core 0.9 SeedableRng::seed_from_u64: a PCG32 fills the key
        seed = (seed * 6364136223846793005 + 11634580027462260723) & MASK64
        word, turn = (((seed >> 18) ^ seed) >> 27) & MASK32, seed >> 59
        key.append(((word >> turn) | (word << (32 - turn))) & MASK32)
    unit = np.array([word >> 8 for word in chacha8_block(key)[:7]], dtype=np.float32) / np.float32(1 << 24)
    return (np.float32(-1) + np.float32(2) * unit).astype(np.float64)


def scene_seed(suite, task, trial):
    """The seed of `bench`'s episode in run 0: SHA-256 down the path of names, every part with its length before it."""

    def digest(*parts):
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()

    node = digest(b"simloop-seed-v1", bytes(8))
    for name in (f"libero_{suite}", f"libero_{suite}/{task}"):
        node = digest(node, b"name", name.encode())
    return int.from_bytes(digest(node, b"index", trial.to_bytes(8, "little"))[:8], "little")


def find_assets(given):
    folder = given or os.environ.get("LIBERO_ASSETS") or os.path.join(ROOT, "..", "shared", "data", "libero_assets")
    if not os.path.isdir(folder):
        sys.exit(f"no assets of LIBERO in `{folder}`; give their folder with --assets or $LIBERO_ASSETS")
    return os.path.abspath(folder)


def build(suite, task, cameras):
    from libero.libero.benchmark import get_benchmark
    from libero.libero.envs.env_wrapper import ControlEnv

    benchmark = get_benchmark(f"libero_{suite}")()
    env = ControlEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(task),
        use_camera_obs=cameras,
        has_offscreen_renderer=cameras,
        camera_names=CAMERAS,
        camera_heights=SIZE,
        camera_widths=SIZE,
        ignore_done=True,  # the limit is counted here
    )
    return env, benchmark.get_task_init_states(task)


def begin(env, state, seed, cameras, observables):
    """Resets as LIBERO does and lets the scene settle."""
    env.env.object_property_initializers.clear()  # LIBERO's resets append to the list for ever
    np.random.seed([seed & MASK32, seed >> 32])
    env.reset()
    if observables == "policy":
        kept = PROPRIO + tuple(f"{name}_image" for name in CAMERAS if cameras)
        for name, observable in env.env._observables.items():
            observable._enabled = name in kept
    env.set_init_state(state)
    for _ in range(SETTLE_STEPS):
        env.step(SETTLE_ACTION)


def measure(env, states, args):
    cameras = args.cameras == "both"
    limit = STEP_LIMITS[args.suite]
    steps, episodes, wall, cpu, checksum = 0, 0, 0.0, 0.0, 0
    while steps < args.steps:
        trial = episodes % TRIALS
        begin(env, states[trial], scene_seed(args.suite, args.task, trial), cameras, args.observables)
        count = min(limit, args.steps - steps)
        actions = [random_action(steps + i + 1) for i in range(count)]
        episodes += 1
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        for action in actions:
            observation, _, success, _ = env.step(action)
            steps += 1
            if success:
                break
        cpu += time.process_time() - cpu_start
        wall += time.perf_counter() - wall_start
        if cameras:
            shape = observation["agentview_image"].shape
            if shape != (SIZE, SIZE, 3):
                sys.exit(f"a camera image of {shape}")
            checksum += int(observation["agentview_image"].sum())
    return {
        "engine": "libero",
        "suite": args.suite,
        "task": args.task,
        "steps": steps,
        "episodes": episodes,
        "cameras": args.cameras,
        "observables": args.observables,
        "wall_secs": wall,
        "cpu_secs": cpu,
        "steps_per_cpu_sec": steps / cpu,
        "last_hand_position_m": [float(x) for x in observation["robot0_eef_pos"]],
        "image_checksum": checksum,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=sorted(STEP_LIMITS), default="spatial")
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cameras", choices=("none", "both"), default="none")
    parser.add_argument("--observables", choices=("all", "policy"), default="all")
    parser.add_argument("--assets")
    parser.add_argument("--gl", default="auto", help="auto, egl or osmesa")
    args = parser.parse_args()
    out, sys.stdout = sys.stdout, sys.stderr  # LIBERO prints
    gl = bootstrap.import_libero(find_assets(args.assets), args.gl, args.cameras == "both", None)
    env, states = build(args.suite, args.task, args.cameras == "both")
    print(json.dumps({**measure(env, states, args), "gl": gl}), file=out, flush=True)
    os._exit(0)  # tearing an EGL context down at interpreter exit prints exceptions and can hang


main()
