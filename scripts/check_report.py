#!/usr/bin/env python3
"""Opens report pages in headless Chromium as a reader would, and looks for what a reader would not forgive.

Each page is opened at phone and desktop width, in light and dark. It fails on: a console message of level error or
warning, an exception, a request other than the page itself, content wider than the window, visible text below 12 px,
an image that did not load. Screenshots of the whole page are saved.

    check_report.py --out FOLDER [--video FILE ...] REPORT.html ...

With --video each file is played in a <video> element: it must decode, with a size and a duration above zero.

Speaks the Chrome DevTools Protocol over a WebSocket by the standard library alone.
"""

import argparse
import base64
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

WIDTHS = [(390, 844, True), (1280, 900, False)]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0", "--allow-file-access-from-files",
]

# Evaluated in the page: what is wrong with its layout, as a list of sentences.
LAYOUT = r"""
(() => {
  const wrong = [];
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) {
    wrong.push(`the page is ${document.documentElement.scrollWidth} px wide in a window of ${width} px`);
  }
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest(".scroll") && !element.matches(".scroll")) continue;
    if (element.tagName === "title") continue;
    const box = element.getBoundingClientRect();
    if (box.width > 0 && (box.right > width + 1 || box.left < -1)) {
      wrong.push(`<${element.tagName} class="${element.getAttribute("class") || ""}"> reaches from ${box.left.toFixed(0)} to ${box.right.toFixed(0)} px`);
    }
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const small = new Set();
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || ["title", "STYLE"].includes(parent.tagName)) continue;
    const size = parseFloat(getComputedStyle(parent).fontSize);
    if (size < 12 && parent.getClientRects().length) small.add(`${size} px: ${walker.currentNode.textContent.trim().slice(0, 40)}`);
  }
  for (const text of small) wrong.push(`text of ${text}`);
  for (const image of document.images) {
    if (image.complete && !image.naturalWidth) wrong.push(`the image "${image.alt}" did not load`);
  }
  for (const scroll of document.querySelectorAll(".scroll")) {
    if (scroll.scrollWidth > scroll.clientWidth + 1) {
      wrong.push(`the table "${scroll.getAttribute("aria-labelledby")}" needs ${scroll.scrollWidth} px and has ${scroll.clientWidth}`);
    }
  }
  return wrong;
})()
"""

# WCAG 2 contrast of every text against the nearest opaque background, as sentences about those below 4.5.
CONTRAST = r"""
(() => {
  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => {
    v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || parent.tagName === "title") continue;
    const style = getComputedStyle(parent);
    const ink = parse(parent.closest("svg") ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(parent))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.add(`contrast ${ratio.toFixed(2)}: ${walker.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return [...low];
})()
"""

PLAY = r"""
new Promise((done) => {
  const video = document.createElement("video");
  video.muted = true;
  video.onerror = () => done({error: video.error ? video.error.message : "unknown"});
  video.onended = () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    done({width: video.videoWidth, height: video.videoHeight, duration: video.duration,
          frames: video.getVideoPlaybackQuality().totalVideoFrames});
  };
  video.onloadedmetadata = () => { video.playbackRate = 8; video.play().catch((e) => done({error: String(e)})); };
  video.src = SOURCE;
  document.body.append(video);
})
"""


class DevTools:
    """One page of a browser, over a WebSocket (RFC 6455, client side)."""

    def __init__(self, address):
        host, rest = address.removeprefix("ws://").split("/", 1)
        name, port = host.split(":")
        self.socket = socket.create_connection((name, int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /{rest} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(65536)
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"the browser refused: {head[:200]!r}")
        self.number = 0
        self.events = []

    def _read(self, count):
        while len(self.buffer) < count:
            data = self.socket.recv(1 << 20)
            if not data:
                raise RuntimeError("the browser closed the connection")
            self.buffer += data
        out, self.buffer = self.buffer[:count], self.buffer[count:]
        return out

    def _message(self):
        text = b""
        while True:
            first, second = self._read(2)
            length = second & 127
            if length == 126:
                length = struct.unpack(">H", self._read(2))[0]
            elif length == 127:
                length = struct.unpack(">Q", self._read(8))[0]
            text += self._read(length)
            if first & 0x80:
                return json.loads(text)

    def _send(self, payload):
        mask = os.urandom(4)
        if len(payload) < 126:
            head = struct.pack(">BB", 0x81, 0x80 | len(payload))
        elif len(payload) < 1 << 16:
            head = struct.pack(">BBH", 0x81, 0x80 | 126, len(payload))
        else:
            head = struct.pack(">BBQ", 0x81, 0x80 | 127, len(payload))
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(head + mask + body)

    def call(self, method, **params):
        self.number += 1
        number = self.number
        self._send(json.dumps({"id": number, "method": method, "params": params}).encode())
        while True:
            message = self._message()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def wait(self, method, secs=30):
        end = time.monotonic() + secs
        while not any(event.get("method") == method for event in self.events):
            if time.monotonic() > end:
                raise RuntimeError(f"no {method} within {secs} s")
            self.socket.settimeout(max(0.1, end - time.monotonic()))
            self.events.append(self._message())
        self.socket.settimeout(60)

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")


def complaints(events, page):
    """What the console and the network said that a reader should never meet."""
    wrong = []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            wrong.append(f"exception: {params['exceptionDetails'].get('text')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            wrong.append(f"console.{params['type']}: {params['args']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            wrong.append(f"console {params['entry']['level']}: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if url.split("#")[0] != page and not url.startswith("data:"):
                wrong.append(f"request for {url}")
    return wrong


def check(tools, path, out, wrong):
    page = path.resolve().as_uri()
    for width, height, mobile in WIDTHS:
        for scheme in ("light", "dark"):
            tools.events.clear()
            tools.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
            tools.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            tools.call("Page.navigate", url=page)
            tools.wait("Page.loadEventFired")
            found = tools.evaluate(LAYOUT) + tools.evaluate(CONTRAST)
            size = tools.call("Page.getLayoutMetrics")["cssContentSize"]
            shot = tools.call(
                "Page.captureScreenshot", captureBeyondViewport=True,
                clip={"x": 0, "y": 0, "width": width, "height": min(size["height"], 16000), "scale": 1},
            )
            name = f"{path.resolve().parent.name}_{width}_{scheme}"
            (out / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
            found += complaints(tools.events, page)
            wrong += [f"{name}: {sentence}" for sentence in found]
            print(f"{'FAIL' if found else 'ok  '} {name} ({size['height']:.0f} px tall)")


def play(tools, path, blank, wrong):
    # A page of its own folder may show a file beside it.
    tools.events.clear()
    tools.call("Page.navigate", url=blank.as_uri())
    tools.wait("Page.loadEventFired")
    result = tools.evaluate(PLAY.replace("SOURCE", json.dumps(path.resolve().as_uri())))
    good = "error" not in result and min(result["width"], result["height"], result["duration"], result["frames"]) > 0
    print(f"{'ok  ' if good else 'FAIL'} {path.name}: {result}")
    if not good:
        wrong.append(f"{path}: {result}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the screenshots")
    parser.add_argument("--video", type=pathlib.Path, action="append", default=[], help="a video to play")
    parser.add_argument("reports", type=pathlib.Path, nargs="*")
    args = parser.parse_intermixed_args()

    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome"]
    browser = next((found for name in names if name and (found := shutil.which(name))), None)
    if browser is None:
        print("skipped: no chromium (Debian: apt-get install chromium; or set CHROMIUM to a browser)")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = open(pathlib.Path(profile) / "log", "wb")
        process = subprocess.Popen(
            [browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            port_file = pathlib.Path(profile) / "DevToolsActivePort"
            end = time.monotonic() + 60
            while not (port_file.exists() and port_file.read_text().strip()):
                if process.poll() is not None or time.monotonic() > end:
                    print((pathlib.Path(profile) / "log").read_text(errors="replace")[-2000:], file=sys.stderr)
                    raise RuntimeError(f"{browser} did not start")
                time.sleep(0.1)
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
                page = next(target for target in json.load(reply) if target["type"] == "page")
            tools = DevTools(page["webSocketDebuggerUrl"])
            for domain in ("Page", "Runtime", "Log", "Network"):
                tools.call(f"{domain}.enable")
            for report in args.reports:
                check(tools, report, args.out, wrong)
            blank = pathlib.Path(profile) / "blank.html"
            blank.write_text("<!doctype html><title>video</title>")
            for video in args.video:
                play(tools, video, blank, wrong)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
