"""A name to a found model: catalog entry, folder, GGUF file or hub id, before any weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dmtd_demo.errors import UserError
from dmtd_demo.models import fetch, gguf, gguf_weights, hub, recognition
from dmtd_demo.models.catalog import CATALOG, Archive, CatalogEntry
from dmtd_demo.models.config import config_of, text_of
from dmtd_demo.models.gguf_header import File
from dmtd_demo.models.json_file import read_json
from dmtd_demo.models.memory import Sizes
from dmtd_demo.progress import Progress


@dataclass(frozen=True)
class Found:
    """A model by its config.json or the header of its GGUF file alone.

    folder: where it lies: a folder, or a GGUF file. source: the hub id that it has to be fetched
    from; None where all of it lies in the folder. raw: the fields of its config.json, those of the
    text model alone. addons: the folder or the hub id of those that are published for it. file:
    the header of a GGUF file. archive: where else that file can be had.
    """

    name: str
    label: str
    folder: Path
    source: str | None
    note: str
    raw: dict[str, Any]
    config: Any
    module: type[PreTrainedModel]
    addons: str | None = None
    file: File | None = None
    archive: Archive | None = None

    @property
    def sizes(self) -> Sizes:
        sizes = Sizes.of(self.config.model_type, self.config.to_dict())
        if self.file is None:
            return sizes
        in_four_bits, finer = gguf_weights.in_four_bits(self.file), gguf_weights.finer(self.file)
        return replace(sizes, in_four_bits=in_four_bits, finer=finer)

    @property
    def context(self) -> int:
        return self.config.max_position_embeddings

    def as_listed(self, entry: CatalogEntry | None) -> Found:
        """Return it by the name that the catalog has for it, if any."""
        if entry is None:
            return self
        own = {part: getattr(entry, part) for part in ("name", "label", "note", "addons")}
        return replace(self, **own)


def find(name: str) -> Found:
    """Find a catalog model, a local folder in Hugging Face format, a GGUF file or a hub id.

    Of the hub only config.json, or a GGUF file's header, is fetched. Raises UserError.
    """
    entry = CATALOG.get(name)
    where = entry.source if entry else name
    parts = hub.split(where)
    source = None
    folder = Path(where)
    try:
        there = folder.exists()
    except (OSError, ValueError):
        # a name that no file can have
        there = False
    if (parts and parts[1] and not there) or (there and recognition.is_gguf(folder)):
        return _find_file(where, entry)
    if entry and not entry.is_local:
        source = entry.source
    elif there and folder.is_dir():
        folder = recognition.model_in(folder)
        if folder.is_file():
            return _find_file(str(folder), entry)
    else:
        if there or not hub.is_id(name):
            what = f"is {recognition.kind_of_file(folder)}" if there else "is none of them"
            raise UserError(
                "the model needs to be a folder in Hugging Face format, a GGUF file, a hub id "
                f"such as Qwen/Qwen3-0.6B, or one of {', '.join(CATALOG)}; {name!r} {what}"
            )
        source = name
    if source:
        folder = hub.fetch(source, ["config.json"])
    raw = read_json(folder / "config.json", f"the folder {folder} is no model: it")
    raw = text_of(raw, folder)
    config, module = config_of(raw, folder)
    own = source or recognition.repository_of(folder) or folder.name
    found = Found(own, own, folder, source, "", raw, config, module)
    return found.as_listed(entry)


def _find_file(where: str, entry: CatalogEntry | None) -> Found:
    """Find a GGUF file, on this machine or on the hub."""
    source = None if Path(where).exists() else where
    if source is None and entry is None:
        # the add-ons that were made for this file hold for it wherever it lies
        entry = fetch.published(Path(where))
    archive = entry.archive if entry else None
    path = fetch.at_hand(source, archive) if source else Path(where)
    if path is not None:
        file = gguf.read(path)
    else:
        try:
            with hub.opened(where) as (stream, size):
                file = gguf.read_stream(stream, size, where)
        except UserError as error:
            raise _with_other_way(error, entry) from None
    folder = path or Path(where)
    raw = gguf.config_of(file)
    config, module = config_of(raw, folder)
    own = source or folder.stem
    found = Found(own, where, folder, source, "", raw, config, module, None, file, archive)
    return found.as_listed(entry)


def fetched(found: Found, progress: Progress) -> Found:
    """Fetch a GGUF file of the hub, of which only the header was read. Raises UserError."""
    path = fetch.from_hub(found.name, str(found.source), found.archive, progress)
    file = gguf.read(path)
    raw = gguf.config_of(file)
    config, _ = config_of(raw, path)
    return replace(found, folder=path, file=file, raw=raw, config=config)


def _with_other_way(error: UserError, entry: CatalogEntry | None) -> UserError:
    """The same error, with what else can be done for a file that the package index has."""
    if entry is None or entry.archive is None:
        return error
    return UserError(
        f"{error}; `python -m dmtd_demo get {entry.name}` takes it from there or from the package "
        "index"
    )


# fields of a config.json that a catalog entry's shape may have
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
    "vocab_size",
    "max_position_embeddings",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "full_attention_layers",
)


def entry_of(found: Found) -> CatalogEntry:
    """Describe a found model as the catalog does its own."""
    fields = found.config.to_dict()
    fields["full_attention_layers"] = (fields.get("layer_types") or []).count("full_attention")
    shape = {name: fields[name] for name in SHAPE if name in fields} | {
        "head_dim": fields.get("head_dim")
        or found.config.hidden_size // found.config.num_attention_heads
    }
    return CatalogEntry(
        found.name,
        found.label,
        found.source or str(found.folder.resolve()),
        found.config.model_type,
        shape,
        note=found.note,
        stored=found.file.size if found.file else None,
        in_four_bits=found.sizes.in_four_bits,
        finer=found.sizes.finer,
    )
