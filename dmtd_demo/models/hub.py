"""Models and add-ons from the Hugging Face hub.

Every way in which that can fail is one sentence with what to do.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from pathlib import Path
from typing import BinaryIO, Iterator, cast

from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from dmtd_demo import proxies
from dmtd_demo.errors import UserError
from dmtd_demo.models.memory import gib

MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "addons/*"]
ADDON_FILES = ["addons.json", "*.safetensors"]
SPARE = 2**28  # bytes of the disk that stay free


def is_id(text: str) -> bool:
    """Whether the text has the form of a hub id, owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def split(text: str) -> tuple[str, str | None] | None:
    """A hub id, and the GGUF file that may follow it after a colon; None for any other text."""
    hub_id, colon, file = text.partition(":")
    if not is_id(hub_id):
        return None
    if not colon:
        return hub_id, None
    good = re.fullmatch(r"[\w.-]+(/[\w.-]+)*", file) and ".." not in file.split("/")
    return (hub_id, file) if good and file.lower().endswith(".gguf") else None


def revision(path: Path) -> str | None:
    """The commit of a folder in the hub's cache, or of a file in it; None for any other."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots":
            return folder.name
    return None


def fetch(hub_id: str, files: list[str], bar: type | None = None) -> Path:
    """Fetch these files, from the local cache or the hub; returns their folder.

    files: patterns. bar: a tqdm class that hears of the bytes. Raises UserError.
    """
    with in_words(hub_id):
        _check_disk(hub_id, files)
        return Path(snapshot_download(hub_id, allow_patterns=files, tqdm_class=bar))


def fetch_file(source: str, bar: type | None = None) -> Path:
    """Fetch the file of a source `owner/name:file`, in the same way."""
    hub_id, file = _parts(source)
    path = fetch(hub_id, [file], bar) / file
    if not path.is_file():
        raise UserError(f"{hub_id} needs to have the file {file} on the hub; it has none")
    return path


def cached_file(source: str) -> Path | None:
    """The file of such a source where it lies in the local cache."""
    path = try_to_load_from_cache(*_parts(source))
    return Path(path) if isinstance(path, str) else None


def _parts(source: str) -> tuple[str, str]:
    parts = split(source)
    if parts is None or parts[1] is None:
        raise UserError(f"a file on the hub needs the form owner/name:file.gguf; got {source!r}")
    return parts[0], parts[1]


@contextlib.contextmanager
def opened(source: str) -> Iterator[tuple[BinaryIO, int]]:
    """The file of such a source as it comes, with its size: what is not read is not fetched."""
    hub_id, file = _parts(source)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with in_words(hub_id):
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        with get_session().stream(
            "GET", hf_hub_url(hub_id, file), headers=headers, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            pieces = _Pieces(response.iter_bytes())
            yield cast(BinaryIO, pieces), int(response.headers["Content-Length"])


class _Pieces:
    """A stream to read from, of the pieces that come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, b""

    def read(self, n: int) -> bytes:
        held = [self._held]
        size = len(self._held)
        while size < n and (piece := next(self._pieces, b"")):
            held.append(piece)
            size += len(piece)
        whole = b"".join(held)
        self._held = whole[n:]
        return whole[:n]


def push(folder: Path, hub_id: str, private: bool) -> str:
    """Upload a folder of add-ons with its card; returns the upload's address. Raises UserError."""
    with in_words(hub_id):
        api = HfApi()
        api.create_repo(hub_id, private=private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=hub_id,
                folder_path=folder,
                allow_patterns=[*ADDON_FILES, "README.md"],
                commit_message="Add-ons by dmtd_demo",
            )
        )


@contextlib.contextmanager
def in_words(hub_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a UserError."""
    page = f"{constants.ENDPOINT}/{hub_id}"
    try:
        yield
    except UserError:
        raise
    except GatedRepoError:
        raise UserError(
            f"{hub_id} is gated: accept its terms on {page}, and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{hub_id} is neither a folder here nor a repository that you can reach on the hub: "
            f"check the name on {page}, or log in with `hf auth login`"
        ) from None
    except ImportError as error:
        with proxies.proxy_errors():
            raise error
    except HFValidationError as error:
        raise UserError(f"a hub id needs the form owner/name; got {hub_id!r}: {error}") from None
    except (LocalEntryNotFoundError, ConnectionError):  # offline mode is among the latter
        raise UserError(
            f"{hub_id} is no folder here, so it needs to be fetched from the hub, which cannot be "
            "reached, and the local cache does not have it: connect this machine to the network, "
            f"or fetch it elsewhere (`hf download {hub_id}`) and give the folder's path"
        ) from None
    except Exception as error:  # the hub's and the network's other errors, and the disk's
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(
                f"{hub_id} does not fit on the disk of {constants.HF_HUB_CACHE}: free some space, "
                "or set HF_HOME to a folder on another disk"
            ) from None
        raise UserError(
            f"{hub_id} needs the hub, which answered: {' '.join(str(error).split())[:200]}; try "
            "again later, or `hf auth login` where it asks who you are"
        ) from None


def _check_disk(hub_id: str, files: list[str]) -> None:
    """Refuse what the disk has no room for, before anything is fetched."""
    try:
        plan = snapshot_download(hub_id, allow_patterns=files, dry_run=True)
    except (DryRunError, LocalEntryNotFoundError):
        # the hub cannot be asked; what is in the cache needs no room
        return
    size = sum(file.file_size or 0 for file in plan if file.will_download)
    cache = next(
        path
        for path in (Path(constants.HF_HUB_CACHE), *Path(constants.HF_HUB_CACHE).parents)
        if path.exists()
    )
    room = shutil.disk_usage(cache).free - SPARE
    if size > room:
        raise UserError(
            f"{hub_id} needs {gib(size)} of disk; {constants.HF_HUB_CACHE} has "
            f"{gib(max(room, 0))} to spare: free some space, or set HF_HOME to a folder on another "
            "disk"
        )
