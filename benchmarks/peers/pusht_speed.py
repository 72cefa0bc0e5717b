"""Speed of gym-pusht 0.1.8: environment steps per CPU-second, as JSON.

The same episodes as `cargo run --release -p simloop-envs --example pusht_speed`: episode k is reset with seed k and lasts
50 steps. `random` draws targets from one 64-bit linear congruential generator. `push` aims 20 px ahead towards the block's
origin (about 200 px/s). `squeeze` aims at the origin itself and so rams the block into a wall and holds it there:
several contacts in every sub-step, the dearest case. The bare environment is stepped, without gymnasium's wrappers (which would slow
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


def aim(env, ahead):
    """The block's origin, or the point `ahead` px on the way to it."""
    agent, block = np.array(env.agent.position), np.array(env.block.position)
    way = block - agent
    return (agent + way * min(1.0, ahead / max(np.hypot(*way), 1e-9))).astype(np.float32)


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
                action = aim(env, 20.0 if action_kind == "push" else np.inf)
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
        for kind in ("random", "push", "squeeze")
    }
    print(json.dumps({"engine": "gym-pusht 0.1.8", "results": results}))


if __name__ == "__main__":
    main()
