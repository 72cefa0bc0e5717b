"""Speed of gym-pusht 0.1.8: environment steps per CPU-second, as JSON.

The same episodes as `cargo run --release -p simloop-envs --example pusht_speed`: episode k is reset with seed k and lasts
50 steps. `random` draws targets from one 64-bit linear congruential generator; `push` aims at the block's origin, so the
agent is in contact nearly all the time. The bare environment is stepped, without gymnasium's wrappers (which would slow
it down further), and cv2 is kept to one thread.

    python pusht_speed.py [--seconds 3]
"""

import argparse
import json
import time

import cv2
import numpy as np
from gym_pusht.envs.pusht import PushTEnv

EPISODE_STEPS = 50
MASK = (1 << 64) - 1


class Targets:
    """Uniform targets in [0, 512) from Knuth's MMIX generator, top 24 bits."""

    def __init__(self, seed):
        self.state = seed

    def coordinate(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK
        return (self.state >> 40) / (1 << 24) * 512.0

    def draw(self):
        x = self.coordinate()
        return np.array([x, self.coordinate()], dtype=np.float32)


def measure(obs_type, action_kind, seconds):
    env = PushTEnv(obs_type=obs_type)
    steps, episode, contacts, checksum = 0, 0, 0, 0.0
    spent = 0.0
    while spent < seconds:
        targets = Targets(episode)
        start = time.process_time()
        env.reset(seed=episode)
        for _ in range(EPISODE_STEPS):
            if action_kind == "random":
                action = targets.draw()
            else:
                action = np.array(env.block.position, dtype=np.float32)
            _, reward, terminated, _, info = env.step(action)
            contacts += info["n_contacts"]
            steps += 1
            if terminated:
                break
        spent += time.process_time() - start
        if episode < 20:
            checksum += float(reward)
        episode += 1
    return {
        "steps": steps,
        "cpu_seconds": spent,
        "steps_per_cpu_second": steps / spent,
        "contact_share": contacts / steps,
        "reward_of_first_20_episodes": checksum,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU time per measurement")
    seconds = parser.parse_args().seconds
    cv2.setNumThreads(1)
    results = {
        f"{obs}/{kind}": measure(obs, kind, seconds)
        for obs in ("state", "pixels")
        for kind in ("random", "push")
    }
    print(json.dumps({"engine": "gym-pusht 0.1.8", "results": results}))


if __name__ == "__main__":
    main()
