"""A catalog entry, a folder or a file to a Model: found, placed, read, and with its add-ons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dmtd_demo.backbone.layouts import lay_out
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.models import (
    attaching,
    checkpoint,
    gguf_tokenizer,
    gguf_weights,
    hub,
    shapes,
    weights,
)
from dmtd_demo.models.addons import Base
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.config import CLASSES
from dmtd_demo.models.ends import of_folder as ends_of_folder
from dmtd_demo.models.finding import Found, fetched, find
from dmtd_demo.models.memory import Sizes
from dmtd_demo.models.model import Model
from dmtd_demo.models.native_mtp import random_native
from dmtd_demo.models.placement import Asked, Placement, place
from dmtd_demo.models.threads import choose as choose_threads
from dmtd_demo.progress import Progress, no_progress

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LoadNames(TypedDict, total=False):
    """The settings of `load` by name; `LoadSettings` says what they are."""

    quantization: str | None
    dtype: str | None
    device: str | None
    fast: bool
    spare: int
    threads: int | None
    addons: str | None
    trainable: bool
    make_room: Callable[[Placement], None]
    progress: Progress


@dataclass(frozen=True)
class LoadSettings:
    """The settings of one loading.

    asked: device, dtype, quantization, and the bytes that others would give up, which `make_room`
    asks them for when the weights are known to be good. threads: of the CPU; None: those that suit
    the model. addons: a folder or hub id. trainable: the linears stay as transformers loads them.
    """

    asked: Asked = Asked()
    threads: int | None = None
    addons: str | None = None
    trainable: bool = False
    make_room: Callable[[Placement], None] = lambda _: None
    progress: Progress = no_progress

    @classmethod
    def of(cls, **given: Unpack[LoadNames]) -> LoadSettings:
        """Build the settings from keywords; raises TypeError for other names."""
        names = {field.name for field in fields(Asked)}
        asked: dict[str, Any] = {k: v for k, v in given.items() if k in names}
        rest: dict[str, Any] = {k: v for k, v in given.items() if k not in names}
        return cls(Asked(**asked), **rest)


def load(name: str = "classroom", **given: Unpack[LoadNames]) -> Model:
    """Load a catalog model, a local folder in Hugging Face format, a GGUF file or a hub id.

    given: settings by name (quantization, dtype, device, threads, addons …; `LoadSettings`).
    Raises UserError where anything the user supplied does not fit, and what `progress` raises.
    """
    settings = LoadSettings.of(**given)
    # what cannot run is refused before gigabytes are fetched
    found = find(name)
    placement = place(found.sizes, found.context, settings.asked)
    found = _on_this_machine(found, settings.progress)
    parts = _parts(found, settings)
    settings.make_room(placement)
    source = weights.Source(found.config, found.module, found.folder, found.file)
    try:
        module = weights.read(source, placement, settings.progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"loading {found.name} needs {placement.need}, and the memory ran out before that: "
            "close what else runs here, or take a smaller model or --quantization"
        ) from None
    model = _model(parts, module, placement, settings.trainable)
    model.folder = found.folder
    model.reasons.extend(parts.reasons)
    choose_threads(model, settings.threads)
    attaching.take_all(model, found.folder, settings.addons, found.addons)
    if model.backbone.hybrid:
        attaching.take_checkpoints_own(model, found.folder)
    _prepare(model, settings.trainable)
    return model


def load_random(
    name: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    quantization: str | None = None,
) -> Model:
    """Make a model of a catalog entry's shape with random weights, for benchmarks.

    Nothing is downloaded, and there is no tokenizer. Raises UserError.
    """
    if name not in CATALOG:
        raise UserError(f"--random-weights needs one of {', '.join(CATALOG)}; got {name!r}")
    entry = CATALOG[name]
    config_cls, cls = CLASSES[entry.family]
    ends = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"))
    config: Any = config_cls.from_dict({**entry.shape, **ends})
    placement = place(
        Sizes.of(entry.family, entry.shape),
        config.max_position_embeddings,
        Asked(quantization, dtype, device),
    )
    module = weights.random(weights.Source(config, cls), placement)
    title = f"{name} (random weights)"
    parts = _Parts(title, f"{entry.label}, random weights", {}, Base(title))
    model = _model(parts, module, placement)
    if model.backbone.hybrid:
        attaching.take_native(model, random_native(model.backbone))
    choose_threads(model, threads)
    _prepare(model)
    return model


@dataclass(frozen=True)
class _Parts:
    """The parts of a Model beside its weights.

    raw: the fields of its config.json. reasons: what else there is to say of it.
    """

    name: str
    label: str
    raw: dict[str, Any]
    base: Base
    tokenizer: PreTrainedTokenizerBase | None = None
    eos_ids: frozenset[int] = frozenset()
    reasons: tuple[str, ...] = ()


def _on_this_machine(found: Found, progress: Progress) -> Found:
    """The found model with all its files here. Raises UserError."""
    if found.file is not None:
        return fetched(found, progress) if found.file.path is None else found
    if found.source:
        return replace(found, folder=hub.fetch(found.source, hub.MODEL_FILES))
    return found


def _parts(found: Found, settings: LoadSettings) -> _Parts:
    """Check the files, and read all but the weights. Raises UserError."""
    file, folder, disagree = found.file, found.folder, None
    tokenizer: PreTrainedTokenizerBase | None
    if file is not None:
        fingerprint = gguf_weights.fingerprint(file)
        tokenizer, ends = gguf_tokenizer.tokenizer_of(file), gguf_tokenizer.eos_ids(file)
    else:
        shapes.check(folder, found.config, found.module)
        fingerprint = checkpoint.check_weights(folder, settings.progress)
        tokenizer = checkpoint.tokenizer(folder, found.config)
        rows = found.config.vocab_size
        ends, disagree = ends_of_folder(folder, found.raw, tokenizer, rows)
    name = found.source.partition(":")[0] if found.source else found.name
    base = Base(name, hub.revision(folder), fingerprint)
    reasons = [found.note] if found.note else []
    reasons += [disagree] if disagree else []
    return _Parts(found.name, found.label, found.raw, base, tokenizer, ends, tuple(reasons))


def _model(
    parts: _Parts, module: PreTrainedModel, placement: Placement, trainable: bool = False
) -> Model:
    module.eval().requires_grad_(False)
    laid_out = None if trainable else lay_out(module)
    if laid_out:
        placement.reasons.append(laid_out)
    backbone = Backbone(module)
    trained, tau = parts.raw.get("trained_length"), parts.raw.get("mtp_horizon")
    return Model(
        name=parts.name,
        label=parts.label,
        backbone=backbone,
        tokenizer=parts.tokenizer,
        split=Split.from_config(parts.raw, backbone.layers),
        tau=tau if isinstance(tau, int) and tau >= 1 else None,
        eos_ids=parts.eos_ids,
        trained_length=trained if isinstance(trained, int) else None,
        quantization=placement.quantization,
        reasons=placement.reasons,
        base=parts.base,
    )


def _prepare(model: Model, trainable: bool = False) -> None:
    """Capture or compile the passes that its decoders make at their defaults; time the products.

    Those of a trainable model are left alone: reading ahead would join them.
    """
    split = model.split or (Split.default(model.layers) if model.layers > 1 else None)
    heads = model.addons.get("mtp_heads")
    runs = [(0, model.layers, q) for q in range(1, 2 + (heads.k if heads else 0))]
    if split is not None:
        runs += [
            (0, split.early, 1),
            (split.early, split.late_start, model.tau or 4),
            (split.late_start, split.layers, 1),
        ]
    found = (
        model.backbone.prepare(runs),
        None if trainable else model.backbone.read_ahead(),
    )
    model.reasons.extend(reason for reason in found if reason)
