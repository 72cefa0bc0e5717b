"""Stored initial states, read without running anything that a file brings along.

A `.pruned_init` file is what `torch.save` writes: a zip with `<name>/data.pkl` holding one pickled numpy array. A pickle
can run any code, so this unpickler knows the four names that an array needs and refuses every other.
"""

import codecs
import io
import pickle
import zipfile

import numpy as np

MAX_BYTES = 64 * 1024 * 1024  # the largest file of LIBERO has 50 x 123 f64, 0.05 MB

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file asks for `{module}.{name}`; an initial-state file holds a numpy array and nothing else"
            ) from None

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("the file holds torch tensors; expected one numpy array")


def read_init_states(path):
    """`[n, 1 + nq + nv]` f64: time, positions, velocities per initial state."""
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith("/data.pkl")]
        if len(members) != 1:
            raise ValueError(f"{path}: expected one data.pkl, found {len(members)}")
        if members[0].file_size > MAX_BYTES:
            raise ValueError(f"{path}: data.pkl has {members[0].file_size} bytes; the limit is {MAX_BYTES}")
        raw = archive.read(members[0])
    states = _ArrayUnpickler(io.BytesIO(raw)).load()
    if not isinstance(states, np.ndarray) or states.dtype != np.float64 or states.ndim != 2:
        kind = f"{states.dtype} {states.shape}" if isinstance(states, np.ndarray) else type(states).__name__
        raise ValueError(f"{path}: expected a two-dimensional float64 array, found {kind}")
    if not np.isfinite(states).all():
        raise ValueError(f"{path}: holds non-finite numbers")
    return np.ascontiguousarray(states)
