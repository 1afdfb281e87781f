"""One running ComfyUI, through the endpoints that its own page uses.

Three things can go wrong, and each is treated in its own way: the server does not answer (`ServerGone`), it refuses a
graph before running it, as it always would (`Refused`) or for values of this one job (`JobRefused`), or a node fails
while it runs (`JobFailed`).
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

from fantasy_core.errors import UserError
from train.source_workflows import Graph, title

ANSWER_SECONDS = 60.0  # a server that loads a model can be busy, but not for so long
PAUSES = 0.1, 2.0  # between two looks at a job: at first and at most
FOLDER = "fantasytalking2"  # of the server's input and output folders
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi")
FORGOTTEN = 5  # looks at a job that is neither running nor waiting nor done


class ServerGone(UserError):
    """The server does not answer, or no longer knows what it was doing."""

    def __init__(self, got: str):
        super().__init__("a server is gone", got=got, expected="a running ComfyUI", do="start it, or name another one")


class Refused(UserError):
    """The server will not run this graph: which node, which input, why."""

    def __init__(self, got: str):
        expected, do = "a workflow that it takes", "put there what it lacks, or correct the workflow"
        super().__init__("a server refuses a workflow", got=got, expected=expected, do=do)


class JobFailed(UserError):
    """A video was not made, though the server is there."""

    def __init__(self, got: str):
        super().__init__("a video was not made", got=got, expected="a video", do="look at the server's own log")


class JobRefused(JobFailed):
    """The server will not run this graph for values that other jobs do not share: a size, or a file that is not there
    (any more)."""


class Cancelled(KeyboardInterrupt):
    """Ctrl-C, as it reaches the threads."""


class ComfyServer:
    """ComfyUI at `url`, which has `answer` seconds for any one answer."""

    def __init__(self, url: str, *, answer: float = ANSWER_SECONDS):
        self.url, self.answer = check_url(url), answer
        self.client = uuid.uuid4().hex
        self._uploaded: dict[str, str] = {}

    def alive(self) -> bool:
        try:
            self._json("/system_stats")
            return True
        except ServerGone:
            return False

    def node(self, kind: str) -> dict[str, Any] | None:
        """What the server says of a type of node; None for one that it does not have."""
        return self._json(f"/object_info/{urllib.parse.quote(kind, safe='')}").get(kind)

    def upload(self, path: Path, digest: str) -> str:
        """A file put into the server's input folder, under its content's hash -> the name that nodes load it by."""
        name = f"{digest[:32]}{path.suffix.lower()}"
        if name not in self._uploaded:
            try:
                told = self._json("/upload/image", *_form(path, name))
            except urllib.error.HTTPError as error:
                raise JobFailed(f"{self.url} does not take {path.name}: HTTP {error.code} {error.reason}") from None
            self._uploaded[name] = "/".join(filter(None, (told.get("subfolder"), told["name"])))
        return self._uploaded[name]

    def forget_uploads(self) -> None:
        """Its folder may be another one now, or empty."""
        self._uploaded.clear()

    def queue(self, graph: Graph, varied: Collection[tuple[str, str]] = ()) -> str:
        """Hand a graph in -> the id of its run. Raises Refused with the titles of nodes that do not fit, and JobRefused
        where nothing is wrong but `varied` values, those of a (node, input) that differ from job to job."""
        content = {"prompt": graph, "client_id": self.client, "prompt_id": str(uuid.uuid4())}
        try:
            return self._json("/prompt", json.dumps(content).encode(), "application/json")["prompt_id"]
        except urllib.error.HTTPError as error:
            told = _body(error)
            kind = JobRefused if not told or _is_of_job(told, varied) else Refused
            raise kind(told_refusal(graph, told) or f"HTTP {error.code} {error.reason}") from None

    def wait(self, graph: Graph, job: str, node: str, *, most: float, stop: Callable[[], bool]) -> dict[str, str]:
        """What /view asks for of the video that `node` saved, when the job is done. Raises JobFailed, ServerGone,
        and Cancelled as soon as `stop` says so; the server is told to let go of the job."""
        deadline, unseen, (pause, longest) = time.monotonic() + most, 0, PAUSES
        while time.monotonic() < deadline:
            if stop():
                self.cancel(job)
                raise Cancelled
            done = self._json(f"/history/{job}").get(job)
            if done:
                return _video_of(graph, done, node)
            unseen = 0 if self._holds(job) else unseen + 1
            if unseen >= FORGOTTEN:
                raise ServerGone(f"{self.url} has forgotten a job: it was restarted, or its queue was cleared")
            time.sleep(pause)
            pause = min(1.3 * pause, longest)
        self.cancel(job)
        raise JobFailed(f"not done within {most:g} s on {self.url}")

    def download(self, saved: dict[str, str], file: BinaryIO) -> None:
        """A saved video into an open file. Raises ServerGone when it breaks off, JobFailed when it is not there."""
        try:
            with self._open("/view?" + urllib.parse.urlencode(saved)) as reply:
                stated = reply.headers.get("Content-Length")
                got = 0
                while piece := reply.read(1 << 20):
                    got += file.write(piece)
        except urllib.error.HTTPError as error:
            raise JobFailed(f"{self.url} does not have {saved['filename']} any more: HTTP {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerGone(f"{self.url} broke off a download: {error or type(error).__name__}") from None
        if stated is not None and got != int(stated):
            raise ServerGone(f"{self.url} broke off a download: {got} of {stated} bytes")

    def cancel(self, job: str) -> None:
        """Take a job of ours out of the queue, or interrupt it if it runs. Says nothing if the server is gone."""
        for path, content in (("/queue", {"delete": [job]}), ("/interrupt", {"prompt_id": job})):
            try:
                self._open(path, json.dumps(content).encode(), "application/json").close()
            except (ServerGone, urllib.error.HTTPError):
                return

    def _holds(self, job: str) -> bool:
        told = self._json("/queue")
        return any(job in item for item in (*told["queue_running"], *told["queue_pending"]))

    def _json(self, path: str, body: bytes | None = None, kind: str = "") -> dict[str, Any]:
        """Raises HTTPError where the server dislikes what it was sent, else ServerGone."""
        try:
            with self._open(path, body, kind) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            if body is not None and error.code <= 500:
                raise
            raise ServerGone(f"{self.url} answers HTTP {error.code} to {path.partition('?')[0]}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerGone(f"{self.url} does not answer: {error or type(error).__name__}") from None

    def _open(self, path: str, body: bytes | None = None, kind: str = "") -> Any:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if kind else {})
        try:
            return urllib.request.urlopen(request, timeout=self.answer)
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ServerGone(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from None


def check_url(url: str) -> str:
    """An address such as http://127.0.0.1:8188, without a slash at its end. Raises UserError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query:
        raise UserError(
            "a server's address cannot be used",
            got=url,
            expected="http://HOST:PORT of a running ComfyUI",
            do="give --server http://127.0.0.1:8188",
        )
    return url.rstrip("/")


def told_refusal(graph: Graph, told: dict[str, Any]) -> str:
    """A refusal in a person's words: the titles of the nodes, the inputs, and what is wrong with them."""
    found = [
        f"{title(graph, key)}: {error.get('message', '')}: {error.get('details', '')}"
        for key, node in dict(told.get("node_errors") or {}).items()
        for error in node.get("errors", [])
    ]
    error = told.get("error") or {}
    whole = f"{error.get('message', '')} {error.get('details', '')}" if isinstance(error, dict) else str(error)
    return "; ".join(found) or whole.strip()


def _is_of_job(told: dict[str, Any], varied: Collection[tuple[str, str]]) -> bool:
    """Whether a refusal is for `varied` inputs alone. What a node says of its inputs together counts for each."""
    nodes = {key for key, _ in varied}
    nodes_told = dict(told.get("node_errors") or {}).items()
    errors = [(key, error) for key, node in nodes_told for error in node.get("errors", [])]
    named = [(key, error.get("type"), (error.get("extra_info") or {}).get("input_name")) for key, error in errors]
    together = "custom_validation_failed"
    return bool(named) and all(
        key in nodes if name is None or kind == together else (key, name) in varied for key, kind, name in named
    )


def _video_of(graph: Graph, done: dict[str, Any], node: str) -> dict[str, str]:
    """The file that a node saved, from a job's history."""
    raised = [data for kind, data in done.get("status", {}).get("messages", []) if kind == "execution_error"]
    if raised:
        error = raised[0]
        lines = str(error.get("exception_message", "")).strip()
        raise JobFailed(f"{title(graph, str(error.get('node_id')))}: {error.get('exception_type', '')}: {lines}")
    if done.get("status", {}).get("status_str") == "error":
        raise JobFailed("the job was interrupted on the server")
    items = [item for kind in done.get("outputs", {}).get(node, {}).values() if isinstance(kind, list) for item in kind]
    names = [item for item in items if isinstance(item, dict) and str(item.get("filename")).lower().endswith(VIDEOS)]
    if not names:
        raise JobFailed(f"{title(graph, node)} saved no video")
    return {name: str(names[-1].get(name, "")) for name in ("filename", "subfolder", "type")}


def _body(error: urllib.error.HTTPError) -> dict[str, Any]:
    try:
        told = json.loads(error.read())
    except (OSError, ValueError):
        told = {}
    return told if isinstance(told, dict) else {}


def _form(path: Path, name: str) -> tuple[bytes, str]:
    """A file as the form that /upload/image takes; it takes any kind of file. One that is there already, byte for byte,
    is kept."""
    mark = uuid.uuid4().hex
    fields = {"subfolder": FOLDER, "type": "input"}
    head = "".join(f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
    head += f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    return head.encode() + path.read_bytes() + f"\r\n--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"
