"""A hub of the tests' own, which huggingface_hub asks in place of the real one."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

COMMIT = "1" * 40
ANSWERS = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound"), "broken": (500, "")}


class Hub(BaseHTTPRequestHandler):
    """Answers for the models `me/gated`, `me/missing`, `me/broken`, and `me/tiny`, whose files are
    those of `folder`.
    """

    folder: Path
    claimed: dict[str, int] = {}  # sizes to claim instead of the real ones

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = next((p for i, p in enumerate(parts) if parts[i - 1] == "me"), "missing")
        if name in ANSWERS:
            code, word = ANSWERS[name]
            return self.reply(code, b"", {"X-Error-Code": word} if word else {}, body)
        files = {str(p.relative_to(self.folder)): p for p in self.folder.rglob("*") if p.is_file()}
        if parts[0] == "api":
            listed = [
                {
                    "type": "file",
                    "path": f,
                    "rfilename": f,
                    "size": p.stat().st_size,
                    "oid": "0" * 40,
                }
                for f, p in files.items()
            ]
            value = (
                listed
                if "tree" in parts
                else {
                    "id": "me/tiny",
                    "sha": COMMIT,
                    "siblings": listed,
                    "private": False,
                    "tags": [],
                }
            )
            return self.reply(200, json.dumps(value).encode(), {}, body)
        path = files["/".join(parts[4:])]
        self.reply(
            200,
            path.read_bytes(),
            {
                "ETag": f'"{path.name}"',
                "X-Repo-Commit": COMMIT,
                **({} if body else self.claimed_size(path)),
            },
            body,
        )

    def claimed_size(self, path: Path) -> dict[str, str]:
        return {"X-Linked-Size": str(self.claimed[path.name])} if path.name in self.claimed else {}

    def reply(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
