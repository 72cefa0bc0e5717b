"""The operations of the protocol."""

import os
import traceback

import numpy as np

from . import bootstrap
from .errors import ConfigError, HandshakeError, InvalidAction, NeedsReset, Unavailable, WorkerError
from .settings import Settings
from .wire import ImageArea

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Server:
    """Answers requests one by one; holds at most one task's environment."""

    def __init__(self, images_fd, magic, proto, adapter, adapter_version):
        self._images_fd = images_fd
        self._identity = {"magic": magic, "proto": proto, "adapter": adapter, "adapter_version": adapter_version}
        self._settings = None
        self.task = None
        self.versions = {}
        self._layout = None
        self._spec = None

    def serve(self, channel):
        """Until `close` or until the other side is gone."""
        operations = {"hello": self.hello, "reset": self.reset, "step": self.step, "render": self.render, "call": self.call}
        while True:
            request = channel.receive()
            if request is None:
                return
            ident, op = request.get("id"), request.get("op")
            if op == "close":
                channel.send({"id": ident, "ok": {}})
                return
            try:
                if op not in operations:
                    raise WorkerError(f"unknown operation `{op}`")
                if op != "hello" and self._settings is None:
                    raise HandshakeError(f"`{op}` before hello")
                answer = {"id": ident, "ok": operations[op](request)}
            except Exception as error:  # everything the simulator can raise belongs to the other side
                answer = {"id": ident, "err": describe(error)}
            if not channel.send(answer):
                return

    def hello(self, request):
        ours = self._identity
        if request.get("magic") != ours["magic"] or request.get("proto") != ours["proto"]:
            raise HandshakeError(
                f"this worker speaks {ours['magic']} {ours['proto']}, "
                f"the other side {request.get('magic')!r} {request.get('proto')!r}"
            )
        settings = Settings(request.get("config") or {})
        backend = bootstrap.import_libero(settings.assets, settings.gl, settings.renders, settings.cache_dir)
        from . import task

        suite, _ = task.parse_task(settings.task)
        slots = settings.frame_slots * len(settings.cameras) + (1 if settings.renders else 0)
        self._images = ImageArea(self._images_fd, settings.height, settings.width, slots)
        self.versions = bootstrap.versions(backend)
        self._settings = settings
        self._spec = self._spec_of(suite)
        return {
            **ours,
            "pid": os.getpid(),
            "versions": self.versions,
            "spec": self._spec,
            "shm_bytes": self._images.bytes,
        }

    def _spec_of(self, suite):
        from .task import ACTION_DIM, PROPRIO_NAMES

        settings = self._settings
        wrappers = [f"settle_{settings.settle_steps}_steps"] if settings.settle_steps else []
        if settings.cameras:
            wrappers.append(f"images_{settings.image_transform}")
        limit = settings.step_limit(suite)
        if limit is not None:
            wrappers.append(f"time_limit_{limit}")
        infinity = float("inf")
        return {
            "id": f"{suite}-v1",
            "observation": {
                "images": {name: {"height": settings.height, "width": settings.width} for name in settings.cameras},
                "proprio": {
                    "names": list(PROPRIO_NAMES),
                    "low": [-infinity] * len(PROPRIO_NAMES),
                    "high": [infinity] * len(PROPRIO_NAMES),
                },
            },
            "action": {
                "names": ["dx", "dy", "dz", "rx", "ry", "rz", "gripper"],
                "low": [-1.0] * ACTION_DIM,
                "high": [1.0] * ACTION_DIM,
            },
            # robosuite controllers/config/osc_pose.json: output_max 0.05 m and 0.5 rad, deltas in the world frame
            "convention": {
                "control": {"kind": "delta_pose", "translation_m": 0.05, "rotation_rad": 0.5},
                "frame": "world",
                "gripper": "negative_opens",
            },
            "control_hz": float(settings.control_hz),
            "max_episode_steps": limit,
            "wrappers": wrappers,
            "versions": self.versions,
        }

    def switch_to(self, name):
        """The environment of a task, building it if another one is up."""
        from .task import TaskEnv, parse_task

        parse_task(name)
        if self.task is None or self.task.name != name:
            if self.task is not None:
                self.task.close()
                self.task = None
            self.task = TaskEnv(name, self._settings)
        return self.task

    def running(self):
        """The environment that is up."""
        if self.task is None:
            raise NeedsReset("no task is up; call reset")
        return self.task

    def reset(self, request):
        options = request.get("options") or {}
        unknown = set(options) - {"task", "init_state", "state"}
        if unknown:
            raise ConfigError(f"unknown reset options {sorted(unknown)}")
        name = options.get("task") or (self.task.name if self.task else self._settings.task)
        task = self.switch_to(name)
        observation, init_state = task.reset(request.get("seed"), options.get("init_state"), options.get("state"))
        self._layout = None  # every reset reply carries it
        info = self._info(task.success())
        if init_state is not None:
            info["metrics"]["init_state"] = float(init_state)
        obs = self._observation(observation, 0, True)
        obs["instruction"] = task.instruction
        reply = {"obs": obs, "info": info, "rss": resident_bytes()}
        spec = self._spec_of(task.suite)
        if spec != self._spec:
            self._spec = spec
            reply["spec"] = spec
        return reply

    def step(self, request):
        task = self.running()
        count, frames = request["n"], request["frames"]
        flat = np.frombuffer(request["actions"], dtype="<f4")
        if count < 1 or flat.size % count:
            raise InvalidAction(f"{flat.size} numbers do not divide into {count} actions")
        looks = frames_wanted(frames, count)
        if looks > self._settings.frame_slots and self._settings.cameras:
            raise InvalidAction(f"a chunk with frames of {looks} steps; `frame_slots` is {self._settings.frame_slots}")
        steps = []
        for i, action in enumerate(flat.reshape(count, -1)):
            slot = i - (count - looks)
            look = slot >= 0
            observation, reward, terminated, truncated = task.step(action, look)
            steps.append(
                {
                    "obs": self._observation(observation, slot, look),
                    "reward": reward,
                    "terminated": terminated,
                    "truncated": truncated,
                    "info": self._info(terminated),
                }
            )
            if terminated or truncated:
                break
        return {"steps": steps, "rss": resident_bytes()}

    def _observation(self, observation, slot, look):
        images = {}
        if look:
            first = slot * len(self._settings.cameras)
            for i, (name, image) in enumerate(self.task.images(observation).items()):
                images[name] = self._images.put(first + i, image)
        return {"images": images, "proprio": self.task.proprio(observation).tobytes()}

    def _info(self, success):
        info = {"success": success, "metrics": {}, "privileged": None}
        privileged = self.task.privileged()
        if privileged is not None:
            values, layout = privileged
            info["privileged"] = values.astype("<f8").tobytes()
            if layout != self._layout:
                self._layout = layout
                info["layout"] = layout
        return info

    def render(self, _request):
        frame = self.running().render()
        return {"frame": None if frame is None else self._images.put(self._images.slots - 1, frame)}

    def call(self, request):
        from . import calls

        name = request.get("name")
        if name not in calls.TABLE:
            raise ConfigError(f"unknown call `{name}`; expected one of {', '.join(sorted(calls.TABLE))}")
        return {"result": calls.TABLE[name](self, request.get("args") or {})}


def frames_wanted(frames, count):
    """How many of the last steps of a chunk of `count` carry images."""
    if isinstance(frames, dict) and isinstance(frames.get("last_n"), int):
        return max(0, min(frames["last_n"], count))
    wanted = {"none": 0, "last": 1, "every": count}
    if not isinstance(frames, str) or frames not in wanted:
        raise ConfigError(f"`frames` is `{frames}`; choose one of {', '.join(wanted)}, {{'last_n': n}}")
    return wanted[frames]


def describe(error):
    """An exception as the protocol's error."""
    if isinstance(error, Unavailable):
        return {"kind": error.kind, "message": str(error), "trace": error.remedy}
    trace = "" if isinstance(error, WorkerError) else "".join(traceback.format_exception(error))
    kind = error.kind if isinstance(error, WorkerError) else type(error).__name__
    return {"kind": kind, "message": str(error), "trace": trace}


def resident_bytes():
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE_BYTES
