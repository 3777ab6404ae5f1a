"""A real OpenAI-compatible server with a real small model, and a proxy before it that injects faults and counts what it sees."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.commands import environment

START_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def transformers_server(model: Path, log: Path) -> Iterator[str]:
    """Run `transformers serve` on a model folder; yield its address (http://host:port)."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment())
    try:
        _await_health(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def _await_health(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"transformers serve did not start: {log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Fault:
    """What to do instead of asking the server. `status` 0: see `action` (hang, drop, malformed, forward)."""

    status: int = 0
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    action: str = "answer"
    change: Callable[[dict[str, Any]], Any] | None = None  # of the server's answer


HANG = Fault(action="hang")
DROP = Fault(action="drop")
MALFORMED = Fault(action="malformed")


def status(code: int, message: str = "injected", **headers: str) -> Fault:
    body = {"error": {"message": message}}
    return Fault(code, body, {name.replace("_", "-"): value for name, value in headers.items()})


def changed(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """Forward, and change the server's answer."""
    return Fault(action="forward", change=change)


@dataclass
class Seen:
    """What the proxy saw. `asked` counts requests for each last user turn, `forwarded` those that the server answered."""

    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    in_flight_at: list[int] = field(default_factory=list)  # with each request that came
    asked: Counter[str] = field(default_factory=Counter)
    forwarded: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the default of 5, connections that come at once wait a second for the kernel's next try


class FaultProxy:
    """`plan(number, body)` gives the fault of a request (number from 1 on), or None to pass it on; `delay` slows each answer."""

    def __init__(self, upstream: str, plan: Callable[[int, dict[str, Any]], Fault | None], delay: float = 0.0) -> None:
        self.upstream, self.plan, self.delay = upstream.removeprefix("http://"), plan, delay
        self.seen, self.lock, self.closing = Seen(), threading.Lock(), threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def do_POST(self) -> None:
                proxy.handle(self)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> "FaultProxy":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["content-length"]))
        body = json.loads(raw)
        text = body["messages"][-1]["content"]
        with self.lock:
            seen = self.seen
            seen.requests, seen.in_flight = seen.requests + 1, seen.in_flight + 1
            seen.most_in_flight = max(seen.most_in_flight, seen.in_flight)
            seen.in_flight_at.append(seen.in_flight)
            seen.asked[text] += 1
            seen.bodies.append(body)
            seen.times.append(time.monotonic())
            seen.keys.add(handler.headers.get("authorization", ""))
            fault = self.plan(seen.requests, body)
        try:
            self._answer(handler, raw, text, fault or Fault(action="forward"))
        except OSError:  # the client is gone
            handler.close_connection = True
        finally:
            with self.lock:
                self.seen.in_flight -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, raw: bytes, text: str, fault: Fault) -> None:
        time.sleep(self.delay)
        if fault.action == "hang":
            self.closing.wait(60)
            handler.close_connection = True
        elif fault.action == "drop":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif fault.action == "malformed":
            _send(handler, 200, b'{"choices": [{"mess', {})
        elif fault.action == "answer":
            _send(handler, fault.status, json.dumps(fault.body).encode(), fault.headers)
        else:
            code, answer = self._forward(raw)
            if code == 200:
                with self.lock:
                    self.seen.forwarded[text] += 1
                if fault.change:
                    answer = json.dumps(fault.change(json.loads(answer))).encode()
            _send(handler, code, answer, {})

    def _forward(self, raw: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=300)
        try:
            connection.request("POST", "/v1/chat/completions", raw, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _send(handler: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str]) -> None:
    handler.send_response(code)
    for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def kill(process: "subprocess.Popen[Any]") -> None:
    """Kill a process at once, as the kernel does when memory is short."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
