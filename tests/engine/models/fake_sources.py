"""Fakes of external sources: model folders, a hub, a package index and a tiny GGUF wheel."""

import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants
import numpy as np
import pytest

from llmctl.engine.models.package_index import ModelWheel

COMMIT = "c0ffee" + "0" * 34

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make every source unreachable, with store and cache in `tmp_path`, which is returned."""
    # Read once, at import. The fake hub is on this machine, so offline mode is off.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "llmctl"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def safetensors_bytes(**shapes: tuple[int, ...]) -> bytes:
    """Write a safetensors file of zeros in bfloat16."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def model_files(weights: str = "model.safetensors") -> dict[str, bytes]:
    """Return the files of a model with 72 parameters, 40 in linear layers. It cannot run."""
    return {
        "config.json": json.dumps(TINY_CONFIG).encode(),
        "tokenizer.json": b"{}",
        "chat_template.jinja": TEMPLATE.encode(),
        weights: safetensors_bytes(embed=(8, 4), up=(6, 4), down=(4, 4)),
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_cached(
    hf_home: Path, repo: str, files: Mapping[str, bytes], commit: str = COMMIT, ref: str = "main"
) -> Path:
    """Write a snapshot into a Hugging Face cache in the layout of the hub's client."""
    folder = hf_home / "hub" / f"models--{repo.replace('/', '--')}"
    for part in ("refs", "blobs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return snapshot


class FakeHub(ThreadingHTTPServer):
    """Implements the part of the hub's protocol that a download needs, for one repository.

    `status` and `error_code` are the response to every file and listing. `chunk_delay` is
    the pause in seconds before each kilobyte of a file.
    """

    daemon_threads = True

    def __init__(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        status: int = 200,
        error_code: str | None = None,
        chunk_delay: float = 0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.repo = repo
        self.files = files
        self.status = status
        self.error_code = error_code
        self.chunk_delay = chunk_delay
        self.downloaded: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _HubHandler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        known = path.startswith((f"/api/models/{hub.repo}", f"/{hub.repo}/"))
        status, code = (hub.status, hub.error_code) if known else (401, "RepoNotFound")
        if status != 200:
            self._send(b"{}", status, {"X-Error-Code": code} if code else {})
        elif "/tree/" in path:
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in hub.files.items()
            ]
            self._send(json.dumps(listing).encode())
        elif path.startswith("/api/"):
            revision = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
            if revision not in ("main", COMMIT):
                self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": n, "size": len(c)} for n, c in hub.files.items()]
            info = {"id": hub.repo, "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(json.dumps(info).encode())
        else:
            name = path.rpartition("/")[2]
            if self.command == "GET":
                hub.downloaded.append(name)
            etag = hashlib.sha256(hub.files[name]).hexdigest()
            self._send(hub.files[name], 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _send(
        self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for begin in range(0, len(body), 1024):
            time.sleep(self.server.chunk_delay)
            self.wfile.write(body[begin : begin + 1024])

    def log_message(self, format: str, *args: object) -> None:
        pass


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes]) -> Path:
    """Build a pure wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    everything = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": tags.encode(),
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in everything.items():
            archive.writestr(member, content)
    return path


def tiny_wheel(folder: Path) -> ModelWheel:
    """Write a wheel with a random two-layer llama to `folder` and return its description."""
    inside = "llm_tiny/tiny.gguf"
    source = folder / "tiny.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    _write_gguf(source)
    path = write_wheel(folder, "llm_tiny", "1.0", {inside: source.read_bytes()})
    source.unlink()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelWheel("llm-tiny==1.0", sha256, path.stat().st_size, inside)


def _write_gguf(path: Path, hidden: int = 32, layers: int = 2, heads: int = 2) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    space = bytes_to_unicode()[ord(" ")]
    # The only merge; its result depends on how digits are split off.
    tokens = ["<unk>", "<s>", "</s>", *letters, space + space]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges([f"{space} {space}"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}.weight"] = (hidden, hidden)
        shapes[f"blk.{layer}.ffn_gate.weight"] = (2 * hidden, hidden)
        shapes[f"blk.{layer}.ffn_up.weight"] = (2 * hidden, hidden)
        shapes[f"blk.{layer}.ffn_down.weight"] = (hidden, 2 * hidden)
        shapes[f"blk.{layer}.attn_norm.weight"] = (hidden,)
        shapes[f"blk.{layer}.ffn_norm.weight"] = (hidden,)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
