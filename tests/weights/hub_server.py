"""A stand-in for both hubs on loopback: as much of their protocols as their own client libraries need to download.

Weights are "large files": a redirect to another host name, which alone answers Range. Small files are answered at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repo:
    files: dict[str, bytes]
    revisions: dict[str, str]
    """Branches and tags to commits."""
    token: str | None = None
    """Files, not the listing, need this one."""


@dataclass
class HubServer:
    """Serves until closed. Tests change `cut`, `status`, `altered` and `listed_size` to make it misbehave."""

    repos: dict[str, Repo] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    cut: dict[str, list[int]] = field(default_factory=dict)
    """A file's name to the numbers of bytes after which its next answers break off."""
    status: dict[str, int] = field(default_factory=dict)
    """A piece of a path to the status that it gets."""
    altered: dict[str, bytes] = field(default_factory=dict)
    """What is sent in place of a file's bytes."""
    listed_size: dict[str, int] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    """Files of which half is sent, and then a byte now and then."""
    ranges: bool = True

    def __post_init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, model: str, files: dict[str, bytes], token: str | None = None) -> str:
        """Serve files as the newest commit of branches main and master; its name is returned."""
        commit = hashlib.sha1(repr(files).encode()).hexdigest()
        self.repos[model] = Repo(files, {"main": commit, "master": commit}, token)
        return commit

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for, sorted, each as often as it was."""
        names = [self._name(seen.path) for seen in self.seen if seen.method == "GET"]
        return sorted(name for name in names if name)

    def _name(self, path: str) -> str | None:
        url = urlsplit(path)
        if "/cdn/" in url.path:
            return self.stored(url.path.rpartition("/")[2])[0]
        if "/resolve/" in url.path:
            name = unquote(url.path.partition("/resolve/")[2].partition("/")[2])
        else:
            name = parse_qs(url.query).get("FilePath", [""])[0]
        return None if is_large(name) else name or None

    def stored(self, digest: str) -> tuple[str, bytes]:
        files = [item for repo in self.repos.values() for item in repo.files.items()]
        return next(item for item in files if sha256(item[1]) == digest)


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients that leave in the middle are what tests are for
            super().handle_error(request, client_address)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.seen.append(Seen(self.command, self.path, self.headers["Range"], self.headers["Authorization"]))
        for piece, status in self.hub.status.items():
            if piece in self.path:
                return self._answer(status, b"{}")
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = unquote(url.path).strip("/").split("/")
        if parts[0] == "cdn":
            return self._send(*self.hub.stored(parts[1]), ranges=self.hub.ranges)
        if parts[:3] == ["api", "v1", "models"]:
            return self._modelscope("/".join(parts[3:5]), parts[5:], query)
        if parts[:2] == ["api", "models"]:
            return self._hugging_face_api("/".join(parts[2:4]), parts[4:])
        if parts[2:3] == ["resolve"]:
            return self._hugging_face_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._answer(404, b"")

    # Hugging Face

    def _hugging_face_api(self, model: str, rest: list[str]) -> None:
        repo = self.hub.repos.get(model)
        if repo is None:
            return self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = self._commit(repo, rest[1] if rest else "main")
        if commit is None:
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if rest and rest[0] == "tree":
            return self._json([self._tree_item(name, content) for name, content in repo.files.items()])
        siblings = [self._sibling(name, content) for name, content in repo.files.items()]
        return self._json({"id": model, "modelId": model, "sha": commit, "siblings": siblings, "tags": []})

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.hub.listed_size.get(name, len(content))
        item: dict[str, Any] = {"rfilename": name, "size": size, "blobId": git_blob(content)}
        if is_large(name):
            item["lfs"] = {"sha256": sha256(content), "size": size, "pointerSize": 134}
        return item

    def _tree_item(self, name: str, content: bytes) -> dict[str, Any]:
        item: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_blob(content)}
        if is_large(name):
            item["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return item

    def _hugging_face_file(self, model: str, revision: str, name: str) -> None:
        repo = self.hub.repos[model]
        commit = self._commit(repo, revision)
        if repo.token and self.headers["Authorization"] != f"Bearer {repo.token}":
            return self._answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
        if commit is None or name not in repo.files:
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        content, about = repo.files[name], {"X-Repo-Commit": commit}
        if is_large(name):
            about |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content)}"'}
            return self._redirect(content, about)
        return self._send(name, content, {**about, "ETag": f'"{git_blob(content)}"'})

    # ModelScope

    def _modelscope(self, model: str, rest: list[str], query: dict[str, str]) -> None:
        repo = self.hub.repos.get(model)
        if repo is None:
            return self._json({"Code": 10010205001, "Message": "record not found", "Success": False}, 404)
        commit = self._commit(repo, query.get("Revision", "master"))
        if rest == ["repo", "files"]:  # of an unknown revision: no files, and no error
            files = [self._entry(name, content) for name, content in repo.files.items()] if commit else None
            return self._json({"Code": 200, "Data": {"Files": files}, "Message": "success", "Success": True})
        if rest == []:
            return self._json({"Code": 200, "Data": {"Name": model}, "Success": True})
        if repo.token and self.headers["Authorization"] != f"Bearer {repo.token}":
            return self._json({"Code": 10010205003, "Message": "access denied", "Success": False}, 403)
        name = query["FilePath"]
        content = repo.files[name]
        return self._redirect(content, {}) if is_large(name) else self._send(name, content)

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        return {
            "Name": name,
            "Path": name,
            "Type": "blob",
            "Size": self.hub.listed_size.get(name, len(content)),
            "Sha256": sha256(content),
            "IsLFS": is_large(name),
            "Mode": "33188",
        }

    # Both

    def _commit(self, repo: Repo, revision: str) -> str | None:
        return revision if revision in repo.revisions.values() else repo.revisions.get(revision)

    def _redirect(self, content: bytes, headers: dict[str, str]) -> None:
        location = f"http://localhost:{self.hub.port}/cdn/{sha256(content)}"
        self._answer(302, b"", {**headers, "Location": location})

    def _send(self, name: str, content: bytes, headers: dict[str, str] | None = None, ranges: bool = False) -> None:
        content = self.hub.altered.get(name, content)
        wanted = self.headers["Range"]
        if not (wanted and ranges):
            return self._answer(200, content, headers, self._cut(name), name in self.hub.slow)
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        about = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self._answer(206, content[start:], {**(headers or {}), **about}, self._cut(name))

    def _cut(self, name: str) -> int | None:
        cuts = self.hub.cut.get(name)
        return cuts.pop(0) if cuts and self.command == "GET" else None

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        slow: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if slow:
            self._trickle(body)
        elif self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _trickle(self, body: bytes) -> None:
        half = len(body) // 2
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.write(body[:half])
            for number in range(half, len(body)):
                time.sleep(0.01)
                self.wfile.write(body[number : number + 1])
