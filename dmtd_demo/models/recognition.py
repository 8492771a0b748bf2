"""Names for what is no plain checkpoint but looks like one, and what to do with each."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmtd_demo.errors import UserError

# by `quant_method`
METHODS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "modelopt": "ModelOpt",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "mxfp4": "MXFP4",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "aqlm": "AQLM",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "eetq": "EETQ",
    "higgs": "HIGGS",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "auto-round": "AutoRound",
    "bitnet": "BitNet",
}
# files that older tools wrote beside a config that says nothing
METHOD_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
# by the end of a tensor's name: what only quantized checkpoints have
TENSORS = {
    "qweight": "AWQ or GPTQ",
    "qzeros": "AWQ or GPTQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "weight_scale": "compressed-tensors or FP8",
    "weight_scale_inv": "FP8",
    "weight.absmax": "bitsandbytes",
    "weight.SCB": "bitsandbytes",
    "SCB": "bitsandbytes",
    "q_weight": "EXL2",
}
FILES = {
    ".safetensors": "a file of weights: give its folder, with config.json and tokenizer",
    ".json": "one file of a model: give its folder",
    ".bin": "a file of weights: give its folder, with config.json, weights in safetensors files",
    ".pt": "a checkpoint that may run code, never opened here: convert it to safetensors",
    ".pth": "a checkpoint that may run code, never opened here: convert it to safetensors",
    ".ckpt": "a checkpoint that may run code, never opened here: convert it to safetensors",
    ".onnx": "an ONNX file: take the checkpoint that it was made from",
    ".zip": "an archive: unpack it, and give the folder",
    ".gz": "an archive: unpack it, and give the folder",
    ".tar": "an archive: unpack it, and give the folder",
}
POINTER = b"version https://git-lfs"
# files that libraries read themselves, and not where a byte-order mark begins them
READ_ELSEWHERE = (
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF by its name, or by its first bytes: Ollama's have other names."""
    return path.is_file() and (path.suffix.lower() == ".gguf" or _first(path, 4) == b"GGUF")


def kind_of_file(path: Path) -> str:
    """What a file is that was given for a model, and what to give instead."""
    return FILES.get(path.suffix.lower(), "a file")


def is_pointer(path: Path) -> bool:
    """Whether Git LFS left its pointer in place of the file."""
    return _first(path, len(POINTER)) == POINTER


def check_marks(folder: Path) -> None:
    """Refuse a folder of which an editor wrote a file with a byte-order mark. Raises UserError."""
    for name in READ_ELSEWHERE:
        if _first(folder / name, len(BOM_UTF8)) == BOM_UTF8:
            raise UserError(
                f"{folder / name} needs to be UTF-8 without a byte-order mark, which its readers "
                "do not take; it begins with one: save it without"
            )


def model_in(folder: Path) -> Path:
    """The folder, or the GGUF file, that holds the model of a folder that was given.

    A repository's root in the hub's cache stands for its snapshot, a folder of one GGUF file for
    the file. Raises UserError for an adapter, and for what holds no model.
    """
    if (folder / "config.json").exists():
        _check_adapter(folder)
        return folder
    snapshot = _snapshot(folder)
    if snapshot is not None:
        return model_in(snapshot)
    _check_adapter(folder)
    files = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(
            f"the folder {folder} holds {len(files)} GGUF files: give one of them, such as "
            f"{files[0]}"
        )
    if (folder / "model_index.json").exists():
        raise UserError(f"the folder {folder} is a pipeline of diffusers: take a text model")
    inner = sorted(path.parent for path in folder.glob("*/config.json"))
    if len(inner) == 1:
        raise UserError(
            f"the folder {folder} is no model: it needs config.json, which is not there; its "
            f"folder {inner[0].name} has one: give that"
        )
    return folder


def repository_of(folder: Path) -> str | None:
    """The hub id of a snapshot in the hub's cache; None for any other folder."""
    for path in (folder, *folder.parents):
        if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
            return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return None


def _snapshot(folder: Path) -> Path | None:
    """The snapshot of a repository's root in the hub's cache, the one that main names first."""
    if folder.name == "snapshots":
        folder = folder.parent
    if folder.name in ("hub", "huggingface") or any(folder.glob("models--*/snapshots")):
        kept = sorted(path.name for path in folder.glob("models--*") if path.is_dir())
        kept = kept or sorted(path.name for path in folder.glob("hub/models--*") if path.is_dir())
        if kept:
            ids = [name.removeprefix("models--").replace("--", "/", 1) for name in kept]
            raise UserError(
                f"the folder {folder} is the hub's cache of {len(ids)} models: give one by its hub "
                f"id, such as {ids[0]}"
            )
    if not (folder / "snapshots").is_dir():
        return None
    try:
        named = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        named = ""
    kept_here = sorted(
        (path for path in (folder / "snapshots").iterdir() if path.is_dir()),
        key=lambda path: (path.name == named, (path / "config.json").exists(), path.name),
    )
    if not kept_here:
        raise UserError(
            f"the folder {folder} of the hub's cache has no snapshot: the download was not "
            "finished, fetch it again"
        )
    best = kept_here[-1]
    if not (best / "config.json").exists() and not any(best.glob("*.gguf")):
        raise UserError(
            f"the snapshot {best} of the hub's cache has no config.json: the download was not "
            "finished, fetch it again"
        )
    return best


def _check_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    if any(not other.name.startswith("adapter_") for other in folder.glob("*.safetensors")):
        raise UserError(
            f"the folder {folder} holds {path.name} beside a whole model: move that file away "
            "where the model is merged, else give a folder of the merged one"
        )
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
        base, kind = held.get("base_model_name_or_path"), held.get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        base, kind = None, None
    what = f"a {str(kind)[:40]} adapter" if kind else "an adapter"
    of = f" of {str(base)[:200]}" if base else ""
    raise UserError(
        f"the folder {folder} is {what}{of}, not a model: merge it into its base first (peft's "
        "merge_and_unload), and give the merged folder"
    )


def check_unquantized(raw: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint that its config, or a file beside it, says is quantized already."""
    said = next(
        (
            raw[k]
            for k in ("quantization_config", "compression_config", "quantization")
            if raw.get(k)
        ),
        None,
    )
    if said:
        method = said.get("quant_method") if isinstance(said, dict) else None
        if method is None and "quantization" in raw:
            method = "MLX"
        elif method is None and "compression_config" in raw:
            method = "compressed-tensors"
        name = METHODS.get(str(method).lower(), str(method)[:40] if method else "unknown")
        raise quantized(folder, name)
    for file, name in METHOD_FILES.items():
        if folder.is_dir() and (folder / file).exists():
            raise quantized(folder, name)


def check_tensors(tensors: Mapping[str, str], folder: Path) -> None:
    """Refuse weights that are quantized without a word in the config.

    tensors: the dtype of each by its name, as safetensors writes it.
    """
    for name, dtype in tensors.items():
        method = next((m for end, m in TENSORS.items() if name.endswith(f".{end}")), None)
        if method is None and dtype.startswith("F8"):
            method = "FP8"
        if method:
            raise quantized(folder, method)


def quantized(folder: Path, method: str) -> UserError:
    """The refusal of a checkpoint that is quantized already."""
    return UserError(
        f"a model needs to come unquantized; the one in {folder} is quantized already ({method}): "
        "take the plain checkpoint, and quantize it here by --quantization"
    )


def _first(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError:
        return b""
