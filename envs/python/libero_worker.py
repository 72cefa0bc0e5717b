"""LIBERO worker: one simulator in one process, spoken to over an inherited socket.

Wire protocol v1. File descriptor 3 is a UNIX stream socket, 4 a memfd for images. A frame is a little-endian u32 length
and one msgpack map. Requests are `{"id", "op", ...}`, answers `{"id", "ok": {...}}` or
`{"id", "err": {"kind", "message", "trace"}}`. Operations: hello, reset, step, render, call, close.

Standard output belongs to LIBERO and robosuite, which print to it: it is joined to standard error before anything else
is imported, and neither is ever parsed.
"""

import ctypes
import os
import signal
import sys

MAGIC = "simloop-bridge"
PROTO = 1
ADAPTER = "libero"
ADAPTER_VERSION = "1"
SOCKET_FD = 3
IMAGES_FD = 4
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def settle_in():
    """Ties this process to its parent and keeps stray output away from the protocol."""
    os.dup2(2, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the line above: then nobody would ever end this process.
    parent = os.environ.get("SIMLOOP_BRIDGE_PARENT")
    if parent is not None and os.getppid() != int(parent):
        os._exit(0)
    # Small matrices: more threads only cost CPU, and one thread keeps the arithmetic in one order.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def main():
    settle_in()
    here = os.path.dirname(os.path.abspath(__file__))
    if here not in sys.path:
        sys.path.insert(0, here)

    import faulthandler

    faulthandler.enable()  # a crash in native code leaves its stack on standard error

    from simloop_libero.server import Server
    from simloop_libero.wire import Channel

    server = Server(images_fd=IMAGES_FD, magic=MAGIC, proto=PROTO, adapter=ADAPTER, adapter_version=ADAPTER_VERSION)
    server.serve(Channel(SOCKET_FD))
    # Not sys.exit: destroying an EGL context at interpreter shutdown prints exceptions and can hang.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
