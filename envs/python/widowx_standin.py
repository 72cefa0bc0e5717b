"""A stand-in for the WidowX robot server (widowx_env_service --server) that tests run against.

Same wire: ZeroMQ REP, one LZ4 frame of a pickle per message. Behind it a kinematic arm, a synthetic camera, and a switch for
every fault that the real server was seen to have. Written from the protocol's description and recorded bytes; it holds no code
of the real server.

    widowx_standin.py [--port 0] [--speed 1.0] [--closed-secs 1.0] [--faults JSON]

It prints one JSON line {"port": P} when it listens, and then answers JSON lines on stdin, one line each:

    {"do": "set", "faults": {...}}  change switches (see FAULTS)
    {"do": "log"}                   what was executed: [seconds, key, values]
    {"do": "state"}                 hand, target, gripper, counts
    {"do": "clear"}                 forget the log
    {"do": "restart"}               as a new process would be: nothing initialised, old gripper controllers gone

--speed divides the durations of init, reset and move (not of a step). --closed-secs is the shortest time for which the port is
closed after an exception, while the robot is initialised again; the real server needs 4 to 8 s. The end of stdin ends the
process.
"""

import argparse
import json
import os
import pickle
import struct
import sys
import threading
import time
import zlib

import lz4.frame
import numpy as np
import zmq

NEUTRAL = np.array([0.1202, -0.0191, 0.2467, -0.0399, -0.1272, 0.0252])
CONFIG = {
    "port_number": 5556,
    "action_keys": ["init", "move", "gripper", "reset", "step_action", "reboot_motor"],
    "observation_keys": ["image", "state", "full_image"],
    "broadcast_port": 5557,
    "version": "0.0.1",
}
# Switches; None or 0 is off. A number n strikes at the n-th request of that kind since the switch was set, once.
FAULTS = {
    "effort_at_step": 0,  # motor effort: gripper opens, neutral, exception, initialised again; no reply
    "effort_at_move": 0,  # the same in move: caught, status 2
    "camera_dead_at": 0,  # no frame for 1 s at the n-th obs: exception, initialised again; no reply
    "camera_frozen": False,  # the same JPEG over and over
    "die_at_step": 0,  # an exception during the re-initialisation: the process ends
    "die_at_obs": 0,
    "silent_at": None,  # [key, n]: never answer the n-th request of that kind, executed or not by "silent_executes"
    "silent_executes": True,
    "lose_every_reply": False,  # execute every step, answer none
    "delay": None,  # [key, n, seconds]: answer so much later
    "reinit_quietly_at_obs": 0,  # another client initialised the robot: neutral pose, nobody says so
    "status": None,  # [key, status]: answer so without doing anything
    "unreachable": False,  # no IK solution: nothing moves, status 1, the target stays
    "bad_reply_at": None,  # [n, kind] at the n-th obs: garbage, truncated, empty, huge, wrong_state, nan_state, text
    "hash": None,  # changes to the configuration in the handshake
    "gripper_stuck": False,  # two gripper controllers fight: reads open whatever is asked for
    "gripper_fights": False,  # the same, and now one wins, now the other
    "obs_secs": None,
    "step_secs": None,
}


class Silence(Exception):
    """The request gets no reply; the socket starts anew."""


class Arm:
    """Kinematics: the hand goes to its target in a straight line within the motion's profile time."""

    def __init__(self, params, image_size, speed):
        self.params = params
        self.image_size = image_size
        self.speed = speed
        bounds = np.array(params["override_workspace_boundaries"], dtype=float)
        self.low, self.high = bounds[0, :3], bounds[1, :3]
        self.start = np.array([float(v) for v in params["start_state"]])
        self.profile = float(params["move_duration"]) * 1.25
        self.origin = NEUTRAL.copy()
        self.goal = NEUTRAL.copy()
        self.began = time.monotonic()
        self.target = None  # no reset yet
        self.gripper_from = self.gripper_goal = 1.0
        self.gripper_began = time.monotonic()
        self.sleep(3.0)

    def sleep(self, seconds):
        time.sleep(seconds / self.speed)

    def pose(self):
        part = min(1.0, (time.monotonic() - self.began) / max(self.profile, 1e-9))
        return self.origin + part * (self.goal - self.origin)

    def opening(self):
        part = min(1.0, (time.monotonic() - self.gripper_began) / 0.35)
        return self.gripper_from + part * (self.gripper_goal - self.gripper_from)

    def go(self, goal):
        self.origin, self.goal, self.began = self.pose(), np.array(goal, dtype=float), time.monotonic()

    def grip(self, opening):
        self.gripper_from, self.gripper_began = self.opening(), time.monotonic()
        self.gripper_goal = float(np.clip(opening, 0.0, 1.0))

    def neutral(self, seconds):
        self.profile = seconds / self.speed
        self.go(NEUTRAL)
        self.sleep(seconds)

    def reset(self):
        self.grip(1.0)
        self.sleep(1.0)
        self.neutral(1.5)
        self.profile = 1.5 / self.speed
        self.go(self.start[:6])
        self.sleep(1.5)
        self.target = self.start[:6].copy()
        self.profile = float(self.params["move_duration"]) * 1.25

    def move(self, pose, duration):
        pose = np.asarray(pose)
        if pose.shape == (4, 4):
            # DEFAULT_ROTATION only turns the angles' zero; the position is what tests look at.
            goal = np.concatenate([pose[:3, 3], [0.0, -0.2705, 0.0]])
        elif pose.shape == (6,):
            goal = pose
        else:
            raise ValueError("pose")
        if not np.all(np.isfinite(goal)):
            raise ValueError("nan")
        self.profile = duration / self.speed
        self.go(goal)
        self.sleep(duration + 0.2)
        self.profile = duration  # stays: a non-blocking step never resets it
        self.target = np.array(goal, dtype=float)

    def step(self, action, unreachable):
        if self.target is None:
            raise TypeError("target is None")
        if action.shape != (7,):
            raise ValueError("action")
        if not np.all(np.isfinite(action)):
            raise ValueError("nan")
        delta = np.clip(action[:6], [-0.05] * 3 + [-0.25] * 3, [0.05] * 3 + [0.25] * 3)
        hand = self.pose()[:3]
        roll, pitch, yaw = delta[3:]
        turn = rot_z(yaw) @ rot_y(pitch) @ rot_x(roll)
        self.target[:3] = np.clip(hand + turn @ (self.target[:3] - hand) + delta[:3], self.low, self.high)
        self.target[3:] += delta[3:]
        if not unreachable:
            self.go(self.target)
        self.grip(action[6])


def rot_x(a):
    c, s = np.cos(a), np.sin(a)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rot_y(a):
    c, s = np.cos(a), np.sin(a)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rot_z(a):
    c, s = np.cos(a), np.sin(a)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


class Camera:
    """A flat grey JPEG whose restart-marker-free scan is fixed, with a comment that makes every frame different."""

    def __init__(self, jpeg):
        self.jpeg = jpeg
        self.frames = 0

    def frame(self, frozen):
        if not frozen:
            self.frames += 1
        comment = b"frame %d" % self.frames
        # SOI, then a comment segment, then the rest.
        return self.jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + self.jpeg[2:]


class Server:
    """The service: one request at a time."""

    def __init__(self, speed, jpeg):
        self.lock = threading.Lock()
        self.speed = speed
        self.faults = dict(FAULTS)
        self.counts = {}
        self.log = []
        self.began = time.monotonic()
        self.camera = Camera(jpeg)
        self.arm = None
        self.inits = 0
        self.others = False  # it was initialised with other parameters before
        self.image_size = None
        self.compiled = False

    def set(self, faults):
        unknown = set(faults) - set(FAULTS)
        if unknown:
            raise SystemExit(f"unknown faults: {sorted(unknown)}")
        with self.lock:
            self.faults.update(faults)
            self.counts = {}

    def restart(self):
        with self.lock:
            self.arm, self.inits, self.compiled, self.counts = None, 0, False, {}
            self.others = False
            self.faults = dict(FAULTS)

    def note(self, key, values):
        self.log.append([round(time.monotonic() - self.began, 4), key, values])

    def count(self, key):
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]

    def reinitialise(self, closed_secs):
        """What the server does after any exception while a robot exists, with its port closed."""
        with self.lock:
            if self.arm is None:
                return
            began = time.monotonic()
            self.note("reinit", None)
            self.inits += 1
            self.arm = Arm(self.arm.params, self.image_size, self.speed)
            time.sleep(max(0.0, closed_secs - (time.monotonic() - began)))

    def act(self, key, payload):
        nth = self.count(key)
        status = self.faults["status"]
        if status and status[0] == key:
            return {"status": status[1]}
        if key not in CONFIG["action_keys"]:
            return {"status": 2}
        silent = self.faults["silent_at"]
        if silent and silent[0] == key and silent[1] == nth and not self.faults["silent_executes"]:
            raise Silence
        if key == "init":
            self.note("init", {"image_size": payload["image_size"]})
            params, self.image_size = payload["env_params"], payload["image_size"]
            if self.arm is None or params != self.arm.params:
                self.others |= self.arm is not None
                self.arm = Arm(params, self.image_size, self.speed)
                self.inits += 1
                self.arm.sleep(1.6)
            else:
                self.arm.reset()
        elif self.arm is None:
            return {"status": 3}
        elif key == "reset":
            self.note("reset", None)
            self.arm.reset()
        elif key == "move":
            self.note("move", [float(v) for v in np.asarray(payload["pose"]).ravel()])
            payload["pose"].shape  # a list has none: AttributeError, as in the real server
            if nth == self.faults["effort_at_move"]:
                self.arm.grip(1.0)
                self.arm.neutral(1.5)
                return {"status": 2}
            self.arm.move(payload["pose"], payload["duration"])
        elif key == "step_action":
            action = payload["action"]
            if action.shape != (7,):
                raise ValueError("action")
            self.note("step_action", [float(v) for v in action])
            if nth == self.faults["die_at_step"]:
                os._exit(1)
            if not self.compiled:
                self.compiled = True
                self.arm.sleep(1.5)
            self.arm.step(action.astype(float), self.faults["unreachable"])
            if nth == self.faults["effort_at_step"]:
                self.arm.grip(1.0)
                self.arm.neutral(1.5)
                raise RuntimeError("motor effort")
            seconds = self.faults["step_secs"]
            time.sleep(0.06 if seconds is None else seconds)
        elif key == "gripper":
            self.note("gripper", payload["open"])
            self.arm.grip(1.0 if payload["open"] > 0.5 else 0.0)
        elif key == "reboot_motor":
            self.note("reboot_motor", payload["joint_name"])
        if silent and silent[0] == key and silent[1] == nth:
            raise Silence
        if key == "step_action" and self.faults["lose_every_reply"]:
            raise Silence
        delay = self.faults["delay"]
        if delay and delay[0] == key and delay[1] == nth:
            time.sleep(delay[2])
        return {"status": 1}

    def obs(self):
        nth = self.count("obs")
        if self.arm is None:
            noise = np.random.randint(0, 255, (480, 640, 3), dtype=np.uint8)
            return {"image": noise, "state": {}, "full_image": noise}
        silent = self.faults["silent_at"]
        if silent and silent[0] == "obs" and silent[1] == nth:
            raise Silence
        if nth == self.faults["die_at_obs"]:
            os._exit(1)
        if nth == self.faults["camera_dead_at"]:
            time.sleep(1.0)
            raise RuntimeError("Image_Exception")
        if nth == self.faults["reinit_quietly_at_obs"]:
            self.arm = Arm(self.arm.params, self.image_size, 1e6)
        delay = self.faults["delay"]
        if delay and delay[0] == "obs" and delay[1] == nth:
            time.sleep(delay[2])
        seconds = self.faults["obs_secs"]
        time.sleep(0.01 if seconds is None else seconds)
        opening = self.arm.opening()
        if self.faults["gripper_fights"] or self.others:
            # The older controller still pulls to where it was told last: open.
            opening += (1.0 - opening) * (0.5 + 0.5 * np.sin(2.0 * np.pi * time.monotonic() / 1.6))
        elif self.faults["gripper_stuck"] or self.inits > 1:
            opening = 0.97
        self.note("obs", None)
        state = np.concatenate([self.arm.pose(), [opening]])
        bad = self.faults["bad_reply_at"]
        if bad and bad[0] == nth:
            kind = bad[1]
            if kind == "wrong_state":
                return {"image": np.zeros(3), "state": state[:5], "full_image": b"x"}
            if kind == "nan_state":
                state[1] = np.nan
            elif kind == "no_jpeg":
                return {"image": np.zeros(3), "state": state, "full_image": b"no picture"}
            else:
                return kind
        jpeg = self.camera.frame(self.faults["camera_frozen"])
        image = np.zeros((1, 3 * self.arm.image_size**2), dtype=np.float32)
        return {"image": image, "state": state, "full_image": jpeg}

    def answer(self, body):
        """The reply's body, or Silence, or the exception that the request met."""
        with self.lock:
            try:
                message = pickle.loads(lz4.frame.decompress(body))
                kind = message["type"]
                if kind == "hash":
                    config = dict(CONFIG, **(self.faults["hash"] or {}))
                    reply = {"success": True, "payload": json.dumps(config, separators=(",", ":"))}
                elif kind == "obs":
                    reply = self.obs()
                elif kind == "act":
                    reply = self.act(message["key"], message["payload"])
                else:
                    reply = {"success": False, "message": "Invalid payload"}
            except Silence:
                raise
            except Exception as error:  # the real server does the same with every exception
                print(f"exception: {error!r}", file=sys.stderr, flush=True)
                raise
        if isinstance(reply, str):
            packed = lz4.frame.compress(pickle.dumps({"status": 1}, protocol=4))
            return {
                "garbage": b"\x00\x01\x02garbage",
                "truncated": packed[:-9],
                "empty": b"",
                "huge": lz4.frame.compress(pickle.dumps(b"\0" * (40 << 20), protocol=4)),
                "text": lz4.frame.compress(pickle.dumps("hello", protocol=4)),
            }[reply]
        return lz4.frame.compress(pickle.dumps(reply, protocol=4))


def grey_jpeg():
    """A 640 x 480 JPEG of one colour, built by hand: no imaging package is needed."""
    quant = bytes([1] * 64)
    out = b"\xff\xd8\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0\1\1\0\0\1\0\1\0\0"
    out += b"\xff\xdb" + struct.pack(">HB", 67, 0) + quant
    out += b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 480, 640, 3)
    out += b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3))
    # Huffman tables: DC with the code 0 for "no difference" and 10 for 8 bits; AC with the code 0 for "end of block".
    out += b"\xff\xc4" + struct.pack(">HB", 21, 0x00) + bytes([1, 1] + [0] * 14) + bytes([0, 8])
    out += b"\xff\xc4" + struct.pack(">HB", 20, 0x10) + bytes([1] + [0] * 15) + bytes([0])
    out += b"\xff\xda" + struct.pack(">HB", 12, 3) + b"".join(bytes([i, 0x00]) for i in (1, 2, 3)) + b"\0\x3f\0"
    # The first block of each component sets its level, all others repeat it.
    bits = ""
    for block in range(80 * 60):
        for level in (-160 + 0, 200, -180):
            if block == 0:
                value = level if level > 0 else level + 255
                bits += "10" + format(value, "08b") + "0"
            else:
                bits += "00"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    return out + data + b"\xff\xd9"


def commands(server):
    """JSON lines on stdin; its end ends the process, so that no stand-in outlives its test."""
    for line in sys.stdin:
        command = json.loads(line)
        what = command["do"]
        reply = {}
        if what == "set":
            server.set(command["faults"])
        elif what == "log":
            reply = {"log": list(server.log)}
        elif what == "clear":
            server.log = []
        elif what == "restart":
            server.restart()
        elif what == "state":
            arm = server.arm
            reply = {"initialised": arm is not None, "inits": server.inits}
            if arm is not None:
                reply["pose"] = [float(v) for v in arm.pose()]
                reply["opening"] = float(arm.opening())
                reply["target"] = None if arm.target is None else [float(v) for v in arm.target]
        print(json.dumps(reply), flush=True)
    os._exit(0)


def main():
    """Serves until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--closed-secs", type=float, default=1.0)
    parser.add_argument("--faults", type=json.loads, default={})
    args = parser.parse_args()
    server = Server(args.speed, grey_jpeg())
    server.set(args.faults)
    context = zmq.Context()

    def listen(port):
        socket = context.socket(zmq.REP)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 5)
        socket.setsockopt(zmq.RCVTIMEO, 1500)
        if port:
            for _ in range(200):
                try:
                    socket.bind(f"tcp://127.0.0.1:{port}")
                    return socket, port
                except zmq.ZMQError:
                    time.sleep(0.01)  # the old socket is being closed
            raise SystemExit("the port is taken")
        return socket, socket.bind_to_random_port("tcp://127.0.0.1")

    socket, port = listen(args.port)
    print(json.dumps({"port": port, "crc": zlib.crc32(server.camera.jpeg)}), flush=True)
    threading.Thread(target=commands, args=(server,), daemon=True).start()
    while True:
        try:
            body = socket.recv()
        except zmq.Again:
            continue
        try:
            socket.send(server.answer(body))
        except Silence:
            socket.close()
            socket, port = listen(port)
        except Exception:  # as the real server: closed, the robot initialised again, and only then opened
            socket.close()
            server.reinitialise(args.closed_secs)
            socket, port = listen(port)


if __name__ == "__main__":
    main()
