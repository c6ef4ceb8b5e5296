"""`bertcli fetch` with the real huggingface_hub, from a local server that implements the Hub's API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
SHA = "1" * 40
FILES: dict[str, dict[str, bytes]] = {
    "models/org/encoder": {
        "config.json": b"{}",
        "model.safetensors": b"weights" * 1000,
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"never requested",
    },
    "datasets/org/texts": {"README.md": b"# texts\n", "train.csv": b"text,label\na,x\n", "a [b].csv": b"text,label\n"},
}


class Handler(BaseHTTPRequestHandler):
    """Serves listings and files; the first download of the weights is cut off halfway."""

    protocol_version = "HTTP/1.1"
    downloads: list[str]  # requested files

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/"):
            name = "/".join(path.split("/")[1:4])
            listed = [self._entry(file, content) for file, content in FILES[name].items()]
            body = listed if "/tree/" in path else {"id": name, "sha": SHA, "siblings": listed}
            self._send(json.dumps(body).encode(), {"Content-Type": "application/json"})
            return
        repository, _, file = path.partition(f"/resolve/{SHA}/")
        content = FILES[repository if repository in FILES else f"models/{repository}"][file]
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.downloads.append(file)
        self._send(content[start:], headers, cut=file == "model.safetensors" and self.downloads.count(file) == 1)

    def _entry(self, file: str, content: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "rfilename": file, "path": file, "size": len(content), "blobId": blob, "oid": blob}
        if not file.endswith(".safetensors"):
            return entry
        sha256 = hashlib.sha256(content).hexdigest()
        return entry | {"lfs": {"size": len(content), "sha256": sha256, "oid": sha256, "pointerSize": 9}}

    def _send(self, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(206 if "Range" in self.headers else 200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut


@pytest.fixture
def address() -> Iterator[str]:
    Handler.downloads = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(address: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(Path("home").absolute()), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "bertcli", "fetch", "mine.yaml", "--mirror", "mirror"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_fetch_downloads_each_file_once_and_resumes(address: str) -> None:
    Path("mine.yaml").write_text(
        "task: {dataset: org/texts, text_columns: [text], labels: [x, y]}\nmodel: {name: org/encoder}\n"
    )
    process = fetch(address)
    assert process.returncode == 0, process.stderr
    for repository, files in FILES.items():
        fetched = {path.name: path.read_bytes() for path in Path("mirror", repository).iterdir()}
        assert fetched == {name: content for name, content in files.items() if name != "pytorch_model.bin"}
    num_downloads = len(Handler.downloads)
    assert Handler.downloads.count("model.safetensors") == 2  # cut off once, then resumed
    assert "0 files fetched" in fetch(address).stderr
    assert len(Handler.downloads) == num_downloads
    assert "pytorch_model.bin" not in Handler.downloads
