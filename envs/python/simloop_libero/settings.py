"""The configuration that the other side sends with `hello`."""

from .errors import ConfigError

FIXTURE_SEEDING = ("per_trial", "openvla", "openpi", "lerobot")  # explained in `scenes`
RESET_MODES = ("auto", "soft", "hard")
IMAGE_TRANSFORMS = ("none", "flip_vertical", "rot180")
FIELDS = {
    "task": str,
    "assets": str,
    "cache_dir": (str, type(None)),
    "gl": str,
    "cameras": list,
    "image_size": list,
    "image_transform": str,
    "video": bool,
    "frame_slots": int,
    "fixture_seeding": str,
    "reset_mode": str,
    "settle_steps": int,
    "settle_action": list,
    "step_limits": dict,
    "privileged": bool,
}
CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "birdview", "sideview", "galleryview")


class Settings:
    """Checked configuration; every field is required, unknown ones are refused."""

    control_hz = 20  # LIBERO's control_freq; 25 simulated steps of 2 ms

    def __init__(self, config):
        unknown = sorted(set(config) - set(FIELDS))
        missing = sorted(set(FIELDS) - set(config))
        if unknown or missing:
            raise ConfigError(f"configuration: unknown fields {unknown}, missing fields {missing}")
        for name, kind in FIELDS.items():
            if not isinstance(config[name], kind):
                raise ConfigError(f"`{name}` is a {type(config[name]).__name__}")
            setattr(self, name, config[name])
        one_of("image_transform", self.image_transform, IMAGE_TRANSFORMS)
        one_of("reset_mode", self.reset_mode, RESET_MODES)
        one_of("fixture_seeding", self.fixture_seeding, FIXTURE_SEEDING)
        for camera in self.cameras:
            one_of("cameras", camera, CAMERAS)
        self.height, self.width = (int(n) for n in self.image_size)
        if not (16 <= self.height <= 1024 and 16 <= self.width <= 1024):
            raise ConfigError(f"`image_size` is {self.image_size}; each side lies between 16 and 1024")
        if len(self.settle_action) != 7:
            raise ConfigError("`settle_action` has not 7 numbers")
        if not 0 <= self.settle_steps <= 1000:
            raise ConfigError(f"`settle_steps` is {self.settle_steps}")

    @property
    def renders(self):
        """Whether anyone looks: policies through cameras, people through videos."""
        return bool(self.cameras) or self.video

    def step_limit(self, suite):
        """Steps after which an episode is truncated, or None."""
        limit = self.step_limits.get(suite)
        return None if limit is None else int(limit)


def one_of(name, value, choices):
    """Refuses a value outside its choices."""
    if value not in choices:
        raise ConfigError(f"`{name}` is `{value}`; choose one of {', '.join(choices)}")
