"""The files of a folder in Hugging Face format: config.json, weights, tokenizer.

Whatever is wrong with them is a UserError that says what to do.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dmtd_demo.errors import UserError, is_out_of_memory
from dmtd_demo.models.causes import in_one_line, not_whole
from dmtd_demo.models.ends import MARKS
from dmtd_demo.models.recognition import is_pointer
from dmtd_demo.models.silence import outputs_silenced, silenced
from dmtd_demo.progress import Progress, no_progress

# tokens of a text, for a tokenizer that would warn of more than its file says
LONGEST = 10**30
SAMPLE = 64  # values of each tensor that the fingerprint is made from
# tensors of a wrapping checkpoint that are no part of its text model
UNREAD = re.compile(r"(^|\.)visual\.|^mtp\.")


def names(folder: Path) -> dict[str, Path]:
    """The tensors in a folder's safetensors files, and the file of each."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def check_weights(folder: Path, progress: Progress = no_progress) -> str:
    """Read every weight once: whole files, finite values. progress hears of bytes.

    Returns a fingerprint of the checkpoint, whatever it is quantized to later: a hash of the first
    values of every tensor; not of the LM head, which a tied model's files may hold or not. Raises
    UserError.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"the model in {folder} needs its weights in safetensors files; none are there"
        )
    samples: dict[str, bytes] = {}
    done, size = 0, sum(path.stat().st_size for path in files)
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    tensor = file.get_tensor(name)
                    if (
                        tensor.is_floating_point()
                        and tensor.numel()
                        and not all(map(torch.isfinite, torch.aminmax(tensor)))
                    ):
                        raise UserError(
                            f"weights need to be finite; the tensor {name} in {path} holds NaN or "
                            "infinity: the file is damaged or its training failed, fetch it again "
                            "or take another"
                        )
                    if name != "lm_head.weight":
                        samples[name] = tensor.flatten()[:SAMPLE].float().numpy().tobytes()
                    done += tensor.numel() * tensor.element_size()
                    progress("Checking the weights", done, size)
        except (SafetensorError, OSError, MemoryError) as error:
            raise not_whole(path, error) from None
    return hashlib.sha256(
        b"".join(name.encode() + samples[name] for name in sorted(samples))
    ).hexdigest()[:16]


def tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerBase | None:
    """Read the folder's tokenizer; None where it has none. Raises UserError.

    Its tokenizer.json holds for how text is cut and put together: transformers' class for the
    model type would put its own rules in their place. config: given, so that transformers never
    follows an `auto_map` in the folder, which it would offer to run.
    """
    path = folder / "tokenizer.json"
    if not path.exists() and not (folder / "vocab.json").exists():
        if (folder / "tokenizer.model").exists():
            raise UserError(
                f"the tokenizer in {folder} is SentencePiece's tokenizer.model alone: save it once "
                "by transformers, which writes the tokenizer.json that is needed"
            )
        return None
    if is_pointer(path):
        raise UserError(
            f"{path} is Git LFS's pointer to the file, not the file: fetch it by `git lfs pull`"
        )
    try:
        with silenced(), outputs_silenced():
            if not path.exists():
                named = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
                return _ready(named)
            return _ready(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
    except BaseException as error:
        # tokenizer files fail in many ways, all of them the folder's; those of the Rust code below
        # are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or is_out_of_memory(error):
            raise
        raise UserError(f"the tokenizer in {folder} cannot be read: {in_one_line(error)}") from None


def _ready(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Settle what its file leaves open, and use it once: some faults come up in use alone."""
    # it would take spaces before commas away, and warn of it at every text
    tokenizer.clean_up_tokenization_spaces = False
    # a race checks the context itself
    tokenizer.model_max_length = LONGEST
    if tokenizer.eos_token is None:
        # what a chat's turns end with comes first
        vocabulary = tokenizer.get_vocab()
        tokenizer.eos_token = next((mark for mark in MARKS if mark in vocabulary), None)
    ids = tokenizer("a <b>\n", add_special_tokens=False).input_ids
    tokenizer.decode([*ids, 0], skip_special_tokens=False)
    tokenizer.convert_ids_to_tokens([0])
    if not all(type(i) is int for i in (*ids, *tokenizer.get_added_vocab().values())):
        raise ValueError("its ids are no whole numbers")
    return tokenizer
