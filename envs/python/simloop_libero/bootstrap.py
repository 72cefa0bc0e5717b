"""Imports LIBERO and robosuite without a prompt, the network, torch, gymnasium or matplotlib, patching no file.

* `libero.libero` asks a question on standard input unless `$LIBERO_CONFIG_PATH/config.yaml` exists when it is imported.
* It looks for assets in its own folder, else downloads them; a module-level cache holds the answer, so setting that
  cache points it at any folder, without a symlink, for as many processes as are starting.
* torch is imported for `torch.load` alone, gymnasium and matplotlib for classes that a plain environment never uses.
"""

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import types

from .errors import ConfigError, Unavailable
from .init_states import read_init_states

INSTALL = "run `make libero`"


class _Stub(types.ModuleType):
    """A module whose every attribute is an empty class: enough to be imported and to annotate with."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _stub(*names):
    for name in names:
        module = _Stub(name)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def choose_gl(wanted, renders):
    """Sets MUJOCO_GL for this process and returns the name of the chosen back end.

    `auto` keeps the user's own MUJOCO_GL, else takes EGL where its library exists and OSMesa otherwise. Where nobody
    looks, no GL library is loaded at all.
    """
    if not renders:
        os.environ["MUJOCO_GL"] = "disable"
        return "none"
    from ctypes.util import find_library

    if wanted == "auto":
        wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
        if wanted not in ("egl", "osmesa"):
            wanted = "egl" if find_library("EGL") else "osmesa"
    if wanted not in ("egl", "osmesa"):
        raise ConfigError(f"`gl` is `{wanted}`; choose auto, egl or osmesa")
    if not find_library("EGL" if wanted == "egl" else "OSMesa"):
        package = "libegl1 libegl-mesa0 libgl1-mesa-dri libgbm1" if wanted == "egl" else "libosmesa6"
        raise Unavailable(f"a GL library for MUJOCO_GL={wanted}", f"apt-get install {package}")
    os.environ["MUJOCO_GL"] = wanted
    os.environ["PYOPENGL_PLATFORM"] = wanted  # robosuite raises if it is set to the other one
    return wanted


def _keep_numba_cache(cache_dir):
    """robosuite compiles with numba at the first step, 10 CPU-seconds; the cache must lie somewhere writable."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    package = importlib.util.find_spec("robosuite")
    folder = os.path.join(os.path.dirname(package.origin), "utils")
    if not os.access(folder, os.W_OK) and cache_dir:
        os.environ["NUMBA_CACHE_DIR"] = os.path.join(cache_dir, "numba")


def _silence_robosuite():
    # robosuite.macros reads this module if it exists, and complains on the console if it does not.
    private = types.ModuleType("robosuite.macros_private")
    private.CONSOLE_LOGGING_LEVEL = "ERROR"
    private.FILE_LOGGING_LEVEL = None
    private.MUJOCO_GPU_RENDERING = False  # it would force MUJOCO_GL=egl over our choice
    sys.modules["robosuite.macros_private"] = private
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)


def import_libero(assets, gl, renders, cache_dir):
    """Imports everything once; returns the chosen GL back end."""
    for package in ("libero", "robosuite", "mujoco", "bddl"):
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"the Python package `{package}` in {sys.prefix}", INSTALL)
    if not os.path.isfile(os.path.join(assets, "scenes", "libero_tabletop_base_style.xml")):
        raise Unavailable(
            f"LIBERO's assets in `{assets}`",
            "give their folder with --assets or $LIBERO_ASSETS, or run `bench libero --download-assets`",
        )
    backend = choose_gl(gl, renders)
    _keep_numba_cache(cache_dir)
    _silence_robosuite()
    _stub("torch", "gym", "gymnasium", "matplotlib", "matplotlib.cm", "matplotlib.pyplot")
    sys.modules["torch"].load = lambda path, **_: read_init_states(path)

    # A sampler of LIBERO opens the debugger before it raises; nobody sits at the keyboard.
    sys.modules["pdb"] = _Stub("pdb")
    sys.modules["pdb"].set_trace = lambda *_, **__: None

    spec = importlib.util.find_spec("libero")
    root = os.path.join(list(spec.submodule_search_locations)[0], "libero")
    paths = {
        "benchmark_root": root,
        "bddl_files": os.path.join(root, "bddl_files"),
        "init_states": os.path.join(root, "init_files"),
        "datasets": os.path.join(root, "datasets"),
        "assets": assets,
    }
    config = tempfile.mkdtemp(prefix="simloop-libero-")
    try:
        with open(os.path.join(config, "config.yaml"), "w") as file:
            file.write("".join(f"{key}: {value!r}\n" for key, value in paths.items()))
        os.environ["LIBERO_CONFIG_PATH"] = config
        import libero.libero as package

        package._assets_path_cache = assets
        # The file is needed for this import alone: every module below binds this function instead.
        package.get_libero_path = paths.__getitem__
        import libero.libero.benchmark
        import libero.libero.envs
    finally:
        shutil.rmtree(config, ignore_errors=True)
    return backend


def versions(backend):
    """Versions of everything that decides a result."""
    from importlib.metadata import PackageNotFoundError, version

    def of(*names):
        for name in names:
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return "unknown"

    return {
        "python": sys.version.split()[0],
        "libero": of("hf-libero", "hf_libero", "libero"),
        "robosuite": of("robosuite"),
        "mujoco": of("mujoco"),
        "numpy": of("numpy"),
        "numba": of("numba"),
        "bddl": of("bddl"),
        "renderer": backend,
    }
