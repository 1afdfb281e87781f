"""A small server that speaks the endpoints of ComfyUI which the candidates' client uses, with faults on demand."""

from __future__ import annotations

import email.parser
import email.policy
import json
import threading
import time
import urllib.parse
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "{portrait}"}, "_meta": {"title": "Portrait"}},
    "2": {"class_type": "LoadAudio", "inputs": {"audio": "{audio}"}, "_meta": {"title": "Voice"}},
    "3": {
        "class_type": "Toy",
        "inputs": {
            "image": ["1", 0], "audio": ["2", 0], "text": "{prompt}, sharp", "seed": "{seed}", "cfg": "{text_scale}",
            "width": "{width}", "height": "{height}", "length": "{frames}", "model": "toy.safetensors",
        },
        "_meta": {"title": "The sampler"},
    },
    "4": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0], "filename_prefix": "{prefix}"}},
}  # fmt: skip
TOML = """fps = 10
frames = 9
width = 64
height = 64
[scales]
text_scale = [2, 6]
[[files]]
folder = "diffusion_models"
name = "toy.safetensors"
url = "https://example.invalid/toy.safetensors"
"""


class Peer:
    """A context manager. Every job saves `video` (bytes) after `seconds`. `faults` maps a number of a job on this
    server, from 0 on, to "refuse" (a model that is not there), "odd" (a width that no node takes), "fail", "cut" (the
    download breaks off), "forget" or "junk"; a portrait that is not among `uploads` is refused too; `hang` answers
    nothing while it is set; a port can be given to come back to."""

    def __init__(self, video: bytes, *, seconds: float = 0.0, faults: dict[int, str] | None = None, port: int = 0):
        self.video, self.seconds, self.faults = video, seconds, faults or {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.cancelled: list[tuple[str, Any]] = []
        self.asked: Counter[str] = Counter()
        self.files = ["toy.safetensors"]
        self.hang = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Peer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.hang.clear()
        self._server.shutdown()
        self._server.server_close()

    def prompts(self) -> list[dict[str, Any]]:
        return [job["prompt"] for job in self.jobs.values()]

    def _handler(peer):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                peer.answer(self, b"")

            def do_POST(self):
                peer.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

        return Handler

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        while self.hang.is_set():
            time.sleep(0.02)
        path, _, query = request.path.partition("?")
        first = path.strip("/").split("/")[0]
        self.asked[first] += 1
        try:
            if first == "view":
                self._view(request, dict(urllib.parse.parse_qsl(query)))
            else:
                status, told = getattr(self, f"_{first}")(path, request, body)
                content = json.dumps(told).encode()
                request.send_response(status)
                request.send_header("Content-Length", str(len(content)))
                request.end_headers()
                request.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _system_stats(self, *_):
        return 200, {}

    def _object_info(self, path, *_):
        kind = path.rsplit("/", 1)[1]
        nodes = [node for node in GRAPH.values() if node["class_type"] == kind]
        told = {name: ["*", {}] for node in nodes for name in node["inputs"]}
        if "model" in told:
            told["model"] = ["COMBO", {"options": self.files}]
        return 200, {kind: {"input": {"required": told}}} if nodes else {}

    def _upload(self, path, request, body):
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body).iter_parts()
        form = {part.get_param("name", header="content-disposition"): part for part in parts}
        name = form["image"].get_filename()
        self.uploads[name] = form["image"].get_payload(decode=True)
        return 200, {"name": name, "subfolder": form["subfolder"].get_content().strip(), "type": "input"}

    def _prompt(self, path, request, body):
        told, number = json.loads(body), len(self.jobs)
        fault = self.faults.get(number)
        job = {"prompt": told["prompt"], "until": time.monotonic() + self.seconds, "fault": fault}
        self.jobs[told["prompt_id"]] = job
        if (error := self._wrong(told["prompt"], fault)) is not None:
            whole = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
            return 400, {"error": whole, "node_errors": error}
        return 200, {"prompt_id": told["prompt_id"]}

    def _wrong(self, graph: dict[str, Any], fault: str | None) -> dict[str, Any] | None:
        """What a real server says of a graph that it refuses."""
        faults = {
            "refuse": ("3", "value_not_in_list", "Value not in list", "model", "model: 'toy.safetensors' not in []"),
            "odd": ("3", "value_bigger_than_max", "Value 9000 bigger than max of 8192", "width", "9000"),
        }
        image = graph.get("1", {}).get("inputs", {}).get("image", "")
        if image and image.rsplit("/", 1)[-1] not in self.uploads:
            told = f"image - Invalid image file: {image}"
            faults["lost"] = ("1", "custom_validation_failed", "Custom validation failed for node", "image", told)
            fault = "lost"
        if fault not in faults:
            return None
        node, kind, message, name, details = faults[fault]
        error = {"type": kind, "message": message, "details": details, "extra_info": {"input_name": name}}
        return {node: {"errors": [error], "class_type": GRAPH[node]["class_type"]}}

    def _history(self, path, *_):
        name = path.rsplit("/", 1)[1]
        job = self.jobs.get(name)
        if job is None or job["fault"] == "forget" or time.monotonic() < job["until"]:
            return 200, {}
        status, outputs = {"status_str": "success", "messages": []}, {}
        if job["fault"] == "fail":
            raised = {"node_id": "3", "exception_type": "OutOfMemoryError", "exception_message": "no memory left"}
            status = {"status_str": "error", "messages": [["execution_error", raised]]}
        else:
            outputs = {"4": {"images": [{"filename": f"{name}.mp4", "subfolder": "", "type": "output"}]}}
        return 200, {name: {"status": status, "outputs": outputs}}

    def _queue(self, path, request, body):
        if body:
            self.cancelled += [("queue", name) for name in json.loads(body)["delete"]]
            return 200, {}
        now = time.monotonic()
        running = [[0, n] for n, job in self.jobs.items() if now < job["until"] and job["fault"] != "forget"]
        return 200, {"queue_running": running, "queue_pending": []}

    def _interrupt(self, path, request, body):
        self.cancelled.append(("interrupt", json.loads(body)["prompt_id"]))
        return 200, {}

    def _view(self, request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        fault = self.jobs[query["filename"].removesuffix(".mp4")]["fault"]
        content = b"no video at all" if fault == "junk" else self.video
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        if fault == "cut":
            request.close_connection = True
