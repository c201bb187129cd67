"""A file of a model on the hub: fetched once, all of one commit, and what stands in its way is said, with what helps.

The first file of a model decides its commit, one that is in the cache before any other; the rest are asked for at that
commit. So a download that was cut off goes on with the same version, although there may be a newer one. Next: hub.py,
the files of a model.
"""

import errno
import os
import re
import shutil
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

FULL = {errno.ENOSPC: "the disk is full", getattr(errno, "EDQUOT", -1): "your quota of the disk is used up"}
NETWORK = {
    "ConnectionError",
    "ConnectError",
    "TimeoutError",
    "TimeoutException",
    "Timeout",
    "TransportError",
    "ProxyError",
    "SSLError",
    "gaierror",
    "ChunkedEncodingError",
}
OR_LOCAL = "or give a local folder"
_commits: dict[str, str] = {}  # model -> the commit that its files are of, in this process


def download(repo: str, names: tuple[str, ...]) -> Path:
    """The first of the files that the model on the hub has: from the cache, or fetched. Raises ValueError with the next
    step.
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        utils,
    )  # here: it takes a second, and a folder does not need it

    path = _cached(repo, names)
    for name in names if path is None else ():
        file, at_hub = f"{repo}/{name}", True
        try:
            commit = _commits.get(repo) or _of_cache(repo)
            try:
                found = get_hf_file_metadata(
                    hf_hub_url(repo, name, revision=commit)
                )  # ask first: the download itself would try a dead line five times
            except utils.RevisionNotFoundError:
                if repo in _commits:
                    raise
                commit, found = (
                    None,
                    get_hf_file_metadata(hf_hub_url(repo, name)),
                )  # nothing of the cache was used: take the newest
            _check_answer(repo, file, commit, found)
            at_hub = False
            path = Path(hf_hub_download(repo, name, revision=commit))
            break
        except utils.LocalEntryNotFoundError as error:
            raise ValueError(_explained(error.__cause__ or error, repo, file, at_hub)) from None
        except utils.EntryNotFoundError:
            continue  # the hub knows the model, and that it has no such file
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001, there are five libraries below, and each has its own
            raise ValueError(_explained(error, repo, file, at_hub)) from None
    if path is None:
        raise ValueError(
            f"{repo} has no {' or '.join(names)}: choose a model in the layout of the hub, with safetensors"
        )
    _commits[repo] = _commit_of(path)
    return path


def cached(repo: str, names: tuple[str, ...]) -> Path | None:
    """The first of the files that is in the cache, of the model's commit; nobody is asked."""
    path = _cached(repo, names)
    if path is not None:
        _commits[repo] = _commit_of(path)
    return path


def _cached(repo: str, names: tuple[str, ...]) -> Path | None:
    from huggingface_hub import hf_hub_download, utils

    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=_commits.get(repo), local_files_only=True))
        except utils.EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ValueError(_explained(error, repo, f"{repo}/{name}", False)) from None
    return None


def _folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, "models--" + repo.replace("/", "--"))


def _of_cache(repo: str) -> str | None:
    """The commit of what the cache has of the model."""
    try:
        commit = (_folder(repo) / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None


def _commit_of(path: Path) -> str:
    return path.parts[len(path.parts) - path.parts[::-1].index("snapshots")]


def _check_answer(repo: str, file: str, commit: str | None, found) -> None:
    """Raises ValueError unless it is a hub that answers, of the commit asked for, and there is room for the file."""
    if found.commit_hash is None or found.etag is None:
        step = "open any page in a browser and log in, and check HF_ENDPOINT"
        raise ValueError(f"what answered for {file} is not the hub, but perhaps a login page of this network: {step}")
    if commit and found.commit_hash != commit:
        both = f"{repo} is here of commit {commit[:8]}, and the hub gives {found.commit_hash[:8]}"
        raise ValueError(f"{both}: delete {_folder(repo)} and start again")
    nearest = next(folder for folder in (_folder(repo), *_folder(repo).parents) if folder.exists())
    room = shutil.disk_usage(nearest).free
    if found.size and found.size > room:
        sizes = f"{found.size / 1e9:.1f} GB, free are {room / 1e9:.1f}"
        raise ValueError(f"the disk is full, {file} was not fetched ({sizes}): {_more_room()}")


# ----------------------------------------------------------------------------------------------------- what went wrong


def _explained(error: BaseException, repo: str, file: str, at_hub: bool) -> str:
    """The sentence for an error on the way to a file; at_hub: the hub was asked, and not yet the storage behind it."""
    text, kinds = _line(str(error)) or type(error).__name__, {kind.__name__ for kind in type(error).__mro__}
    response, proxies = getattr(error, "response", None), urllib.request.getproxies()
    if type(error) is ValueError:
        return text  # ours
    if response is not None and response.status_code >= 400:
        return _refused(response, repo, file) or _answered(response, file, at_hub)
    if "ProxyError" in kinds or (kinds & NETWORK and (proxies.keys() & {"https", "all"}) and not _bypassed()):
        return _proxy(text, "407" in text)
    here = _of_this_machine(error, text, kinds, repo, file)
    if here:
        return here
    if kinds & NETWORK and at_hub:
        return f"the hub cannot be reached ({text}), and {file} is not in the cache: go online, {OR_LOCAL}"
    if kinds & NETWORK:
        return f"the hub stopped answering while {file} was fetched ({text}): try again, {OR_LOCAL}"
    if "onsistency check failed" in text or "should be of size" in text:
        return f"{file} came through cut off or changed: try again, {OR_LOCAL}"
    xet = "xet" in f"{type(error).__module__} {' '.join(kinds)} {text}".lower()
    if xet or (not at_hub and "RuntimeError" in kinds):
        step = f"try again, set HF_HUB_DISABLE_XET=1, {OR_LOCAL}"
        return f"the storage behind the hub (Xet) failed for {file} ({text}): {step}"
    return f"{file} could not be fetched ({type(error).__name__}: {text}): try again, {OR_LOCAL}"


def _of_this_machine(error: BaseException, text: str, kinds: set[str], repo: str, file: str) -> str | None:
    """The sentence for a setting or a disk of this machine."""
    wrapped = re.search(r"os error (\d+)", text)  # what is written in Rust says it so
    number = int(wrapped[1]) if wrapped else getattr(error, "errno", None)
    if "OfflineModeIsEnabled" in kinds:
        return f"HF_HUB_OFFLINE is set, and {file} is not in the cache: unset it, {OR_LOCAL}"
    if kinds & {"InvalidHeader", "LocalProtocolError", "UnicodeError"}:
        return f"your token has characters that no token has: {_login()}"
    if number in FULL:
        return f"{FULL[number]}, {file} was not saved: {_more_room()}"
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if not os.path.exists(os.environ.get(name) or "/"):
            return f"{name} names {os.environ[name]}, which is not there: let it name your certificates, or unset it"
    if "certificate" in text.lower() or "SSL" in text:
        step = "let SSL_CERT_FILE and REQUESTS_CA_BUNDLE name your network's certificates, and set the clock right"
        return f"the hub's certificate is not believed ({text}): {step}"
    if kinds & NETWORK or not number:
        return None
    if isinstance(error, OSError) or number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
        step = f"set {_cache_variable()} to a folder that you may write, {OR_LOCAL}"
        return f"{file} cannot be kept in the cache {_folder(repo).parent} ({text}): {step}"
    return None


def _refused(response, repo: str, file: str) -> str | None:
    """The sentence for an answer that is about you, your token or the model."""
    status, page, code = response.status_code, f"huggingface.co/{repo}", response.headers.get("X-Error-Code")
    said = _line(response.headers.get("X-Error-Message") or "")
    quoted, low = f"{status}: {said}" if said else str(status), said.lower()
    if "disabled" in low:
        return f"the hub has closed {repo} ({quoted}): choose another model"
    if "review" in low or "pending" in low:
        return f"your request for {repo} waits for its authors ({quoted}): try again when they have answered"
    if "reject" in low:
        return f"the authors of {repo} have refused your request ({quoted}): choose another model"
    if status == 403 and "token" in low:
        return f"your token may not read {repo} ({quoted}): allow it at huggingface.co/settings/tokens, or {_login()}"
    if code == "GatedRepo" and status == 401:
        return f"{repo} wants to know who you are (401: no valid token): accept its licence at {page}, then {_login()}"
    if code == "GatedRepo":
        why = f"{repo} is gated and your account has not accepted its licence ({status})"
        return f"{why}: accept it at {page}, then try again"
    if code == "RepoNotFound" and "credentials" not in low:
        hint = f"it may be private: {_login()}, or " if status == 401 else ""
        return f"the hub has no model {repo} that you may see ({status}): {hint}check the spelling"
    if code == "RevisionNotFound":
        lost = f"the hub no longer has the commit of {repo} that is in the cache"
        return f"{lost}: delete {_folder(repo)} and start again"
    if status == 401 and (said or code):
        return f"the hub does not accept your token ({quoted}): {_login()}"
    return None


def _answered(response, file: str, at_hub: bool) -> str:
    """The sentence for another answer of 400 or more."""
    status, host = response.status_code, urlsplit(str(response.url)).netloc
    quoted = _line(f"{status}: {response.headers.get('X-Error-Message') or ''}").removesuffix(":")
    storage = f"the storage behind the hub ({host})"
    if status == 407:
        return _proxy(quoted, True)
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        wait = f"{wait} seconds" if wait.isdecimal() else "some minutes"
        return f"the hub was asked too often from here ({quoted}): wait {wait}, or {_login()}"
    if status == 401 and at_hub:
        return f"the hub does not accept your token ({quoted}): {_login()}"
    if not at_hub and status < 500:
        step = f"try again, as its links expire; if it stays so, let your network pass {host}, {OR_LOCAL}"
        return f"{storage} answered {quoted} for {file}: {step}"
    if status == 403:
        return f"{host} refuses {file} ({quoted}): let your network pass it, where a firewall does so, {OR_LOCAL}"
    return f"{'the hub' if at_hub else storage} answered {quoted} for {file}: try again later, {OR_LOCAL}"


def _line(text: str) -> str:
    """The beginning and the end of an error as one line, without passwords."""
    text = re.sub(r"//[^/@\s]+@", "//", re.sub(r"\bhf_\w+", "hf_...", " ".join(text.split())))
    return text if len(text) < 200 else f"{text[:100]} ... {text[-100:]}"


def _login() -> str:
    variable = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    where = "a token from huggingface.co/settings/tokens"
    return (
        f"set {variable} to {where}, or unset it and run `hf auth login`"
        if variable
        else f"run `hf auth login` with {where}"
    )


def _cache_variable() -> str:
    return next((name for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if os.environ.get(name)), "HF_HOME")


def _more_room() -> str:
    return f"free some space, or set {_cache_variable()} to a folder on another disk"


def _bypassed() -> bool:
    from huggingface_hub import constants

    return bool(urllib.request.proxy_bypass(urlsplit(constants.ENDPOINT).netloc))


def _proxy(text: str, nameless: bool) -> str:
    proxies = urllib.request.getproxies()
    address = proxies.get("https") or proxies.get("all") or "of this network"
    place = urlsplit(address).netloc.rpartition("@")[2] if "//" in address else address
    step = "put USER:PASSWORD@ before its host in HTTPS_PROXY" if nameless else "check HTTPS_PROXY, or unset it"
    return f"the proxy {place} does not let you through to the hub ({text}): {step}"
