"""A headless Chromium for tests of pages, without packages of its own."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """A headless Chromium that is driven over a pair of pipes with the DevTools protocol: JSON between zero bytes.

    Args:
        home: an empty folder; downloads go to ``home / "downloads"``.
        webgl: draw WebGL on the CPU (SwiftShader), for pages with 3D views.
    """

    # The browser reads descriptor 3 and writes descriptor 4.
    LAUNCH = (
        "import os, sys, fcntl; a, b = (fcntl.fcntl(int(d), fcntl.F_DUPFD, 20) for d in sys.argv[1:3]);"
        "os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
    )

    def __init__(self, home: Path, webgl: bool = False) -> None:
        reads, self.out = os.pipe()
        self.back, writes = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"]
        gl = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        options += gl if webgl else ["--disable-gpu"]
        options += [
            "--remote-debugging-pipe",
            "--hide-scrollbars",
            f"--user-data-dir={home / 'profile'}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", self.LAUNCH, str(reads), str(writes), CHROMIUM, *options],
            pass_fds=(reads, writes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self.number, self.rest, self.session = 0, b"", None
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.downloads = home / "downloads"
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        self.show()

    def send(self, method, **parameters):
        """Call a method of the protocol and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self):
        while b"\0" not in self.rest:
            part = os.read(self.back, 1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        about = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.troubles.append(json.dumps(about["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.troubles.append(json.dumps(about["args"])[:500])
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.troubles.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
        return message

    def run(self, script):
        """The value of an expression in the page."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script, seconds=15.0):
        """Until an expression of the page is true; its value, which must be one that JSON can hold."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {script}; {self.hint()}"
            time.sleep(0.03)
        return value

    def hint(self):
        """What the page says of itself, for the message of a failure."""
        return self.run(
            "[...document.querySelectorAll('[role=status], [role=alert]')].map((e) => e.innerText).join(' | ')"
        )

    def show(self, width=1280, height=860, scheme="light", is_phone=False):
        """Set the size of the window and the colours that the user likes."""
        scale = 2 if is_phone else 1
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key):
        """Press a key where the focus is."""
        code = {"Enter": 13, "Tab": 9, " ": 32, "Escape": 27}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            shown = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **shown)

    def type(self, text):
        """Type text where the focus is."""
        self.send("Input.insertText", text=text)

    def move(self, x, y):
        """Move the pointer."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def photograph(self, path):
        """Save what the window shows."""
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def open(self, address, ready="document.readyState == 'complete'"):
        """Load an address and wait until something is true of its page."""
        self.troubles.clear()
        self.requests.clear()
        self.send("Page.navigate", url=address)
        self.wait(ready)

    def close(self):
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.back)
