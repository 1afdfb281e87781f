"""A page in headless Chromium, spoken to through a pipe: no port, no server, no further package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--hide-scrollbars", "--no-first-run")
SECONDS = 60
# Chromium reads from descriptor 3 and writes to 4, whatever those are here
BEGIN = """
import fcntl, os, sys
given = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(given[0], 3)
os.dup2(given[1], 4)
os.closerange(5, 64)
os.execv(sys.argv[3], sys.argv[3:])
"""


def program() -> str:
    """Chromium's path; the test is skipped where there is none."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(PROGRAMS)} to test the page")
    return found


class Page:
    """A tab of a browser of its own; `errors` are those of its console, of its scripts and of its policy."""

    def __init__(self, url: str, size: tuple[int, int] = (1280, 900)):
        self._profile, self._calls, self._rest = tempfile.mkdtemp(prefix="headless_"), 0, b""
        self.errors: list[str] = []
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        own = [f"--user-data-dir={self._profile}", f"--window-size={size[0]},{size[1]}", "--remote-debugging-pipe"]
        self._browser = subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(to_browser), str(from_browser), program(), *FLAGS, *own, "about:blank"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Page", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_) -> None:
        os.close(self._out)
        self._browser.terminate()
        self._browser.wait(15)
        os.close(self._in)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            told = self._read()
            self._listen(told)
            if told.get("id") == self._calls:
                assert "error" not in told, told["error"]
                return told["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _listen(self, told: dict[str, Any]) -> None:
        method, params = told.get("method"), told.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"].get("exception", {}).get("description")))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def js(self, expression: str) -> Any:
        """What an expression, or the promise it makes, gives."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a condition holds."""
        end = time.monotonic() + SECONDS
        while not self.js(condition):
            assert time.monotonic() < end, f"{condition} did not come to hold"
            time.sleep(0.05)

    def key(self, name: str) -> None:
        """Press and release a key, where the focus is."""
        text = {"Enter": "\r", "Space": " "}[name]
        about = {"key": text if name == "Space" else name, "code": name, "windowsVirtualKeyCode": ord(text)}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, path: Path, whole: bool = False) -> None:
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))
