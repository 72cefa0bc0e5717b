"""Builds one task and steps it once, so that numba's cache is filled: `warm_libero.py <assets>`."""

import sys

import numpy as np

from simloop_libero import bootstrap
from simloop_libero.settings import Settings


def main(assets):
    settings = Settings(
        {
            "task": "libero_spatial/0",
            "assets": assets,
            "cache_dir": None,
            "gl": "auto",
            "cameras": [],
            "image_size": [128, 128],
            "image_transform": "none",
            "video": False,
            "frame_slots": 1,
            "fixture_seeding": "per_trial",
            "reset_mode": "auto",
            "settle_steps": 1,
            "settle_action": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0],
            "step_limits": {},
            "privileged": False,
        }
    )
    bootstrap.import_libero(settings.assets, settings.gl, settings.renders, settings.cache_dir)
    from simloop_libero.task import TaskEnv

    task = TaskEnv(settings.task, settings)
    task.reset(0, 0, None)
    task.step(np.zeros(7, dtype=np.float32), False)


if __name__ == "__main__":
    main(sys.argv[1])
