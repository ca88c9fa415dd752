"""A headless Chromium, driven over its debugging pipe with the standard library alone. For a look by hand:

python -m tests.report.browser PAGE.html FOLDER    # screenshots at phone and desktop width, light and dark; prints what it found
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
# Chromium reads commands from descriptor 3 and answers on 4. Both ends are moved out of the way first: one of them may be 3 or 4 itself.
_EXEC = (
    "import fcntl, os, sys; r, w = (fcntl.fcntl(int(x), fcntl.F_DUPFD, 10) for x in sys.argv[1:3]); "
    "os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


class Browser:
    """One page. Also a context manager."""

    def __init__(self):
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        for fd in (read, write):
            os.set_inheritable(fd, True)
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [
            sys.executable,
            "-c",
            _EXEC,
            str(read),
            str(write),
            CHROMIUM,
            *_FLAGS,
            f"--user-data-dir={self._home.name}",
            "about:blank",
        ]
        self._process = subprocess.Popen(command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self._buffer, self._count, self._session, self.events = b"", 0, None, []
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _message(self):
        while b"\0" not in self._buffer:
            piece = os.read(self._from, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def send(self, method, **params):
        """The result of one command; events on the way are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            got = self._message()
            if got.get("id") == self._count:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']}")
                return got["result"]
            self.events.append(got)

    def open(self, page, width=1280, height=900, dark=False):
        """Loads a file at a width in a colour scheme, and waits until it has loaded."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.events = []
        failed = self.send("Page.navigate", url=Path(page).resolve(strict=True).as_uri()).get("errorText")
        if failed:
            raise RuntimeError(f"{page}: {failed}")
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._message())

    def complaints(self):
        """Console messages, exceptions, log entries and requests that left the file, as texts."""
        out = []
        for e in self.events:
            method, p = e["method"], e["params"]
            if method == "Runtime.exceptionThrown":
                out.append(p["exceptionDetails"]["text"])
            elif method == "Runtime.consoleAPICalled":
                out.append(f"console.{p['type']}: {p['args']}")
            elif method == "Log.entryAdded":
                out.append(f"{p['entry']['level']}: {p['entry']['text']}")
            elif method == "Network.requestWillBeSent" and not p["request"]["url"].startswith(("file:", "data:")):
                out.append(f"request: {p['request']['url']}")
        return out

    def evaluate(self, script):
        """The value of a JavaScript expression in the page."""
        return self.send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screenshot(self, file, whole=True, most=12000):
        """PNG of the page (its first `most` pixels)."""
        clip = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {
                "clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most), "scale": 1},
                "captureBeyondViewport": True,
            }
        Path(file).write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **clip)["data"]))

    def close(self):
        self._process.terminate()
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)
        self._home.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def main():
    page, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with Browser() as browser:
        for name, (width, height) in SIZES.items():
            for dark in (False, True):
                browser.open(page, width, height, dark)
                scheme = "dark" if dark else "light"
                browser.screenshot(folder / f"{page.stem}-{name}-{scheme}.png")
                wide = browser.evaluate("document.documentElement.scrollWidth")
                print(f"{name} {scheme}: {width} px wide, content {wide} px; complaints: {browser.complaints()}")


if __name__ == "__main__":
    main()
