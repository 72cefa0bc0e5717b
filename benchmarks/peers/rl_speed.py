"""Stable-Baselines3 on gym-pusht 0.1.8: environment steps per CPU-second of PPO or SAC, rollout and update together, as JSON.

The same networks and hyper-parameters as `cargo run --release -p simloop-trainers --example rl_speed`: state observations (5
numbers), 8 environments in one process (DummyVecEnv), one thread per operation. What is measured begins after a warm-up (PPO: one
rollout with its update; SAC: 1,000 random steps and 400 updates) and ends with a whole cycle. gymnasium's checker is switched off,
which makes the peer faster than a user's.

    python rl_speed.py --algo ppo|sac [--seconds 30]
"""

import argparse
import json
import time

import gym_pusht  # noqa: F401 (registers the environment)
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

ENVS = 8


class Done(Exception):
    """The time is over."""


class TimedVecEnv(DummyVecEnv):
    """Adds up the CPU time of `step`."""

    spent = 0.0

    def step(self, actions):
        start = time.process_time()
        result = super().step(actions)
        self.spent += time.process_time() - start
        return result


def timed(algorithm, seconds, warm_up_steps):
    """A subclass that times its two halves and stops by `Done` between two cycles."""

    class Timed(algorithm):
        begun = None

        def collect_rollouts(self, *args, **kwargs):
            now = time.process_time()
            if self.begun is None and self.num_timesteps >= warm_up_steps:
                self.begun, self.wall, self.first = now, time.perf_counter(), self.num_timesteps
                self.env_before, self.rollout, self.update = self.env.spent, 0.0, 0.0
            elif self.begun is not None and now - self.begun >= seconds:
                raise Done
            result = super().collect_rollouts(*args, **kwargs)
            if self.begun is not None:
                self.rollout += time.process_time() - now
            return result

        def train(self, *args, **kwargs):
            start = time.process_time()
            super().train(*args, **kwargs)
            if self.begun is not None:
                self.update += time.process_time() - start

    return Timed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algo", choices=["ppo", "sac"], required=True)
    parser.add_argument("--seconds", type=float, default=30.0, help="CPU time to measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = make_vec_env("gym_pusht/PushT-v0", n_envs=ENVS, seed=0, vec_env_cls=TimedVecEnv,
                       env_kwargs={"obs_type": "state", "disable_env_checker": True})
    if args.algo == "ppo":
        model = timed(PPO, args.seconds, 256 * ENVS)(
            "MlpPolicy", env, n_steps=256, batch_size=64, n_epochs=10, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95,
            clip_range=0.2, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, policy_kwargs={"net_arch": [64, 64]}, device="cpu",
            seed=0)
    else:
        model = timed(SAC, args.seconds, 1400)(
            "MlpPolicy", env, batch_size=256, train_freq=1, gradient_steps=ENVS, learning_rate=3e-4, tau=0.005, gamma=0.99,
            ent_coef="auto", learning_starts=1000, buffer_size=1_000_000, policy_kwargs={"net_arch": [256, 256]}, device="cpu",
            seed=0)
    nets = [model.policy] if args.algo == "ppo" else [model.actor, model.critic]
    parameters = sum(p.numel() for net in nets for p in net.parameters())
    try:
        model.learn(10**9, log_interval=None)
    except Done:
        pass
    cpu = time.process_time() - model.begun
    env_s = model.env.spent - model.env_before
    print(json.dumps({
        "algo": args.algo,
        "engine": "sb3",
        "parameters": parameters,
        "env_steps": model.num_timesteps - model.first,
        "cpu_s": cpu,
        "wall_s": time.perf_counter() - model.wall,
        "env_s": env_s,
        "inference_s": model.rollout - env_s,
        "update_s": model.update,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }))


main()
