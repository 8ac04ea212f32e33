"""A Hub on loopback, small but real: push the eraser in argv[1], load it back, print `same`."""

import base64
import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


REPOS: dict[str, dict[str, bytes]] = {}
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        body = self.body()
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            status = 409 if repo in REPOS else 200
            REPOS.setdefault(repo, {})
            self.answer(status, {"url": f"http://{self.headers['Host']}/{repo}", "name": repo})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            repo = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    REPOS[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200,
                {
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}",
                },
            )
        else:
            self.answer(404)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        repo = "/".join(parts[:2])
        if len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[4:]) in REPOS.get(repo, {}):
            content = REPOS[repo]["/".join(parts[4:])]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(200, content, ETag=etag, X_Repo_Commit=COMMIT)
        else:
            code = "EntryNotFound" if repo in REPOS else "RepoNotFound"
            self.answer(404, {"error": code}, X_Error_Code=code)

    do_HEAD = do_GET  # noqa: N815 - the name http.server calls


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    os.environ.pop("HF_HUB_OFFLINE", None)
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": sys.argv[2],
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    import torch

    from diffusers_erase import EraserAdapter, ErasureError, list_erasures, load_erasure
    from diffusers_erase.playground import model

    eraser = EraserAdapter.from_pretrained(sys.argv[1])
    eraser.push_to_hub("user/erase-car")
    back = EraserAdapter.from_pretrained("user/erase-car")
    assert b'erases "car"' in REPOS["user/erase-car"]["README.md"]
    unet = model.unet()
    load_erasure(unet, "user/erase-car")
    loaded = list_erasures(unet)["car"]
    assert (loaded.source, loaded.commit) == ("user/erase-car", COMMIT), loaded
    for missing in ("user/nothing", "user/erase-car"):
        REPOS["user/erase-car"].pop("pytorch_lora_weights.safetensors", None)
        try:
            EraserAdapter.from_pretrained(missing, force_download=True)
        except ErasureError as error:
            print(error)
        else:
            raise AssertionError(f"{missing} should not load")
    equal = all(
        torch.equal(a, b)
        for p in eraser.factors
        for a, b in zip(eraser.factors[p], back.factors[p], strict=True)
    )
    print("same" if equal and back.config == eraser.config else "different")


if __name__ == "__main__":
    main()
