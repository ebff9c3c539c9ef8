"""A Hugging Face Hub on this machine, for the real client: models and datasets, kept in memory.

Point the client at it before it is imported: :func:`environment` gives the variables for a process of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
USER = "user"
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+))?(/.*)?)?")


@dataclass
class Repo:
    """A repo: commit → files, branch → commit."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.sha(revision)]

    def sha(self, revision: str) -> str:
        return self.branches.get(revision, revision)


@dataclass
class Hub:
    """What the server holds and has been asked.

    ``fails`` is the status that every request then gets; a request whose path holds ``breaks`` gets no answer: the
    connection is dropped when it has been read.
    """

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    fails: int = 0
    breaks: str = ""

    def put(self, kind: str, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """Make a repo (``models`` or ``datasets``) with files on main."""
        repo = self.repos[kind, name] = Repo(private)
        repo.commit("main", files)
        return repo


@dataclass(frozen=True)
class Asked:
    """What a request about a repo says.

    Its body, the folder that it is about, whether it is a pull request, and whether what folders hold is wanted too.
    """

    body: bytes
    inside: str
    pull_request: bool
    whole: bool


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.0"  # no connection outlives its answer, so that a Hub that is shut down is gone

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **named}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def lacks(self, what: str) -> None:
        """Say that there is no such Repo, Revision or Entry; the client makes typed exceptions of it."""
        self.answer(404, {"error": f"{what} not found"}, X_Error_Code=f"{what}NotFound")

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        raw = urlsplit(self.path)
        path = unquote(raw.path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.breaks and self.hub.breaks in path:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.hub.fails:
            self.answer(self.hub.fails, {"error": "out of order"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/whoami-v2":
            self.answer(200 if self.known else 401, {"type": "user", "name": USER} if self.known else {"error": "who?"})
        elif found := re.fullmatch(_API, raw.path):
            kind, name, action, revision, inside = (unquote(part or "") for part in found.groups())
            whole = re.search(r"recursive=(1|true)", raw.query, re.IGNORECASE) is not None
            asked = Asked(body, inside.strip("/"), "create_pr=1" in raw.query, whole)
            self.repo(kind, name, action or "revision", revision or "main", asked)
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw.path):
            self.resolve("datasets" if found[1] else "models", *(unquote(part) for part in found.groups()[1:]))
        else:
            self.answer(404, {"error": f"no {path} here"})

    do_GET = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

    def create(self, asked: dict[str, Any]) -> None:
        kind, name = f"{asked.get('type', 'model')}s", f"{asked.get('organization') or USER}/{asked['name']}"
        if not self.known:
            self.answer(401, {"error": "Invalid username or password."})
        elif not name.startswith(f"{USER}/"):
            self.answer(403, {"error": "not yours"}, X_Error_Message=f"You have no rights under {name.split('/')[0]}")
        else:
            made = (kind, name) not in self.hub.repos
            if made:
                private = asked.get("private") or asked.get("visibility") == "private"
                self.hub.put(kind, name, {".gitattributes": b""}, private=bool(private))
            url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
            self.answer(200 if made else 409, {"url": url, "name": name})

    def repo(self, kind: str, name: str, action: str, revision: str, asked: Asked) -> None:
        repo, body = self.hub.repos.get((kind, name)), asked.body
        if repo is None or (repo.private and not self.known):
            return self.lacks("Repo")
        if self.command == "POST" and not self.known:
            return self.answer(401, {"error": "Invalid username or password."})
        if action == "branch":
            there = revision in repo.branches
            repo.branches.setdefault(revision, repo.branches["main"])
            return self.answer(409 if there else 200, {"error": "already there"} if there else {})
        if repo.sha(revision) not in repo.commits:
            return self.lacks("Revision")
        files = repo.files(revision)
        if action == "preupload":
            plan = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": plan})
        if action == "commit":
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            new, message = dict(files), ""
            if not asked.pull_request and not name.startswith(f"{USER}/"):
                return self.answer(403, {"error": "not yours"})
            for line in lines:
                if line["key"] == "header":
                    message = line["value"]["summary"]
                    if line["value"].get("parentCommit", repo.sha(revision)) != repo.sha(revision):
                        return self.answer(412, {"error": "A commit has happened since"})
                elif line["key"] == "file":
                    new[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    new.pop(line["value"]["path"], None)
            number = sum(branch.startswith("refs/pr/") for branch in repo.branches) + 1
            sha = repo.commit(f"refs/pr/{number}" if asked.pull_request else revision, new, message)
            made = {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha}
            if asked.pull_request:
                made["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
            return self.answer(200, made)
        entries = [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in sorted(files.items())]
        if action == "tree":
            return self.tree(entries, asked)
        if action == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return self.answer(200, [entry for entry in entries if entry["path"] in wanted])
        siblings = [{"rfilename": entry["path"]} for entry in entries]
        info = {"id": name, "sha": repo.sha(revision), "private": repo.private, "siblings": siblings, "tags": []}
        return self.answer(200, info)

    def tree(self, entries: list[dict[str, Any]], asked: Asked) -> None:
        """Answer the files and folders that a folder holds itself, or all files below it."""
        prefix = f"{asked.inside}/" if asked.inside else ""
        found: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if entry["path"].startswith(prefix):
                first, _, rest = entry["path"].removeprefix(prefix).partition("/")
                folder = {"type": "directory", "path": prefix + first, "oid": _oid(first.encode()), "size": 0}
                found[entry["path"] if asked.whole else first] = folder if rest and not asked.whole else entry
        if prefix and not found:
            return self.lacks("Entry")
        return self.answer(200, list(found.values()))

    def resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.known):
            self.lacks("Repo")
        elif repo.sha(revision) not in repo.commits:
            self.lacks("Revision")
        elif repo.gated and not self.known:
            self.answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        elif file not in repo.files(revision):
            self.lacks("Entry")
        else:
            data = repo.files(revision)[file]
            self.answer(200, data, ETag=f'"{_oid(data)}"', X_Repo_Commit=repo.sha(revision))


def _oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextmanager
def hub() -> Iterator[Hub]:
    """Run a Hub of its own on a free port of this machine."""
    held = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": held}))
    held.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(url: str, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Return the variables that point a new process's client at a Hub, with a cache of its own and nobody's token."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}),
    }
