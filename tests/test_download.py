"""Between you and a file of the hub: each failure has a sentence of its own, and doing what it says helps."""

import errno
import json
import os
import re
from types import SimpleNamespace

import pytest
from if_fixtures import GOLDEN

from minidiff import download, hub
from minidiff.files import damaged

VARIABLES = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
]
VARIABLES += [
    name for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (proxy, proxy.lower())
]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def kind(*names):
    """An error type of a library, by the names of its family."""
    family = Exception
    for name in names[::-1]:
        family = type(name, (family,), {"__module__": "library"})
    return family


def system(number):
    return OSError(number, os.strerror(number))


CONNECT = kind("ConnectError", "NetworkError", "TransportError", "HTTPError")
OFFLINE = type("OfflineModeIsEnabled", (ConnectionError,), {})
ERRORS = [  # error, variables, at the hub, what is said
    (
        system(errno.ENOSPC),
        {},
        False,
        "the disk is full, a/b/c was not saved: free some space, or set HF_HOME to a folder on another disk",
    ),
    (system(errno.ENOSPC), {"HF_HUB_CACHE": "/x"}, False, "the disk is full, .* or set HF_HUB_CACHE to a folder"),
    (system(errno.EDQUOT), {}, False, "your quota of the disk is used up, a/b/c was not saved: free"),
    (RuntimeError("Task error: No space left on device (os error 28)"), {}, False, "the disk is full, a/b/c"),
    (
        RuntimeError("I/O error: Read-only file system (os error 30)"),
        {},
        False,
        r"a/b/c cannot be kept in the cache .*os error 30\)\): set HF_HOME",
    ),
    *(
        (system(n), {}, False, r"a/b/c cannot be kept in the cache .*: set HF_HOME to a folder that you may write")
        for n in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EIO)
    ),
    (system(errno.ECONNRESET), {}, False, "the hub stopped answering while a/b/c was fetched"),
    (
        CONNECT("[Errno 13] Permission denied"),
        {},
        True,
        r"the hub cannot be reached \(\[Errno 13\] Permission denied\)",
    ),
    (
        CONNECT("[Errno -2] Name or service not known"),
        {},
        True,
        "the hub cannot be reached .*, and a/b/c is not in the cache: go online",
    ),
    (
        CONNECT("refused"),
        {"HTTPS_PROXY": "http://me:secret@proxy.here:3128"},
        True,
        r"the proxy proxy.here:3128 does not let you through to the hub \(refused\): check HTTPS_PROXY",
    ),
    (
        CONNECT("refused"),
        {"HTTPS_PROXY": "http://proxy.here:3128", "NO_PROXY": "huggingface.co"},
        True,
        "the hub cannot be reached",
    ),
    (
        kind("ProxyError", "TransportError")("407 Proxy Authentication Required"),
        {"HTTPS_PROXY": "http://p:1"},
        True,
        "the proxy p:1 .*: put USER:PASSWORD@ before its host in HTTPS_PROXY",
    ),
    (kind("ConnectTimeout", "TimeoutException")(""), {}, True, r"the hub cannot be reached \(ConnectTimeout\)"),
    (kind("ReadTimeout", "TimeoutException")("timed out"), {}, False, "the hub stopped answering"),
    (
        CONNECT("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"),
        {},
        True,
        "the hub's certificate is not believed .*: let SSL_CERT_FILE and REQUESTS_CA_BUNDLE name",
    ),
    (
        FileNotFoundError(2, "No such file or directory"),
        {"SSL_CERT_FILE": "/no/such.pem"},
        True,
        "SSL_CERT_FILE names /no/such.pem, which is not there: let it",
    ),
    (OFFLINE("offline"), {}, True, "HF_HUB_OFFLINE is set, and a/b/c is not in the cache: unset it"),
    (
        UnicodeEncodeError("ascii", "é", 0, 1, "no"),
        {"HF_TOKEN": "hf_é"},
        True,
        "your token has characters that no token has: set HF_TOKEN to a token .*, or unset it and run `hf auth login`",
    ),
    (
        kind("LocalProtocolError", "TransportError")("Illegal header value b'Bearer hf_abc'"),
        {},
        True,
        "your token has characters that no token has: run `hf auth login`",
    ),
    (
        kind("XetDownloadError")("CAS"),
        {},
        False,
        "the storage behind the hub .Xet. failed for a/b/c .CAS.: try again, set HF_HUB_DISABLE_XET=1, or give",
    ),
    (RuntimeError("Task error: reconstruction"), {}, False, "the storage behind the hub .Xet. failed"),
    (
        OSError("Consistency check failed: file should be of size 5 but has size 4"),
        {},
        False,
        "a/b/c came through cut off or changed: try again",
    ),
    (
        kind("InvalidURL")("bad scheme of http://me:secret@here"),
        {},
        True,
        r"a/b/c could not be fetched \(InvalidURL: bad scheme of http://here\): try again",
    ),
    (KeyError("x"), {}, False, "a/b/c could not be fetched .KeyError: 'x'.: try again"),
]


@pytest.mark.parametrize(("error", "variables", "at_hub", "says"), ERRORS, ids=lambda value: str(value)[:30])
def test_an_error_on_the_way_is_a_sentence_with_a_step_that_helps(monkeypatch, error, variables, at_hub, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = download._explained(error, "a/b", "a/b/c", at_hub)
    assert re.match(says, said), said
    assert "secret" not in said and "hf_abc" not in said and "\n" not in said


@pytest.mark.parametrize(
    ("status", "code", "message", "at_hub", "says"),
    [
        (503, "", "", False, "the storage behind the hub .cdn.here. answered 503 for a/b/c: try again later"),
        (404, "", "", False, "the storage behind the hub .cdn.here. answered 404"),
        (401, "", "", False, "the storage behind the hub .cdn.here. answered 401"),
        (504, "", "", True, "the hub answered 504 for a/b/c: try again later"),
        (429, "", "", False, "the hub was asked too often from here .429.: wait some minutes"),
        (403, "RepoNotFound", "", True, "the hub has no model a/b that you may see .403.: check the spelling"),
        (
            404,
            "RevisionNotFound",
            "",
            True,
            "the hub no longer has the commit of a/b that is in the cache: delete .*models--a--b and start again",
        ),
        (451, "", "Unavailable", True, "the hub answered 451: Unavailable for a/b/c"),
    ],
)
def test_an_answer_is_a_sentence_too(status, code, message, at_hub, says):
    response = SimpleNamespace(
        status_code=status,
        headers={"X-Error-Code": code, "X-Error-Message": message},
        url="https://cdn.here/x?Signature=abc",
    )
    error = SimpleNamespace(response=response)
    said = download._explained(error, "a/b", "a/b/c", at_hub)
    assert re.match(says, said), said


BROKEN = {
    "cut": (b"abcd", r"\(no; it has 4 bytes\): delete it and get it again"),
    "empty": (b"", r"\(no; it has 0 bytes\): delete it and get it again"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
        r"\(it is a Git LFS pointer, a note where the file is\): run `git lfs pull` in its folder",
    ),
    "a page": (b"\n<!DOCTYPE html><html>", r"\(it is a web page, perhaps of a login\): delete it and get it again"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_says_what_it_is_and_names_the_file_behind_the_link(tmp_path, name):
    content, says = BROKEN[name]
    (tmp_path / "blob").write_bytes(content)
    (tmp_path / "link").symlink_to("blob")
    said = str(damaged(tmp_path / "link", "whole file", "no"))
    assert re.fullmatch(rf"{tmp_path}/blob is no whole file {says}", said), said


def test_in_the_cache_a_pointer_is_deleted_and_what_cannot_be_read_says_why(tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x").write_bytes(BROKEN["a pointer"][0])
    assert str(damaged(tmp_path / "blobs" / "x", "whole file", "no")).endswith(": delete it and get it again")
    assert str(damaged(tmp_path / "y", "whole file", "no")).endswith(
        "y cannot be read (No such file or directory): check its rights and its disk"
    )


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf{}", "{}".encode("utf-16"), "{}".encode("utf-32"), b" {}\r\n"], ids=repr
)
def test_a_config_may_begin_with_a_mark_of_its_encoding(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert hub.read_json(tmp_path, "config.json") == {}


@pytest.mark.parametrize(
    "text",
    ['{"a": 1' + "0" * 5000 + "}", '{"a": "\ud800"}', '{"a": 1, "a": 2}', '{"a": }'],
    ids=lambda text: ascii(text)[:12],
)
def test_other_configs_are_refused_with_their_path(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass")[:-1] + b"\xff}")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))) as refusal:
        hub.read_json(tmp_path, "config.json")
    assert "\n" not in str(refusal.value)


def test_what_is_in_a_folder_is_found_and_nobody_is_asked(tmp_path):
    assert hub.cached(GOLDEN / "tiny-if-I", "unet/no.json", "unet/config.json").name == "config.json"
    assert hub.cached(tmp_path, "unet/config.json") is None
    assert hub.cached("no such name", "unet/config.json") is None
    assert json.loads(hub.cached(GOLDEN / "tiny-if-I", "unet/config.json").read_text())
