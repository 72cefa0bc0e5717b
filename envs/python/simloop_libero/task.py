"""One LIBERO task: build, reset, step, observe."""

import os

import numpy as np

from .errors import ConfigError, InvalidAction, NeedsReset
from .init_states import read_init_states
from .privileged import PrivilegedState
from .scenes import Scenes
from .soft_reset import PristineModel

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
ACTION_DIM = 7
# Everything that is read at every step. The rest (poses of objects relative to the hand, ...) would cost CPU for nobody.
PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
PROPRIO_NAMES = (
    "eef_x_m", "eef_y_m", "eef_z_m",
    "eef_axis_angle_x_rad", "eef_axis_angle_y_rad", "eef_axis_angle_z_rad",
    "gripper_left_m", "gripper_right_m",
)  # fmt: skip
TRANSFORMS = {
    "none": lambda image: image,  # as OpenGL stores it: upside down
    "flip_vertical": lambda image: image[::-1],  # upright
    "rot180": lambda image: image[::-1, ::-1],  # upright and mirrored, as OpenVLA and openpi train
}
VIDEO_CAMERA = "agentview"

_benchmarks = {}


def benchmark(suite):
    """LIBERO's own benchmark object of a suite, task order 0."""
    if suite not in SUITES:
        raise ConfigError(f"unknown suite `{suite}`; expected one of {', '.join(SUITES)}")
    if suite not in _benchmarks:
        from libero.libero.benchmark import get_benchmark

        _benchmarks[suite] = get_benchmark(suite)()
    return _benchmarks[suite]


def parse_task(name):
    """`libero_spatial/3` as (suite, index)."""
    suite, slash, index = name.rpartition("/")
    if not slash or not index.isdigit():
        raise ConfigError(f"task `{name}`; expected <suite>/<index>, for example libero_spatial/3")
    count = benchmark(suite).get_num_tasks()
    if int(index) >= count:
        raise ConfigError(f"task `{name}`: {suite} has tasks 0 to {count - 1}")
    return suite, int(index)


def init_states_of(suite, index):
    """`[n, 1 + nq + nv]` f64."""
    from libero.libero import get_libero_path

    task = benchmark(suite).get_task(index)
    return read_init_states(os.path.join(get_libero_path("init_states"), task.problem_folder, task.init_states_file))


class TaskEnv:
    """LIBERO's environment of one task, with resets that depend on the request alone."""

    def __init__(self, name, settings):
        self.name = name
        suite, index = parse_task(name)
        self.suite = suite
        self._settings = settings
        self.instruction = benchmark(suite).get_task(index).language
        self.init_states = init_states_of(suite, index)
        self.step_limit = settings.step_limit(suite)
        self._transform = TRANSFORMS[settings.image_transform]
        self._steps = None
        self._trial = 0
        self._build(benchmark(suite).get_task_bddl_file_path(index))

    def _build(self, bddl):
        import robosuite.utils.transform_utils as transforms
        from libero.libero.envs import bddl_base_domain, bddl_utils
        from libero.libero.envs.env_wrapper import ControlEnv

        self._axis_angle_from_quat_xyzw = transforms.quat2axisangle
        settings = self._settings
        problem = bddl_utils.get_problem_info(bddl)["problem_name"]
        mapping = bddl_base_domain.TASK_MAPPING
        self._pristine = PristineModel()
        plain = mapping[problem]
        mapping[problem] = self._pristine.watching(plain)
        try:
            self.control = ControlEnv(
                bddl_file_name=bddl,
                use_camera_obs=bool(settings.cameras),
                has_offscreen_renderer=settings.renders,
                camera_names=list(settings.cameras) or VIDEO_CAMERA,
                camera_heights=settings.height,
                camera_widths=settings.width,
                control_freq=settings.control_hz,
                # robosuite raises once its own `horizon` is over; the limit is the protocol's business.
                ignore_done=True,
            )
        finally:
            mapping[problem] = plain
        self.env = self.control.env
        self.cameras = [(name, self.env._observables[f"{name}_image"]) for name in settings.cameras]
        images = {id(observable) for _, observable in self.cameras}
        for name, observable in self.env._observables.items():
            observable._enabled = name in PROPRIO
            if id(observable) in images:
                observable._enabled = False
        self._clock = self.env._observables[PROPRIO[0]]
        self.scenes = Scenes(settings.fixture_seeding, self.env, self._pristine)
        self._hard = settings.reset_mode == "hard"
        self._privileged = PrivilegedState(self.env) if settings.privileged else None

    # Episodes

    def reset(self, seed, init_state, state):
        """Begins an episode; the stored initial state's index, or None for an explicit state."""
        index = self._choose(seed, init_state)
        self._steps = None
        self._look(False)
        self.scenes.reset(seed, index, self._hard)
        settle = self._settings.settle_steps if state is None else 0
        start = self.init_states[index] if state is None else self._explicit(state)
        self._look(settle == 0)
        observation = self.control.set_init_state(start)
        for i in range(settle):
            self._look(i + 1 == settle)
            observation = self.env.step(self._settings.settle_action)[0]
        self._look(False)
        self._steps = 0
        self._trial = index + 1
        if self._privileged is not None:
            self._privileged.rebind()
        return observation, (index if state is None else None)

    def _choose(self, seed, init_state):
        if init_state is not None:
            return self.check_init_state(init_state)
        return (seed if seed is not None else self._trial) % len(self.init_states)

    def check_init_state(self, index):
        """The index itself, if there is such an initial state."""
        if not 0 <= index < len(self.init_states):
            raise ConfigError(f"initial state {index}: {self.name} has states 0 to {len(self.init_states) - 1}")
        return index

    def _explicit(self, state):
        state = np.asarray(state, dtype=np.float64)
        if state.shape != self.init_states[0].shape or not np.isfinite(state).all():
            raise ConfigError(
                f"a state of {state.size} numbers; {self.name} takes {self.init_states.shape[1]} finite ones "
                "(time, positions, velocities)"
            )
        return state

    def step(self, action, look):
        """One action: observation, reward, terminated, truncated."""
        if self._steps is None:
            raise NeedsReset("the episode is over or none has begun; call reset")
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise InvalidAction(f"an action of {action.shape} {action}; expected {ACTION_DIM} finite numbers")
        self._look(look)
        try:
            observation, reward, success, _ = self.env.step(action.astype(np.float64))
        finally:
            self._look(False)
        self._steps += 1
        success = bool(success)
        truncated = not success and self.step_limit is not None and self._steps >= self.step_limit
        if success or truncated:
            self._steps = None
        return observation, float(reward), success, truncated

    def _look(self, on):
        """Cameras on or off for the coming control step.

        Observables sample 2 ms before a control step ends, by clocks of their own that stand while they are off. A
        camera that is switched on takes over the clock of a sensor that was always on, so it samples when it would have.
        """
        for _, camera in self.cameras:
            camera._enabled = on
            camera._time_since_last_sample = self._clock._time_since_last_sample
            camera._sampled = self._clock._sampled

    # What there is to see

    def proprio(self, observation):
        """`[8]` f32: position of the hand (m), its axis-angle (rad), both fingers (m), as OpenVLA and openpi build it."""
        return np.concatenate(
            (
                observation["robot0_eef_pos"],
                self._axis_angle_from_quat_xyzw(observation["robot0_eef_quat"].copy()),
                observation["robot0_gripper_qpos"],
            )
        ).astype("<f4")

    def images(self, observation):
        """Camera name to `[H, W, 3]` u8, transformed as the protocol says."""
        return {name: self._transform(observation[f"{name}_image"]) for name, _ in self.cameras}

    def render(self):
        """An upright frame for people, or None without a renderer."""
        if not self._settings.renders:
            return None
        sim = self.env.sim
        return sim.render(camera_name=VIDEO_CAMERA, height=self._settings.height, width=self._settings.width)[::-1]

    def success(self):
        """LIBERO's goal predicate, now."""
        return bool(self.env._check_success())

    def privileged(self):
        """Values and layout for scripted experts, or None."""
        return None if self._privileged is None else self._privileged.read()

    def state(self):
        """`[1 + nq + nv]` f64: the simulator's state."""
        return self.control.get_sim_state()

    def close(self):
        """Frees the model and the renderer."""
        self.control.close()
