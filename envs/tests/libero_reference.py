"""LIBERO as its users run it: OffScreenRenderEnv, hard resets, cameras always on. Prints one JSON line per question.

usage: libero_reference.py <worker sources> <assets> <command>
    states <task> ...       after seed, reset, set_init_state, ten settle steps and twenty actions: the state's bits
    images <task>           the same with both cameras, SHA-256 after the settle steps and after every eighth action
    sequence <seed> <task>  env.seed once, then resets in order: every body's position in the model
"""

import hashlib
import json
import sys

import numpy as np

sys.path.insert(0, sys.argv[1])
from simloop_libero import bootstrap  # noqa: E402  (its path comes from the command line)

ASSETS, COMMAND, ARGS = sys.argv[2], sys.argv[3], sys.argv[4:]
CAMERAS = ("agentview", "robot0_eye_in_hand")
SETTLE = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]
SEED, INIT_STATE, SIZE, TRIALS = 77, 2, 64, 4


def actions(count, seed):
    """The generator of tests/libero_common, in the same single-precision arithmetic."""
    state = (seed * 2654435761 + 12345) % 2**32
    rows = []
    for _ in range(count):
        row = []
        for _ in range(7):
            state = (state * 1664525 + 1013904223) % 2**32
            row.append(np.float32(state >> 8) / np.float32(1 << 23) - np.float32(1))
        row[2] -= np.float32(0.3)
        row[3:6] = [value * np.float32(0.3) for value in row[3:6]]
        rows.append(np.array(row, dtype=np.float32).astype(np.float64))
    return rows


def build(task, **kwargs):
    from libero.libero import get_libero_path
    from libero.libero.benchmark import get_benchmark
    from libero.libero.envs.env_wrapper import ControlEnv

    suite, index = task.split("/")
    benchmark = get_benchmark(suite)()
    env = ControlEnv(bddl_file_name=benchmark.get_task_bddl_file_path(int(index)), **kwargs)
    return env, benchmark.get_task_init_states(int(index))


def begin(env, states):
    # One copy of the initialisers, as right after construction: LIBERO's resets append to the list for ever.
    env.env.object_property_initializers.clear()
    np.random.seed([SEED, 0])
    env.reset()
    observation = env.set_init_state(states[INIT_STATE])
    for _ in range(10):
        observation = env.step(SETTLE)[0]
    return observation


def digest(observation):
    return hashlib.sha256(b"".join(observation[f"{name}_image"].tobytes() for name in CAMERAS)).hexdigest()


def main():
    out = sys.stdout
    sys.stdout = sys.stderr  # LIBERO prints
    bootstrap.import_libero(ASSETS, "auto", COMMAND != "sequence", None)
    if COMMAND == "states":
        for task in ARGS:
            env, states = build(task, use_camera_obs=False, has_offscreen_renderer=True)
            begin(env, states)
            for action in actions(20, 3):
                env.step(action)
            print(json.dumps({"task": task, "bits": [int(b) for b in env.get_sim_state().view(np.uint64)]}), file=out)
            env.close()
    elif COMMAND == "images":
        env, states = build(ARGS[0], camera_heights=SIZE, camera_widths=SIZE)
        seen = [digest(begin(env, states))]
        for i, action in enumerate(actions(16, 3)):
            observation = env.step(action)[0]
            if i % 8 == 7:
                seen.append(digest(observation))
        print(json.dumps({"task": ARGS[0], "images": seen}), file=out)
    elif COMMAND == "sequence":
        env, _ = build(ARGS[1], use_camera_obs=False, has_offscreen_renderer=False)
        env.seed(int(ARGS[0]))
        for trial in range(TRIALS):
            env.reset()
            model = env.sim.model._model
            names = {model.body(i).name: model.body_pos[i].view(np.uint64).tolist() for i in range(model.nbody)}
            print(json.dumps({"trial": trial, "fixtures": {n: p for n, p in names.items() if n.endswith("_main")}}), file=out)


main()
