"""Fixture poses: which random numbers a reset draws.

Cabinets, stoves and racks are bodies without joints: no initial state holds them, `reset` draws their poses from numpy's
global generator. The published evaluations differ in how they seed it:

| mode | rule | source |
|---|---|---|
| `per_trial` | seed before every reset with the seed of the request | ours; independent of order and worker |
| `openvla` | `env.seed(0)` once per task, then trials 0, 1, 2, ... in order | openvla experiments/robot/libero/libero_utils.py |
| `openpi` | `env.seed(7)` once per task, then trials in order | openpi examples/libero/main.py |
| `lerobot` | `env.seed(1000 + k)` before the reset of trial k | lerobot src/lerobot/envs/libero.py, scripts/lerobot_eval.py |

In `openvla` and `openpi` the scene of trial k follows from all draws of resets 0 to k-1. They are replayed here by
drawing without simulating, so that any worker can run any trial and gets the scene of the sequential run. That includes
LIBERO's growing list: each hard reset appends the Open/Close/TurnOn initialisers of the task once more without clearing
them, so reset k draws k + 2 times as many (construction appended once). `per_trial` and `lerobot` draw once: with LeRobot
the list's length depends on how episodes end and how many environments run side by side, so there is no one sequence.
"""

import mujoco
import numpy as np
from robosuite.utils.errors import RandomizationError

SEQUENTIAL_SEEDS = {"openvla": 0, "openpi": 7}
LEROBOT_FIRST_SEED = 1000  # lerobot src/lerobot/configs/eval.py
MAX_TRIES = 20  # LIBERO tries for ever when its samplers find no free place


class Scenes:
    """Prepares numpy's global generator and the initialisers for the reset of one trial."""

    def __init__(self, mode, env, pristine):
        self._mode = mode
        self._env = env
        self._pristine = pristine
        self._once = list(env.object_property_initializers)
        # Generator state before reset k and how often the task's initialisers were appended by then.
        self._before = []

    def reset(self, seed, trial, hard):
        """Resets the environment to the scene of `trial`."""
        if self._mode in SEQUENTIAL_SEEDS:
            state, copies = self._state_before(trial)
            np.random.set_state(state)
        else:
            copies = 1
            if self._mode == "lerobot":
                np.random.seed(LEROBOT_FIRST_SEED + trial)
            elif seed is not None:
                np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        for _ in range(MAX_TRIES):
            # A hard reset appends one copy itself.
            self._env.object_property_initializers[:] = self._once * (copies - 1 if hard else copies)
            try:
                return self._pristine.hard_reset() if hard else self._pristine.soft_reset()
            except RandomizationError:
                copies += self._mode in SEQUENTIAL_SEEDS
        raise RuntimeError(f"no placement of the objects was found in {MAX_TRIES} tries")

    def _state_before(self, trial):
        if not self._before:
            np.random.seed(SEQUENTIAL_SEEDS[self._mode])
            self._before.append((np.random.get_state(), 2))
        while len(self._before) <= trial:
            state, copies = self._before[-1]
            np.random.set_state(state)
            for _ in range(MAX_TRIES):
                try:
                    self._draw_like_a_reset(copies)
                    break
                except RandomizationError:
                    copies += 1
            self._before.append((np.random.get_state(), copies + 1))
        return self._before[trial]

    def _draw_like_a_reset(self, copies):
        """Draws what `reset` draws, in its order: joint noise, initialisers, placements."""
        env = self._env
        self._pristine.restore()
        for robot in env.robots:
            np.random.randn(len(robot.init_qpos))  # scaled by zero, yet drawn
        for initialiser in self._once * copies:
            env.object_states_dict[initialiser.name].set_joint(initialiser.sample())
        mujoco.mj_step1(env.sim.model._model, env.sim.data._data)
        placed = env.placement_initializer.sample()
        placed = env.conditional_placement_initializer.sample(env.sim, placed)
        env.conditional_placement_on_objects_initializer.sample(placed)
