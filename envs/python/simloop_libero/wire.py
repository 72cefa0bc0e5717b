"""Frames on the socket and the image area beside it."""

import mmap
import os
import socket
import struct

import msgpack
import numpy as np

MAX_FRAME_BYTES = 16 * 1024 * 1024


class Channel:
    """Length-prefixed msgpack maps over an inherited socket."""

    def __init__(self, fd):
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)

    def receive(self):
        """The next map, or None when the other side is gone."""
        head = self._exactly(4)
        if head is None:
            return None
        (length,) = struct.unpack("<I", head)
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
        body = self._exactly(length)
        return None if body is None else msgpack.unpackb(body, raw=False, strict_map_key=True)

    def send(self, message):
        """Sends one map; False when the other side is gone."""
        body = msgpack.packb(message, use_bin_type=True)
        if len(body) > MAX_FRAME_BYTES:
            raise ValueError(f"answer of {len(body)} bytes; the limit is {MAX_FRAME_BYTES}")
        try:
            self._socket.sendall(struct.pack("<I", len(body)) + body)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _exactly(self, count):
        parts = bytearray(count)
        view = memoryview(parts)
        done = 0
        while done < count:
            try:
                got = self._socket.recv_into(view[done:])
            except ConnectionResetError:
                return None
            if got == 0:
                return None
            done += got
        return parts


class ImageArea:
    """Slots of equal size for `[H, W, 3]` images in the shared memfd."""

    def __init__(self, fd, height, width, slots):
        self._shape = (height, width, 3)
        self._size = height * width * 3
        self.slots = slots
        self.bytes = max(slots * self._size, 1)
        os.ftruncate(fd, self.bytes)
        self._map = mmap.mmap(fd, self.bytes) if slots else None

    def put(self, slot, image):
        """Copies an image into a slot and returns where it lies."""
        if image.shape != self._shape or image.dtype != np.uint8:
            raise ValueError(f"image of {image.dtype} {image.shape}, expected uint8 {self._shape}")
        offset = slot * self._size
        target = np.frombuffer(self._map, dtype=np.uint8, count=self._size, offset=offset)
        target = target.reshape(self._shape)
        if image.strides[1] == 3:
            target[...] = image
        else:  # mirrored: numpy would copy three bytes at a time, five times slower than one colour after another
            for colour in range(3):
                target[..., colour] = image[..., colour]
        return {"offset": offset, "shape": list(self._shape)}
