"""A checkpoint of ours in gym-pusht 0.1.8 itself: success rate, largest coverage, and the same episodes in `bench pusht`.

gym-pusht is stepped here, by nobody's wrapper; every decision is made by `serve` over its REST form, with the seeds and the
noise of `bench pusht --seed S`. The two begin in the same states and part only where the physics does.

    serve runs/x/best &
    python gym_pusht_policy.py --url http://127.0.0.1:8000 --episodes 500 --compare outputs/x
"""

import argparse
import base64
import hashlib
import http.client
import json
import math
import sys
import urllib.parse
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import gym_pusht  # noqa: F401  (registers the environment)
import numpy as np

SUITE = TASK = "pusht"
INSTRUCTION = "Push the T-shaped block onto the T-shaped target."
Z95 = 1.959963984540054
# (cameras, numbers) that a policy looks at, by gym-pusht's names.
OBS_TYPES = {
    (0, 5): "state",
    (0, 18): "environment_state_agent_pos",
    (1, 0): "pixels",
    (1, 2): "pixels_agent_pos",
}


class SeedTree:
    """The runner's seeds (envs/src/seeding.rs): a node is the SHA-256 of its path."""

    def __init__(self, digest):
        self.digest = digest

    @staticmethod
    def _of(*parts):
        sha = hashlib.sha256()
        for part in parts:
            sha.update(len(part).to_bytes(8, "little") + part)
        return SeedTree(sha.digest())

    @classmethod
    def of_run(cls, seed):
        return cls._of(b"simloop-seed-v1", seed.to_bytes(8, "little"))

    def child(self, name):
        return self._of(self.digest, b"name", name.encode())

    def index(self, index):
        return self._of(self.digest, b"index", index.to_bytes(8, "little"))

    def seed(self):
        return int.from_bytes(self.digest[:8], "little")


def episode_of(run_seed, trial):
    return SeedTree.of_run(run_seed).child(SUITE).child(TASK).index(trial)


def json_array(array):
    """As json_numpy writes it."""
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": array.shape}


class Policy:
    """A server of ours: what it wants to see, and one connection per environment."""

    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url).netloc
        status, about = self.ask(self.connect(), "GET", "/metadata", None, {})
        if status != 200 or about.get("server") != "simloop":
            sys.exit(f"{url} answers with status {status} and is no server of simloop")
        policy, keys = about["policy"], about["keys"]
        numbers = (len(policy["cameras"]), len(policy["io"]["proprio"]))
        if numbers not in OBS_TYPES:
            sys.exit(f"gym-pusht shows nothing with {numbers[0]} cameras and {numbers[1]} numbers")
        self.label, self.obs_type, self.n_obs_steps = policy["label"], OBS_TYPES[numbers], policy["n_obs_steps"]
        self.batch = policy["inference_batch"]
        self.state_key, self.prompt_key = keys["state"][0], keys["prompt"][0]
        self.image_key = keys["cameras"][0]["names"][0] if keys["cameras"] else None
        self.image_size = policy["io"]["cameras"][policy["cameras"][0]]["height"] if policy["cameras"] else 96

    def connect(self):
        return http.client.HTTPConnection(self.address, timeout=120)

    @staticmethod
    def ask(connection, method, path, body, headers):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def seen(self, obs):
        """An observation of gym-pusht as the policy is shown it: f32 numbers, u8 images."""
        if self.obs_type == "state":
            numbers, pixels = obs, None
        elif self.obs_type == "environment_state_agent_pos":
            numbers, pixels = np.concatenate([obs["environment_state"], obs["agent_pos"]]), None
        elif self.obs_type == "pixels":
            numbers, pixels = [], obs
        else:
            numbers, pixels = obs["agent_pos"], obs["pixels"]
        shown = {self.state_key: json_array(np.asarray(numbers, dtype="<f4")), self.prompt_key: INSTRUCTION}
        if pixels is not None:
            shown[self.image_key] = json_array(np.ascontiguousarray(pixels, dtype=np.uint8))
        return shown


class Seat:
    """One environment and the episode in it."""

    def __init__(self, number, policy):
        size = policy.image_size
        self.policy, self.connection, self.name = policy, policy.connect(), f"gym-pusht-{number}"
        self.env = gym.make(
            "gym_pusht/PushT-v0", obs_type=policy.obs_type, observation_width=size, observation_height=size
        )

    def begin(self, trial, run_seed):
        episode = episode_of(run_seed, trial)
        self.trial, self.seed, self.noise, self.decisions = trial, episode.seed(), episode.child("noise"), 0
        obs, _ = self.env.reset(seed=self.seed)
        self.recent = deque([self.policy.seen(obs)], maxlen=self.policy.n_obs_steps)
        self.steps, self.coverage, self.reward, self.actions = 0, 0.0, 0.0, []

    def decide(self):
        """A chunk `[T_a, D]` for what was seen since the last one."""
        *older, newest = self.recent
        request = {
            **newest,
            "simloop/recent": older,
            "simloop/noise_seed": self.noise.index(self.decisions).seed(),
            "simloop/reset": self.decisions == 0,
        }
        headers = {"x-session-id": self.name, "content-type": "application/json"}
        body = json.dumps(request)
        status, reply = self.policy.ask(self.connection, "POST", "/act?reply=chunk", body, headers)
        if status != 200:
            raise RuntimeError(f"the policy answers with status {status}: {reply}")
        self.decisions += 1
        actions = np.frombuffer(base64.b64decode(reply["__numpy__"]), dtype=reply["dtype"])
        return actions.reshape(reply["shape"])

    def execute(self, actions):
        """Steps a chunk; the episode's record once it is over."""
        self.recent.clear()
        for action in actions:
            obs, reward, terminated, truncated, info = self.env.step(action)
            self.steps += 1
            self.actions.append(action.tolist())
            self.coverage = max(self.coverage, float(info["coverage"]))
            self.reward = max(self.reward, float(reward))
            self.recent.append(self.policy.seen(obs))
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
    waiting = deque(range(args.episodes))
    seats = [Seat(i, policy) for i in range(min(policy.batch, args.episodes))]
    for seat in seats:
        seat.begin(waiting.popleft(), args.seed)
    done = []
    # Everyone asks at once: the server decides in batches.
    with ThreadPoolExecutor(len(seats)) as pool:
        while seats:
            chunks = list(pool.map(Seat.decide, seats))
            for seat, chunk in zip(list(seats), chunks):
                record = seat.execute(chunk)
                if record is None:
                    continue
                done.append(record)
                if len(done) % 25 == 0 or len(done) == args.episodes:
                    print(f"{len(done)}/{args.episodes} episodes", file=sys.stderr)
                if waiting:
                    seat.begin(waiting.popleft(), args.seed)
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


def stored(folder, args, policy):
    """The same trials of a result of `bench pusht`, after checking that it is this policy and this seed."""
    run = json.loads((folder / "run.json").read_text())
    for what, theirs, ours in [
        ("suite", run["suite"], SUITE),
        ("seed", run["seed"], args.seed),
        ("policy", run["policy"], policy.label),
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
    parser.add_argument("--url", required=True, help="where `serve` listens: http://127.0.0.1:8000")
    parser.add_argument("--seed", type=int, default=0, help="as `bench pusht --seed`")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--compare", type=Path, help="a result folder of `bench pusht` with this policy and seed")
    parser.add_argument("--out", type=Path, help="write everything as JSON here")
    args = parser.parse_args()
    policy = Policy(args.url)
    episodes = rollouts(policy, args)
    result = {
        "engine": "gym-pusht 0.1.8",
        "policy": policy.label,
        "observation": policy.obs_type,
        "seed": args.seed,
        "gym_pusht": summary(episodes),
        "episodes": episodes,
    }
    show("gym-pusht", result["gym_pusht"])
    if args.compare:
        ours = stored(args.compare, args, policy)
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
