"""Resets without rebuilding the model that equal, bit for bit, those that do.

robosuite's hard reset parses the MJCF, compiles the model and makes a new GL context (1 to 3 CPU-seconds); its soft reset
takes 0.06 s, but differs where a run changed the model (fixture poses, site colours) and in the solver's warm start: a
hard reset runs one forward pass after loading and one more when it makes the renderer, and each pass warms the next.
Both sequences are made equal here: a soft reset restores every small field of the model and runs the same two passes, and
a hard reset without a renderer runs the second pass too. So cameras on or off, soft or hard, give the same states.
"""

import numpy as np

SMALL_FIELD_BYTES = 256 * 1024  # meshes, textures and height fields are larger, and nothing writes to them


class PristineModel:
    """Keeps a robosuite environment's freshly loaded model, to return to it."""

    def __init__(self):
        self._env = None
        self._fields = {}

    def watching(self, problem):
        """A subclass of the LIBERO problem class `problem` that notes its model whenever it loads one."""
        pristine = self

        def _initialize_sim(env, xml_string=None):
            problem._initialize_sim(env, xml_string)
            pristine._env = env
            pristine.remember()
            if not env.has_offscreen_renderer:
                env.sim.forward()  # what making the renderer would do

        # The same name: LIBERO compares it with the task file's.
        return type(problem)(problem.__name__, (problem,), {"_initialize_sim": _initialize_sim})

    def remember(self):
        """Notes the fields of the model as they are now, before any placement."""
        model = self._env.sim.model._model
        self._fields = {}
        for name in dir(model):
            if name.startswith("_"):
                continue
            value = getattr(model, name)
            if isinstance(value, np.ndarray) and 0 < value.nbytes <= SMALL_FIELD_BYTES and value.flags.writeable:
                self._fields[name] = value.copy()

    def restore(self):
        """Puts the model back and clears the data, as right after loading."""
        sim = self._env.sim
        model = sim.model._model
        for name, value in self._fields.items():
            getattr(model, name)[...] = value
        sim.reset()
        sim.forward()
        sim.forward()

    def soft_reset(self):
        """`env.reset()` without rebuilding; returns nothing."""
        env = self._env
        self.restore()
        env.hard_reset = False
        # `restore` has cleared the data; robosuite's own clearing would undo the forward passes.
        env.sim.reset = lambda: None
        try:
            env.reset()
        finally:
            del env.sim.reset
            env.hard_reset = True

    def hard_reset(self):
        """`env.reset()` as LIBERO does it; returns nothing."""
        self._env.hard_reset = True
        self._env.reset()
