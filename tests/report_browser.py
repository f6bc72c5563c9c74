"""A headless Chromium for the tests of the page, driven over WebDriver with the standard library alone."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = not (CHROMIUM and DRIVER)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Page:
    """One window. Scripts run outside the page's content security policy, as a developer's console does."""

    def __init__(self, session: str) -> None:
        self.session = session

    def open(self, path: Path, address: str = "") -> None:
        """A file; address: what stands behind its name, `#…`."""
        _call("POST", f"{self.session}/url", {"url": path.as_uri() + address})

    def visit(self, url: str) -> None:
        """An address on a server."""
        _call("POST", f"{self.session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return _call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        return str(_call("POST", f"{self.session}/element", {"using": "css selector", "value": selector})[_ELEMENT])

    def click(self, selector: str) -> None:
        _call("POST", f"{self.session}/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        _call("POST", f"{self.session}/element/{self.find(selector)}/value", {"text": text})

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim().toWellFormed())"
        found = self.run(script, selector)
        return [str(text) for text in found]

    def wait(self, script: str, seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.03)

    def console(self) -> list[str]:
        """Messages of the page's console since the last call."""
        return [entry["message"] for entry in _call("POST", f"{self.session}/se/log", {"type": "browser"})]

    def emulate(self, **media: Any) -> None:
        """CDP's setEmulatedMedia: a colour scheme or the printer."""
        command = {"cmd": "Emulation.setEmulatedMedia", "params": media}
        _call("POST", f"{self.session}/goog/cdp/execute", command)

    def narrow(self, width: int, height: int) -> None:
        """The size of a phone's window in CSS pixels; (0, 0): the browser's own again."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        if not width:
            command = {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}}
        _call("POST", f"{self.session}/goog/cdp/execute", command)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(_call("GET", f"{self.session}/screenshot")))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Starts chromedriver and Chromium with an empty profile; ends both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}"
    try:
        _await_ready(base)
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = _call("POST", f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
        session = f"{base}/session/{made['sessionId']}"
        try:
            yield Page(session)
        finally:
            _call("DELETE", session)
    finally:
        driver.terminate()
        driver.wait(10)


def _await_ready(base: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if _call("GET", f"{base}/status")["ready"]:
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise TimeoutError("chromedriver did not start")


def _call(verb: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=verb)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine
    try:
        with opener.open(request, timeout=60) as reply:
            return json.loads(reply.read())["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(error.read().decode()[:500]) from None
