"""A checkpoint of ours in gym-pusht 0.1.8 itself: success rate, largest coverage, and the same episodes in `bench pusht`.

gym-pusht is stepped here, by nobody's wrapper; every decision is made by `bench __policy`, a child process, with the seeds
and the noise of `bench pusht --seed S`. The two begin in the same states and part only where the physics does.

    python gym_pusht_policy.py --bench target/release/bench --policy runs/x/best --episodes 500 --compare outputs/x
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "envs" / "python"))

import gymnasium as gym
import gym_pusht  # noqa: F401  (registers the environment)
import numpy as np
from simloop_libero.wire import Channel

SUITE = TASK = "pusht"
INSTRUCTION = "Push the T-shaped block onto the T-shaped target."
CAMERA = "pixels"
Z95 = 1.959963984540054


class Policy:
    """The child process and one request at a time."""

    def __init__(self, bench, folder, extra):
        ours, theirs = socket.socketpair()
        env = dict(os.environ, SIMLOOP_BRIDGE_PARENT=str(os.getpid()))
        self._child = subprocess.Popen([bench, "__policy", "--policy", folder, *extra], stdin=theirs, env=env)
        theirs.close()
        self._channel = Channel(ours.detach())
        self._id = 0
        self.about = self.ask("hello", magic="simloop-policy", proto=1)

    def ask(self, op, **keys):
        self._id += 1
        self._channel.send({"id": self._id, "op": op, **keys})
        reply = self._channel.receive()
        if reply is None:
            sys.exit(f"bench __policy ended with status {self._child.wait()}")
        if "err" in reply:
            sys.exit(f"bench __policy failed to answer `{op}`: {reply['err']['message']}")
        return reply["ok"]

    def close(self):
        self.ask("close")
        self._child.wait()


def seen(obs, kind):
    """An observation of gym-pusht as the policy is shown it: f32 numbers, u8 images."""
    if kind == "state":
        return {"proprio": np.asarray(obs, dtype="<f4").tobytes()}
    if kind == "environment_state_agent_pos":
        numbers = np.concatenate([obs["environment_state"], obs["agent_pos"]])
        return {"proprio": numbers.astype("<f4").tobytes()}
    pixels = obs if kind == "pixels" else obs["pixels"]
    pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
    agent = [] if kind == "pixels" else obs["agent_pos"]
    return {
        "proprio": np.asarray(agent, dtype="<f4").tobytes(),
        "images": {CAMERA: {"shape": list(pixels.shape), "pixels": pixels.tobytes()}},
    }


class Seat:
    """One environment and the episode in it."""

    def __init__(self, number, about):
        size = about["image_size"]
        self.number, self.kind = number, about["observation"]
        self.env = gym.make(
            "gym_pusht/PushT-v0", obs_type=self.kind, observation_width=size, observation_height=size
        )
        self.n_obs_steps = about["n_obs_steps"]

    def begin(self, policy, trial, seed, run_seed):
        self.trial, self.seed = trial, seed
        policy.ask("reset", env=self.number, suite=SUITE, task=TASK, seed=run_seed, trial=trial)
        obs, _ = self.env.reset(seed=seed)
        self.recent = deque([seen(obs, self.kind)], maxlen=self.n_obs_steps)
        self.steps, self.coverage, self.reward, self.actions = 0, 0.0, 0.0, []

    def request(self):
        return {"env": self.number, "instruction": INSTRUCTION, "recent": list(self.recent)}

    def execute(self, chunk):
        """Steps a chunk; the episode's record once it is over."""
        actions = np.frombuffer(chunk["actions"], dtype="<f4").reshape(chunk["n"], -1)
        self.recent.clear()
        for action in actions:
            obs, reward, terminated, truncated, info = self.env.step(action)
            self.steps += 1
            self.actions.append(action.tolist())
            self.coverage = max(self.coverage, float(info["coverage"]))
            self.reward = max(self.reward, float(reward))
            self.recent.append(seen(obs, self.kind))
            if terminated or truncated:
                return {
                    "trial": self.trial,
                    "seed": self.seed,
                    "success": bool(terminated),
                    "max_coverage": self.coverage,
                    "max_reward": self.reward,
                    "steps": self.steps,
                    "actions": self.actions,
                }
        return None


def rollouts(policy, args):
    seeds = policy.ask("episodes", suite=SUITE, task=TASK, seed=args.seed, episodes=args.episodes)["seeds"]
    waiting = deque(enumerate(seeds))
    seats = [Seat(i, policy.about) for i in range(min(policy.about["batch"], len(seeds)))]
    for seat in seats:
        seat.begin(policy, *waiting.popleft(), args.seed)
    done = []
    while seats:
        chunks = policy.ask("act", requests=[seat.request() for seat in seats])["chunks"]
        for seat, chunk in zip(list(seats), chunks):
            record = seat.execute(chunk)
            if record is None:
                continue
            done.append(record)
            if len(done) % 25 == 0 or len(done) == args.episodes:
                print(f"{len(done)}/{args.episodes} episodes", file=sys.stderr)
            if waiting:
                seat.begin(policy, *waiting.popleft(), args.seed)
            else:
                seats.remove(seat)
    return sorted(done, key=lambda record: record["trial"])


def wilson(k, n):
    """Wilson's 95 % interval of k out of n."""
    centre, spread = k / n + Z95**2 / (2 * n), Z95 * math.sqrt(k / n * (1 - k / n) / n + Z95**2 / (4 * n * n))
    low, high = (centre - spread) / (1 + Z95**2 / n), (centre + spread) / (1 + Z95**2 / n)
    return [0.0 if k == 0 else low, 1.0 if k == n else high]  # where rounding would miss the ends


def newcombe(k1, n1, k2, n2):
    """Newcombe's 95 % interval of k1/n1 - k2/n2 (1998, method 10)."""
    (l1, u1), (l2, u2) = wilson(k1, n1), wilson(k2, n2)
    p1, p2 = k1 / n1, k2 / n2
    d = p1 - p2
    return [d - math.hypot(p1 - l1, u2 - p2), d + math.hypot(u1 - p1, p2 - l2)]


def mcnemar(b, c):
    """Exact two-sided p-value of b against c discordant pairs."""
    n, k = b + c, min(b, c)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def mean_interval(values):
    """The mean and its 95 % interval, normal approximation."""
    mean, spread = float(np.mean(values)), Z95 * float(np.std(values, ddof=1 if len(values) > 1 else 0)) / math.sqrt(len(values))
    return {"mean": mean, "ci95": [mean - spread, mean + spread]}


def summary(episodes):
    k, n = sum(e["success"] for e in episodes), len(episodes)
    coverage = [e["max_coverage"] for e in episodes]
    return {
        "episodes": n,
        "successes": k,
        "success_rate": k / n,
        "success_wilson95": wilson(k, n),
        "max_coverage": mean_interval(coverage),
        "max_reward": mean_interval([e["max_reward"] for e in episodes]),
    }


def stored(folder, args, about):
    """The same trials of a result of `bench pusht`, after checking that it is this policy and this seed."""
    run = json.loads((folder / "run.json").read_text())
    for what, theirs, ours in [
        ("suite", run["suite"], SUITE),
        ("seed", run["seed"], args.seed),
        ("policy", run["policy"], about["policy"]),
    ]:
        if theirs != ours:
            sys.exit(f"compare with {folder}: its {what} is {theirs}, this run's {ours}")
    episodes = []
    for line in (folder / "ledger.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["status"] == "error" or record["trial"] >= args.episodes:
            continue
        actions = np.load(folder / "actions" / f"{TASK}_ep{record['trial']:04}.npy")
        episodes.append(
            {
                "trial": record["trial"],
                "seed": record["seed"],
                "success": record["status"] == "success",
                "max_coverage": record["metrics"]["coverage"]["max"],
                "max_reward": record["max_reward"],
                "steps": record["steps"],
                "actions": actions.tolist(),
            }
        )
    return sorted(episodes, key=lambda record: record["trial"])


def compare(theirs, ours):
    """gym-pusht's episodes beside ours of the same trials."""
    by_trial = {e["trial"]: e for e in ours}
    pairs = [(e, by_trial[e["trial"]]) for e in theirs if e["trial"] in by_trial]
    if not pairs or any(a["seed"] != b["seed"] for a, b in pairs):
        sys.exit("compare: no shared trial, or shared trials with other seeds")
    only_theirs = sum(a["success"] and not b["success"] for a, b in pairs)
    only_ours = sum(b["success"] and not a["success"] for a, b in pairs)
    a, b, n = sum(a["success"] for a, _ in pairs), sum(b["success"] for _, b in pairs), len(pairs)
    interval = newcombe(a, n, b, n)
    coverage = np.array([a["max_coverage"] - b["max_coverage"] for a, b in pairs])
    first = np.array([np.subtract(a["actions"][0], b["actions"][0]) for a, b in pairs])
    agreeing = [agreeing_steps(a["actions"], b["actions"]) for a, b in pairs]
    return {
        "pairs": n,
        "difference": (a - b) / n,
        "difference_newcombe95": interval,
        "agree": interval[0] <= 0.0 <= interval[1],
        "same_outcome": n - only_theirs - only_ours,
        "only_gym_pusht": only_theirs,
        "only_simloop": only_ours,
        "mcnemar_p": mcnemar(only_theirs, only_ours),
        "max_coverage_difference": mean_interval(coverage),
        "first_action_max_difference_px": float(np.abs(first).max()),
        "agreeing_steps_median": float(np.median(agreeing)),
        "agreeing_steps_min": min(agreeing),
    }


def agreeing_steps(a, b):
    """How many steps pass before two episodes' actions are a pixel apart."""
    n = min(len(a), len(b))
    apart = np.abs(np.subtract(a[:n], b[:n])).max(axis=1) > 1.0
    return int(apart.argmax()) if apart.any() else n


def percent(interval):
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def show(name, s):
    c = s["max_coverage"]
    print(
        f"{name}: {s['successes']} of {s['episodes']} solved, {100 * s['success_rate']:.1f} % "
        f"({percent(s['success_wilson95'])}); mean max coverage {c['mean']:.4f} ({c['ci95'][0]:.4f} to {c['ci95'][1]:.4f})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True, help="the program `bench`")
    parser.add_argument("--policy", required=True, help="a checkpoint folder")
    parser.add_argument("--seed", type=int, default=0, help="as `bench pusht --seed`")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--compare", type=Path, help="a result folder of `bench pusht` with this policy and seed")
    parser.add_argument("--out", type=Path, help="write everything as JSON here")
    args, extra = parser.parse_known_args()
    policy = Policy(args.bench, args.policy, extra)
    episodes = rollouts(policy, args)
    policy.close()
    result = {
        "engine": "gym-pusht 0.1.8",
        "policy": policy.about["policy"],
        "observation": policy.about["observation"],
        "seed": args.seed,
        "gym_pusht": summary(episodes),
        "episodes": episodes,
    }
    show("gym-pusht", result["gym_pusht"])
    if args.compare:
        ours = stored(args.compare, args, policy.about)
        result["simloop"], result["comparison"] = summary(ours), compare(episodes, ours)
        show("simloop  ", result["simloop"])
        c = result["comparison"]
        print(
            f"difference {100 * c['difference']:+.1f} points ({percent(c['difference_newcombe95'])}), "
            f"{'the rates agree' if c['agree'] else 'THE RATES DIFFER'}; same outcome in {c['same_outcome']} of "
            f"{c['pairs']} episodes, McNemar p = {c['mcnemar_p']:.3f}; first actions differ by at most "
            f"{c['first_action_max_difference_px']:.4f} px, and actions stay within a pixel for "
            f"{c['agreeing_steps_median']:.0f} steps (median)"
        )
    if args.out:
        for record in episodes:
            del record["actions"]  # thousands of numbers; the program tells them again
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {args.out}")


if __name__ == "__main__":
    main()
