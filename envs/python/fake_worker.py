"""A worker of the bridge protocol (version 1) with a toy environment and a switch for every fault.

It follows the table in `src/bridge/mod.rs` and needs the standard library alone: msgpack is the small subset below.

The toy: `proprio = [seed mod 1000, t]`, reward `t`, success and termination after `episode_len` steps, frames filled
with a pattern of seed, time, camera and place, privileged state `clock_s` and `sum` (of actions, seed).

Configuration (all optional):

    episode_len   steps per episode (50)
    images        {camera: [height, width]}
    leak_bytes    kept for ever at each reset
    noise_bytes   written to stdout and to stderr in each step, half by `print`, half by `os.write`
    fault         {kind, at: "hello" | "reset" | "step" | "close", seed: only in this episode, step: only at this t}
    faults        a list of the same
"""

import array
import ctypes
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback

MAGIC = "simloop-bridge"
PROTO = 1
PR_SET_PDEATHSIG = 1


# --- msgpack, as far as the protocol needs it ---


def pack(value):
    out = bytearray()
    _pack(value, out)
    return bytes(out)


def _pack(value, out):
    if value is None:
        out.append(0xC0)
    elif isinstance(value, bool):
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        if 0 <= value < 128:
            out.append(value)
        elif value >= 0:
            out += struct.pack(">BQ", 0xCF, value)
        else:
            out += struct.pack(">Bq", 0xD3, value)
    elif isinstance(value, float):
        out += struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        raw = value.encode()
        out += struct.pack("B", 0xA0 | len(raw)) if len(raw) < 32 else struct.pack(">BI", 0xDB, len(raw))
        out += raw
    elif isinstance(value, bytes):
        out += struct.pack(">BI", 0xC6, len(value))
        out += value
    elif isinstance(value, (list, tuple)):
        out += struct.pack(">BI", 0xDD, len(value))
        for item in value:
            _pack(item, out)
    elif isinstance(value, dict):
        out += struct.pack(">BI", 0xDF, len(value))
        for key, item in value.items():
            _pack(key, out)
            _pack(item, out)
    else:
        raise TypeError(f"cannot pack {type(value).__name__}")


class Unpacker:
    NUMBERS = {
        0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
        0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
    }  # fmt: skip
    LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}

    def __init__(self, raw):
        self.raw, self.at = raw, 0

    def number(self, form):
        (value,) = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return value

    def take(self, length):
        self.at += length
        return self.raw[self.at - length : self.at]

    def value(self):
        mark = self.number(">B")
        if mark < 0x80:
            return mark
        if mark < 0x90:
            return self.pairs(mark & 0x0F)
        if mark < 0xA0:
            return [self.value() for _ in range(mark & 0x0F)]
        if mark < 0xC0:
            return self.take(mark & 0x1F).decode()
        if mark >= 0xE0:
            return mark - 256
        if mark in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[mark]
        if mark in self.NUMBERS:
            return self.number(self.NUMBERS[mark])
        if mark in self.LENGTHS:
            raw = self.take(self.number(self.LENGTHS[mark]))
            return raw if mark < 0xD0 else raw.decode()
        if mark in (0xDC, 0xDD):
            return [self.value() for _ in range(self.number(">H" if mark == 0xDC else ">I"))]
        if mark in (0xDE, 0xDF):
            return self.pairs(self.number(">H" if mark == 0xDE else ">I"))
        raise ValueError(f"msgpack byte {mark:#x}")

    def pairs(self, count):
        return {self.value(): self.value() for _ in range(count)}


# --- the toy ---


class Toy:
    def __init__(self, config):
        self.config = config
        self.images = config.get("images", {"camera": [4, 6]})
        self.shm_bytes = 16 << 20
        os.ftruncate(4, self.shm_bytes)
        self.shm = mmap.mmap(4, self.shm_bytes)
        self.used = 0
        self.kept = []
        self.seed, self.t, self.sum = 0, None, 0.0

    def spec(self):
        return {
            "id": "fake/counting-v1",
            "observation": {
                "images": {name: {"height": h, "width": w} for name, (h, w) in self.images.items()},
                "proprio": {"names": ["seed", "t"], "low": [0.0, 0.0], "high": [1000.0, float("inf")]},
            },
            "action": {"names": ["push"], "low": [-1.0], "high": [1.0]},
            "convention": {
                "control": {"kind": "absolute_position"},
                "frame": "world",
                "gripper": "none",
            },
            "control_hz": 1,
            "max_episode_steps": None,
            "wrappers": [],
            "versions": {"python": sys.version.split()[0]},
        }

    def frame(self, name):
        height, width = self.images[name]
        start = self.seed * 7 + self.t * 13 + len(name) * 31
        pixels = bytes(
            (start + y * 17 + x * 5 + c * 3) & 255 for y in range(height) for x in range(width) for c in range(3)
        )
        offset = self.used
        self.shm[offset : offset + len(pixels)] = pixels
        self.used += len(pixels)
        return {"offset": offset, "shape": [height, width, 3]}

    def obs(self, frames):
        images = {name: self.frame(name) for name in sorted(self.images)} if frames else {}
        return {"images": images, "proprio": struct.pack("<2f", self.seed % 1000, self.t)}

    def info(self):
        return {
            "success": self.t >= self.config.get("episode_len", 50),
            "metrics": {"count": self.t},
            "privileged": struct.pack("<3d", self.t, self.sum, self.seed),
        }

    def reset(self, request):
        self.seed = self.seed + 1 if request["seed"] is None else request["seed"]
        self.t, self.sum, self.used = 0, 0.0, 0
        leak = self.config.get("leak_bytes", 0)
        if leak:
            self.kept.append(b"\x01" * leak)
        strike(self, "reset", request)
        info = dict(self.info(), layout=[["clock_s", 1], ["sum", 2]])
        return {"obs": dict(self.obs(True), instruction="count to the end"), "info": info, "rss": rss()}

    def step(self, request):
        self.used = 0
        actions = array.array("f", request["actions"])
        frames, steps = request["frames"], []
        looks = frames["last_n"] if isinstance(frames, dict) else {"none": 0, "last": 1, "every": len(actions)}[frames]
        for i, action in enumerate(actions):
            self.t += 1
            self.sum += action
            strike(self, "step", request)
            self.noise(self.config.get("noise_bytes", 0))
            done = self.t >= self.config.get("episode_len", 50)
            steps.append(
                {
                    "obs": self.obs(i + looks >= len(actions)),
                    "reward": float(self.t),
                    "terminated": done,
                    "truncated": False,
                    "info": self.info(),
                }
            )
            if done:
                break
        return {"steps": steps, "rss": rss()}

    def noise(self, size):
        if not size:
            return
        half = "\x00\xff noise {" * (size // 2 // 10)
        print(half, flush=True)
        print(half, file=sys.stderr, flush=True)
        block = os.urandom(1 << 16)
        for fd in (1, 2):
            left = size // 2
            while left > 0:
                left -= os.write(fd, block[: min(left, len(block))])


def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


# --- faults ---


def frame(message):
    body = pack(message)
    return struct.pack("<I", len(body)) + body


def strike(toy, at, request):
    config = toy.config if toy else request.get("config", {})
    for fault in config.get("faults", []) + ([config["fault"]] if "fault" in config else []):
        if fault.get("at") != at:
            continue
        if toy and fault.get("seed", toy.seed) != toy.seed:
            continue
        if toy and fault.get("step", toy.t) != toy.t:
            continue
        FAULTS[fault["kind"]](request, fault)


def hang(request, fault):
    while True:
        time.sleep(1)


def ignore_signals(request, fault):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hang(request, fault)


def kill(number):
    def strike_dead(request, fault):
        print("the last words of a dying worker", file=sys.stderr, flush=True)
        os.kill(os.getpid(), number)
        time.sleep(60)

    return strike_dead


def leave(code):
    def strike_out(request, fault):
        print("leaving early", flush=True)
        os._exit(code)

    return strike_out


def raise_exception(request, fault):
    raise RuntimeError("an exception on purpose")


def send_and(after, make):
    def strike_wire(request, fault):
        SOCKET.sendall(make(request))
        after(request, fault)

    return strike_wire


def truncated(request):
    return frame({"id": request["id"], "ok": {}})[:7]


def slow_loris(request, fault):
    for byte in frame({"id": request["id"], "ok": {"noise": "x" * 100000}}):
        SOCKET.sendall(bytes([byte]))
        time.sleep(fault.get("pause_s", 1.0))


def late_reply(request, fault):
    for old in range(max(0, request["id"] - 3), request["id"]):
        SOCKET.sendall(frame({"id": old, "ok": {"steps": [], "obs": 7}}))
    SOCKET.sendall(frame({"id": request["id"] + 5, "err": {"kind": "X", "message": "", "trace": ""}}))


def prompt(request, fault):
    try:
        answer = input("Do you want to go on (y/n)? ")
    except EOFError:
        return
    raise RuntimeError(f"somebody answered {answer!r}")


def grandchildren(request, fault):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-I", "-c", code], pass_fds=(3,))
        with open(fault["pids"], "a") as pids:
            pids.write(f"{child.pid}\n")
    if fault.get("die"):
        os._exit(3)


def close_socket(request, fault):
    os.close(3)
    SOCKET.detach()
    hang(request, fault)


FAULTS = {
    "hang": hang,
    "ignore_sigterm": ignore_signals,
    "sigsegv": kill(signal.SIGSEGV),
    "sigabrt": kill(signal.SIGABRT),
    "sigkill": kill(signal.SIGKILL),
    "exit_0": leave(0),
    "exit_3": leave(3),
    "exception": raise_exception,
    "truncated": send_and(leave(0), truncated),
    "truncated_hang": send_and(hang, truncated),
    "length_max": send_and(hang, lambda request: b"\xff\xff\xff\xff" + bytes(100)),
    "garbage": send_and(hang, lambda request: b"Traceback (most recent call last):\n" * 99),
    "not_a_map": send_and(hang, lambda request: struct.pack("<I", 3) + b"\x93\x01\x02"),
    "no_id": send_and(hang, lambda request: frame({"ok": {}})),
    "ok_and_err": send_and(hang, lambda request: frame({"id": request["id"], "ok": {}, "err": {}})),
    "empty_ok": send_and(hang, lambda request: frame({"id": request["id"], "ok": {}})),
    "image_outside": send_and(hang, lambda request: frame(outside(request))),
    "slow_loris": slow_loris,
    "late_reply": late_reply,
    "prompt": prompt,
    "grandchildren": grandchildren,
    "close_socket": close_socket,
}


def outside(request):
    image = {"offset": 1 << 60, "shape": [4, 6, 3]}
    obs = {"images": {"camera": image}, "proprio": bytes(8), "instruction": ""}
    step = {"obs": obs, "reward": 0.0, "terminated": False, "truncated": False}
    return {"id": request["id"], "ok": {"obs": obs, "steps": [step] * request.get("n", 1)}}


# --- the worker ---


def receive():
    def exactly(count):
        parts = bytearray()
        while len(parts) < count:
            part = SOCKET.recv(count - len(parts))
            if not part:
                os._exit(0)
            parts += part
        return bytes(parts)

    return Unpacker(exactly(struct.unpack("<I", exactly(4))[0])).value()


def hello(request):
    config = request["config"]
    fault = config.get("fault", {})
    if request["magic"] != MAGIC or request["proto"] != PROTO:
        raise RuntimeError(f"the parent speaks {request['magic']} {request['proto']}, this worker {MAGIC} {PROTO}")
    strike(None, "hello", request)
    toy = Toy(config)
    return toy, {
        "magic": fault.get("magic", MAGIC),
        "proto": fault.get("proto", PROTO),
        "adapter": "fake",
        "adapter_version": "1",
        "pid": os.getpid(),
        "versions": {"python": sys.version.split()[0]},
        "spec": toy.spec(),
        "shm_bytes": toy.shm_bytes,
    }


def answer(toy, request):
    op = request["op"]
    if op == "reset":
        return toy.reset(request)
    if op == "step":
        return toy.step(request)
    if op == "render":
        toy.used = 0
        return {"frame": toy.frame("camera") if "camera" in toy.images else None}
    if op == "call" and request["name"] == "echo":
        return {"result": request["args"]}
    if op == "call" and request["name"] == "env":
        return {"result": os.environ.get(request["args"]["name"])}
    raise ValueError(f"no op {op} {request.get('name', '')}")


def main():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(os.environ.get("SIMLOOP_BRIDGE_PARENT", os.getppid())):
        os._exit(0)
    toy = None
    while True:
        request = receive()
        try:
            if request["op"] == "hello":
                toy, ok = hello(request)
            elif request["op"] == "close":
                strike(toy, "close", request)
                SOCKET.sendall(frame({"id": request["id"], "ok": {}}))
                os._exit(0)
            else:
                ok = answer(toy, request)
            reply = {"id": request["id"], "ok": ok}
        except Exception as error:
            trace = traceback.format_exc()
            reply = {
                "id": request["id"],
                "err": {"kind": type(error).__name__, "message": str(error), "trace": trace},
            }
        SOCKET.sendall(frame(reply))


if __name__ == "__main__":
    SOCKET = socket.socket(fileno=3)
    main()
