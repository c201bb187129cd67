"""A hub on the loopback that serves tests/golden/tiny-if-I and fails in every known way, and a process that asks it for
files.
"""

import hashlib
import multiprocessing
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from minidiff import download, hub

GOLDEN = Path(__file__).parent / "golden"
FAILURES = {  # owner of the model -> status, error code, what the hub says
    "gated-401": (401, "GatedRepo", ""),
    "gated-403": (403, "GatedRepo", ""),
    "pending": (403, "GatedRepo", "Your request to access model pending/I is awaiting a review from the repo authors."),
    "rejected": (403, "GatedRepo", "Your request to access model rejected/I has been rejected by the repo's authors."),
    "unknown-401": (401, "RepoNotFound", ""),
    "unknown-404": (404, "RepoNotFound", ""),
    "expired": (401, "", "Invalid credentials in Authorization header"),
    "narrow": (
        403,
        "",
        "Please enable access to public gated repositories in your fine-grained token settings to view it.",
    ),
    "disabled": (403, "", "Access to this resource is disabled."),
    "busy": (429, "", ""),
    "proxy": (407, "", ""),
    "firewall": (403, "", ""),
    "broken-500": (500, "", ""),
}
ONE, TWO = "1" * 40, "2" * 40  # commits

FETCHED = []  # paths of the bodies sent


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        owner, _, _, revision, *parts = self.path.strip("/").split("/")
        name = "/".join(parts)
        file = GOLDEN / "tiny-if-I" / name
        if owner == "down":
            return  # hangs up
        status, code, said = FAILURES.get(owner, (200, "", ""))
        newest = (
            TWO if owner in ("moved", "squashed", "mirror") and FETCHED.count(f"{owner}: unet/config.json") else ONE
        )
        commit = newest if revision == "main" or owner == "mirror" else revision
        if status == 200 and not file.is_file():
            status, code = 404, "EntryNotFound"
        elif owner == "squashed" and commit != newest:
            status, code = 404, "RevisionNotFound"
        elif owner == "storage" and body:
            status = 403
        self.send_response(status)
        for header, value in {
            "X-Error-Code": code,
            "X-Error-Message": said,
            "Retry-After": "7" if status == 429 else "",
        }.items():
            if value:
                self.send_header(header, value)
        content = file.read_bytes() if status == 200 else b""
        self.send_header("Content-Length", str(10**15 if owner == "huge" else len(content)))
        if owner != "login":
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if body:
            FETCHED.append(name if owner in ("tiny", "new") else f"{owner}: {name}")
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def serve() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def ask(endpoint: str, home: str, online: bool, pipe) -> None:
    """Ask for files, and send down the pipe what came back."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # it reads its settings when it is imported
    os.environ |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        os.environ.pop(name, None)

    def tell(question):
        try:
            return question()
        except ValueError as error:
            return f"ValueError: {error}"

    results = {}
    for owner in ("tiny", "new", "down", "storage", "login", "huge", *FAILURES):
        results[owner] = tell(lambda owner=owner: hub.read_json(f"{owner}/I", "unet/config.json").get("act_fn"))
    results["weights"] = tell(lambda: len(hub.find_weights("tiny/I", "text_encoder", "model", half=True)))
    results["absent"] = tell(lambda: str(hub.fetch("tiny/I", "unet/model.bin", "unet/model.pt")))
    if online:
        for owner in ("moved", "squashed", "mirror"):
            download._commits.clear()  # as a process begins
            hub.read_json(f"{owner}/I", "unet/config.json")
            results[owner] = tell(lambda owner=owner: str(hub.fetch(f"{owner}/I", "text_encoder/config.json")))
            download._commits.clear()
            results[f"{owner}, later"] = tell(
                lambda owner=owner: str(hub.fetch(f"{owner}/I", "scheduler/scheduler_config.json"))
            )
        import huggingface_hub.file_download as library

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        library.http_get = full
        results["full"] = tell(lambda: str(hub.fetch("tiny/I", "scheduler/scheduler_config.json")))
    pipe.send(results)


def ask_in_a_process_of_its_own(endpoint: str, home: str, online: bool) -> dict:
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=ask, args=(endpoint, home, online, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()
