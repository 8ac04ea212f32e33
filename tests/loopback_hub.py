"""A Hub on loopback, small but real: what the Hub's own client asks of it, and faults at will."""

import base64
import hashlib
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_FROM = 8 * 1024
"""Bytes from which a safetensors file is kept as a large one, under its sha256."""


@dataclass
class Repo:
    private: bool = False
    commits: list = field(default_factory=lambda: [("0" * 40, {".gitattributes": b"*.bin\n"})])
    """Hash and files, oldest first."""
    requests: list = field(default_factory=list)
    """Pull requests: hash and files."""

    def at(self, revision):
        every = [*self.commits, *self.requests]
        known = {"main": self.commits[-1], **{sha: (sha, files) for sha, files in every}}
        known |= {f"refs/pr/{k}": found for k, found in enumerate(self.requests, 1)}
        return known.get(revision)


@dataclass
class Fault:
    """What goes wrong with requests of that method and path, so many times."""

    method: str
    path: str
    kind: str
    """A status such as `500`; `cut` in mid-answer, `hang up` before it, `cut upload` before all of
    it has come, `other bytes`, `short` of some."""
    times: int = 1
    headers: dict = field(default_factory=dict)


def oid(path, content):
    """What the Hub names a file by, and whether it is a large one."""
    if path.endswith(".safetensors") and len(content) >= LFS_FROM:
        return hashlib.sha256(content).hexdigest(), True
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), False


class Hub:
    """`with Hub() as hub`: at `hub.url`; `hub.tokens` may write, everybody may read the public."""

    def __init__(self):
        self.repos, self.large, self.log, self.faults = {}, {}, [], []
        self.tokens = {"hf_user": "user"}
        self.after = lambda path: None
        self.lock = Lock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self})
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method, path, kind, times=1, **headers):
        self.faults.append(Fault(method, path, kind, times, headers))

    def files(self, repo):
        return self.repos[repo].commits[-1][1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        with suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        with self.hub.lock:
            self.hub.log.append((self.command, path))
            self.fault = self.next_fault(path)
        if self.fault == "cut upload" and self.command in ("POST", "PUT"):
            self.rfile.read1(1000)
            self.fault = "hang up"
        else:
            body = self.body()
        if self.fault == "hang up":
            self.close_connection = True
            self.connection.close()
        elif self.fault.isdigit():
            self.answer(int(self.fault), {"error": "injected"}, **self.fault_headers)
        else:
            with self.hub.lock:
                reply = self.route(path, parse_qs(url.query), body)
            status, content, headers = (*reply, {})[:3]
            self.answer(status, content, **headers)
            if self.command == "GET":
                self.hub.after(path)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names http.server calls

    def next_fault(self, path):
        for fault in self.hub.faults:
            wanted = fault.method in (self.command, "*") and re.search(fault.path, path)
            if wanted and fault.times:
                fault.times -= 1
                self.fault_headers = fault.headers
                return fault.kind
        return ""

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.fault == "other bytes" and self.command == "GET":
            body = bytes(255 - byte for byte in body)
        if self.fault == "short" and self.command == "GET":
            body = body[:-10]
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if ranged and status == 200:
            first, last = int(ranged[1]), int(ranged[2] or len(body) - 1)
            headers["Content_Range"] = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(body)

    # --- what is asked -------------------------------------------------------------------------

    def route(self, path, query, body):
        repo = r"(?P<repo>[^/]+/[^/]+)"
        for method, pattern, handle in (
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate),
            ("GET", r"/api/models", self.models),
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", rf"/api/models/{repo}/preupload/(?P<rev>.+)", self.preupload),
            ("POST", rf"/api/models/{repo}/commit/(?P<rev>.+)", self.commit),
            ("POST", rf"/{repo}\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/lfs/(?P<name>[0-9a-f]{64})", self.upload),
            ("GET", rf"/api/models/{repo}/tree/(?P<rev>.+)", self.tree),
            ("GET", rf"/api/models/{repo}/revision/(?P<rev>.+)", self.model),
            ("GET", rf"/api/models/{repo}", self.model),
            (
                "GET",
                rf"/{repo}/resolve/(?P<rev>refs/pr/\d+|[^/]+)/(?P<name>.+)",
                self.file,
            ),
        ):
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, {"HEAD": "GET"}.get(self.command)):
                refusal = self.refusal(match.groupdict().get("repo"), method)
                return refusal or handle(query=query, body=body, **match.groupdict())
        return 404, {"error": "no such page"}

    def user(self):
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return self.hub.tokens.get(given), given

    def refusal(self, repo, method):
        user, given = self.user()
        if given and user is None:
            return 401, {"error": "Invalid username or password."}
        if repo is not None:
            known = self.hub.repos.get(repo)
            if known is None or (known.private and user != repo.split("/")[0]):
                code = "RepoNotFound"
                return 404 if given else 401, {"error": code}, {"X_Error_Code": code}
            if method == "POST" and user != repo.split("/")[0]:
                return 403, {"error": "Forbidden"}
        return None

    def create(self, body, **_):
        user, _ = self.user()
        if user is None:
            return 401, {"error": "Invalid username or password."}
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or user}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}
        if repo in self.hub.repos:
            return 409, url
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repos[repo] = Repo(private=bool(private))
        return 200, url

    def validate(self, body, **_):
        front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        errors = [] if isinstance(front, dict) else [{"message": "no YAML"}]
        return 200, {"errors": errors, "warnings": []}

    def whoami(self, **_):
        user, _ = self.user()
        return (200, {"name": user, "type": "user"}) if user else (401, {"error": "no"})

    def preupload(self, repo, rev, body, **_):
        there = self.hub.repos[repo].at(rev)[1]
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            large = path.endswith(".safetensors") and file["size"] >= LFS_FROM
            known = oid(path, there[path])[0] if path in there else None
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": known,
                }
            )
        return 200, {"files": answers}

    def batch(self, body, **_):
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.hub.large:
                href = f"{self.hub.url}/lfs/{wanted['oid']}"
                wanted["actions"] = {"upload": {"href": href}}
        return 200, {"transfer": "basic", "objects": objects}

    def upload(self, name, body, **_):
        if hashlib.sha256(body).hexdigest() != name:
            return 400, {"error": "other content than announced"}
        self.hub.large[name] = body
        return 200, {}

    def commit(self, repo, rev, query, body, **_):
        known = self.hub.repos[repo]
        files = dict(known.at(rev)[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return 422, {"error": "an object is missing"}
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = hashlib.sha1(f"{repo}{len(known.commits)}{time.time_ns()}".encode()).hexdigest()
        answer = {"commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"}
        if query.get("create_pr") == ["1"]:
            known.requests.append((sha, files))
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{len(known.requests)}"
        else:
            known.commits.append((sha, files))
        return 200, answer

    def told(self, repo, rev="main"):
        known = self.hub.repos[repo]
        sha, files = known.at(rev)
        text = files.get("README.md", b"").decode()
        card = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
        tags = list(card.get("tags") or [])
        if base := card.get("base_model"):
            tags += [f"base_model:{base}", f"base_model:{card.get('base_model_relation')}:{base}"]
        return {
            "id": repo,
            "modelId": repo,
            "sha": sha,
            "siblings": [{"rfilename": path} for path in files],
            "tags": tags,
            "cardData": card,
            "private": known.private,
            "downloads": 3,
            "likes": 1,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z",
        }

    def model(self, repo, rev="main", **_):
        if self.hub.repos[repo].at(rev) is None:
            return 404, {"error": "no revision"}, {"X_Error_Code": "RevisionNotFound"}
        return 200, self.told(repo, rev)

    def models(self, query, **_):
        user, _ = self.user()
        visible = [r for r, k in self.hub.repos.items() if not k.private or user == r.split("/")[0]]
        told = [self.told(repo) for repo in visible]
        wanted = set(query.get("filter", []))
        author = query.get("author", [None])[0]
        return 200, [
            one
            for one in told
            if wanted <= set(one["tags"]) and author in (None, one["id"].split("/")[0])
        ][: int(query.get("limit", [1000])[0])]

    def tree(self, repo, rev, **_):
        found = self.hub.repos[repo].at(rev)
        if found is None:
            return 404, {"error": "no revision"}, {"X_Error_Code": "RevisionNotFound"}
        answers = []
        for path, content in found[1].items():
            name, large = oid(path, content)
            entry = {"type": "file", "path": path, "size": len(content), "oid": name}
            if large:
                entry["lfs"] = {"oid": name, "size": len(content), "pointerSize": 130}
            answers.append(entry)
        return 200, answers

    def file(self, repo, rev, name, **_):
        found = self.hub.repos[repo].at(rev)
        if found is None:
            return 404, {"error": "no revision"}, {"X_Error_Code": "RevisionNotFound"}
        sha, files = found
        if name not in files:
            code = "EntryNotFound"
            return 404, {"error": code}, {"X_Error_Code": code, "X_Repo_Commit": sha}
        headers = {"ETag": f'"{oid(name, files[name])[0]}"', "X_Repo_Commit": sha}
        return 200, files[name], {**headers, "Accept_Ranges": "bytes"}
