"""A headless Chromium for tests, driven over its DevTools protocol.

In this order: the program that ``IITKIT_CHROMIUM`` names; the Chromium inside Qt WebEngine, which comes from PyPI
(pyside6-webengine); a Chromium or Chrome on PATH. Where none starts, tests that ask for one are skipped and say why.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
QT = """
import sys
from PySide6.QtCore import QUrl
from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication
application = QApplication(sys.argv)
view = QWebEngineView()
profile = QWebEngineProfile()
view.setPage(QWebEnginePage(profile, view))
view.resize(1200, 900)
view.setUrl(QUrl("about:blank"))
view.show()
application.exec()
"""


class Socket:
    """The client's side of a WebSocket, as much of it as DevTools needs."""

    def __init__(self, url: str) -> None:
        host, port = url.split("/")[2].split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        asked = [
            f"GET /{url.split('/', 3)[3]} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            "",
            "",
        ]
        self.socket.sendall("\r\n".join(asked).encode())
        self.file = self.socket.makefile("rb")
        assert b" 101 " in self.file.readline()
        while self.file.readline().strip():
            pass

    def send(self, text: str) -> None:
        data, mask = text.encode(), os.urandom(4)
        size = bytes([0xFF]) + struct.pack(">Q", len(data))
        self.socket.sendall(b"\x81" + size + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

    def receive(self) -> str:
        data = b""
        while True:
            first, size = self.file.read(2)
            if size == 126:
                (size,) = struct.unpack(">H", self.file.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self.file.read(8))
            part = self.file.read(size)
            if first & 15 < 3:  # a message or a part of one; else a ping
                data += part
                if first & 128:
                    return data.decode()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self, address: str) -> None:
        with urllib.request.urlopen(f"http://{address}/json", timeout=10) as answer:
            tabs = json.load(answer)
        self.socket = Socket(next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"])
        self.count = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Call DevTools and wait for the answer; events are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": given}))
        while True:
            message = json.loads(self.socket.receive())
            if message.get("id") == self.count:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; what it throws fails the test."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, path: Path, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Open a file and wait until it has loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.scheme(scheme)
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(f"location.href === {json.dumps(path.resolve().as_uri())} && document.readyState === 'complete'")

    def wait(self, condition: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"still not: {condition}"
            time.sleep(0.02)

    def scheme(self, name: str) -> None:
        """Prefer light or dark, as the reader's system would."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
        text = {"Enter": "\r", " ": " "}.get(key)
        more = {"windowsVirtualKeyCode": code} if code else {}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **more, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **more)

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings since the page was opened: exceptions, broken policies, the console."""
        self.run("0")  # what came before it has arrived
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        self.run("0")
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]


def programs() -> list[tuple[str, list[str]]]:
    """What may be a Chromium here: its name and how it is started (DevTools' port is put in for {port})."""
    found = []
    own = ["--headless", *QUIET.split(), "--remote-debugging-port={port}", "--user-data-dir={folder}", "about:blank"]
    if named := os.environ.get("IITKIT_CHROMIUM"):
        found.append((named, [named, *own]))
    if importlib.util.find_spec("PySide6") and importlib.util.find_spec("PySide6.QtWebEngineCore"):
        found.append(("Qt WebEngine", [sys.executable, "-c", QT]))
    return found + [(path, [path, *own]) for path in map(shutil.which, NAMES) if path]


@contextlib.contextmanager
def browser() -> Iterator[Browser | str]:
    """A browser, or why there is none."""
    tried = []
    for name, command in programs():
        with tempfile.TemporaryDirectory(prefix="iitkit-browser-", ignore_cleanup_errors=True) as folder:
            port = _free_port()
            log = Path(folder) / "log"
            env = {
                **os.environ,
                **dict.fromkeys(
                    ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"), folder
                ),
                "QT_QPA_PLATFORM": "offscreen",
                "QTWEBENGINE_DISABLE_SANDBOX": "1",
                "QTWEBENGINE_CHROMIUM_FLAGS": QUIET,
                "QTWEBENGINE_REMOTE_DEBUGGING": f"127.0.0.1:{port}",
            }
            given = [
                part.format(port=port, folder=folder) if "{port}" in part or "{folder}" in part else part
                for part in command
            ]
            with log.open("wb") as out:
                process = subprocess.Popen(
                    given, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env, start_new_session=True
                )
            try:
                tab = _connected(process, f"127.0.0.1:{port}")
                if tab is not None:
                    try:
                        yield tab
                    finally:
                        tab.socket.close()
                    return
                last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no word"]
                tried.append(f"{name}: {last[0][:200]}")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    yield "no Chromium: pip install pyside6-webengine, or set IITKIT_CHROMIUM" + "".join(f"; {line}" for line in tried)


def _connected(process: subprocess.Popen[bytes], address: str, seconds: float = 60) -> Browser | None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            return Browser(address)
        except (OSError, StopIteration):
            time.sleep(0.1)
    return None


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
