"""Add-ons of MTP decoders: MTP heads, the collocation-length predictor, the span gate.

They are saved and loaded strictly. A folder of add-ons holds `addons.json` (base model, hidden
size, and for each method its k, defaults and results) and one safetensors file per method.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dmtd_demo.backbone.cpu_packed import ROWS_TOGETHER
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models import dmtd_layers, fed_back, frequent
from dmtd_demo.models.acceptance import AcceptancePredictor
from dmtd_demo.models.addon_file import addon_tensors
from dmtd_demo.models.causes import in_one_line
from dmtd_demo.text_files import parsed, read_text, unlike

CARD = "addons.json"
SCHEMA = 1


@dataclass(frozen=True)
class Base:
    """The model that add-ons were trained on.

    name: a hub id, or a folder's name; revision: the hub's commit; fingerprint: a hash of the
    weights.
    """

    name: str
    revision: str | None = None
    fingerprint: str | None = None


class MTPHeads(nn.Module):
    """k heads `h + SiLU(W h + b)`, each read by the backbone's own LM head.

    Head i (1..k) predicts token n + 1 + i (CLP, arXiv 2606.10935; the form is Medusa's).
    """

    def __init__(self, hidden_size: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.weight = nn.Parameter(torch.zeros(k, hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(k, hidden_size))

    def forward(self, h: Tensor, k: int | None = None) -> Tensor:
        """h [n, hidden] after the final norm; returns [n, k, hidden], head 1 first."""
        k = self.k if k is None else k
        hidden = self.weight.shape[-1]
        mapped = F.linear(h, self.weight[:k].reshape(k * hidden, hidden), self.bias[:k].reshape(-1))
        return h[:, None] + F.silu(mapped).view(-1, k, hidden)


class CollocationLengthPredictor(nn.Module):
    """One linear layer, hidden size to k + 1 classes: how many MTP tokens (0..k) to accept at this
    step (CLP, arXiv 2606.10935)."""

    def __init__(self, hidden_size: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.linear = nn.Linear(hidden_size, k + 1)

    def forward(self, h: Tensor) -> Tensor:
        """h [..., hidden] after the final norm; returns logits over the lengths 0..k."""
        return self.linear(h)


class SpanGate(nn.Module):
    """The gate-based baseline: Linear(h, 640) - SiLU - Linear(640, k), an accept probability per
    MTP head (CLP, arXiv 2606.10935)."""

    WIDTH = 640

    def __init__(self, hidden_size: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.inner = nn.Linear(hidden_size, self.WIDTH)
        self.outer = nn.Linear(self.WIDTH, k)

    def forward(self, h: Tensor) -> Tensor:
        """h [..., hidden] after the final norm; returns logits [..., k], whose sigmoid is the
        probabilities."""
        return self.outer(F.silu(self.inner(h)))


class ConfidenceReader(nn.Module):
    """How many of k guesses to keep, from how sure the LM head is of each of them *(ours)*.

    It reads three figures of the backbone's own token and of each guess. hidden_size: not read.
    """

    WIDTH = 24

    def __init__(self, hidden_size: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.inner = nn.Linear(3 * (k + 1), self.WIDTH)
        self.outer = nn.Linear(self.WIDTH, k + 1)

    @staticmethod
    def figures(logits: Tensor) -> Tensor:
        """Of logits [..., k + 1, vocabulary] the best one's log odds, the second one's log
        probability and the entropy, [..., 3 (k + 1)], kind by kind."""
        logs = logits.float().log_softmax(-1)
        best = logs.topk(2, dim=-1).values
        first = best[..., 0].exp().clamp(1e-4, 1 - 1e-4)
        entropy = -(logs.exp() * logs).sum(-1)
        return torch.cat([torch.logit(first), best[..., 1].clamp_min(math.log(1e-4)), entropy], -1)

    def forward(self, figures: Tensor) -> Tensor:
        """Logits over the lengths 0..k, from `figures`."""
        inner = F.linear(figures, self.inner.weight.float(), self.inner.bias.float())
        return F.linear(F.silu(inner), self.outer.weight.float(), self.outer.bias.float())


class LateHeads(nn.Module):
    """The parts of `mixed`: MTP heads on late hidden states, and how many of their tokens to accept
    *(ours; docs/methods.md, section 4)*."""

    def __init__(self, hidden_size: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.heads = MTPHeads(hidden_size, k)
        self.lengths = CollocationLengthPredictor(hidden_size, k)


# head0: one MTP head for token n + 1, in the LM head's place. native_clp: lengths of what an MTP
# head drafts that reads its own drafts. acceptance: whether its first draft would be kept.
# adaptive: how many late-layer-only tokens, 0..k, may follow a cycle head.
ADDONS: dict[str, type[nn.Module]] = {
    "mtp_heads": MTPHeads,
    "head0": MTPHeads,
    "clp": CollocationLengthPredictor,
    "native_clp": CollocationLengthPredictor,
    "acceptance": AcceptancePredictor,
    "gate": SpanGate,
    "confidence": ConfidenceReader,
    "adaptive": CollocationLengthPredictor,
    "mixed": LateHeads,
}

# Add-ons for the backbone itself, with facts of their own: `load_layers`, `load_fed_back`,
# `load_frequent`.
APART = (dmtd_layers.NAME, fed_back.NAME, frequent.NAME)

# Those that read late-layer-only passes, and so go with one split.
CYCLES = ("adaptive", "mixed")


# Those that say how many tokens of the MTP heads to keep: they know the heads they learned on, and
# say nothing of others.
OF_HEADS = ("clp", "gate", "confidence")

# Those whose decoders read their own threshold off the card.
CHOOSING = ("clp", "native_clp", "gate", "confidence", "adaptive", "mixed")


def save_addon(
    folder: Path,
    method: str,
    module: nn.Module,
    base_model: str | Base,
    hidden_size: int,
    **facts: object,
) -> None:
    """Write one add-on into the folder, beside those already there.

    facts: threshold, results, data …, which go into the card.
    """
    base = base_model if isinstance(base_model, Base) else Base(base_model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CARD
    card: dict[str, Any] = (
        _read_card(folder)
        if path.exists()
        else {"schema": SCHEMA, "base_model": base.name, "hidden_size": hidden_size, "addons": {}}
    )
    card.update(
        {
            name: value
            for name, value in (
                ("base_revision", base.revision),
                ("base_fingerprint", base.fingerprint),
            )
            if value
        }
    )
    card["addons"][method] = {"k": module.k, **facts}
    temporary = folder / f"{method}.safetensors.part"
    save_file(
        {
            name: t.detach().to(torch.bfloat16).contiguous()
            for name, t in module.state_dict().items()
        },
        temporary,
    )
    temporary.rename(folder / f"{method}.safetensors")
    _write_card(folder, card)


def drop_addons(folder: Path, methods: Sequence[str]) -> list[str]:
    """Take add-ons out of a folder; returns those that it had. Raises UserError."""
    if not (folder / CARD).exists():
        return []
    card = _read_card(folder)
    had = [method for method in methods if card["addons"].pop(method, None) is not None]
    if had:
        # without the card nobody reads the files
        _write_card(folder, card)
        for method in had:
            (folder / f"{method}.safetensors").unlink(missing_ok=True)
    return had


def check_folder_for(folder: Path, base: Base, hidden_size: int) -> None:
    """Raise UserError where a folder that is to get add-ons of a model has those of another."""
    if (folder / CARD).exists():
        card = _read_card(folder)
        _check_base(folder, card, base)
        _check_size(folder, card, hidden_size)


def copy_apart(method: str, source: Path, folder: Path) -> None:
    """Copy an add-on for the backbone itself into a folder that has others of the same model."""
    if source.resolve() == folder.resolve():
        return
    for path in source.glob(f"{method}*.safetensors"):
        temporary = folder / f"{path.name}.part"
        shutil.copyfile(path, temporary)
        temporary.rename(folder / path.name)
    card = _read_card(folder)
    card["addons"][method] = _read_card(source)["addons"][method]
    _write_card(folder, card)


def methods_in(folder: Path) -> set[str]:
    """List the methods of a folder of add-ons by its card; none where there is no card."""
    return set(_read_card(folder)["addons"]) if (folder / CARD).exists() else set()


def load_addons(
    folder: Path,
    hidden_size: int,
    dtype: torch.dtype,
    device: torch.device,
    base: Base | None = None,
) -> tuple[dict[str, nn.Module], dict[str, dict]]:
    """Read a folder of add-ons: modules by method, and each one's facts from the card.

    base: the model they must be made for; None where they came in its own folder. Raises UserError
    where anything does not fit.
    """
    card = _read_card(folder)
    if base:
        _check_base(folder, card, base)
    _check_size(folder, card, hidden_size)
    modules = {}
    for method, facts in card["addons"].items():
        if method in APART:
            continue
        if method not in ADDONS:
            raise UserError(
                f"the add-ons in {folder} name the method {method!r}; known methods: "
                f"{', '.join(ADDONS)}"
            )
        module = ADDONS[method](hidden_size, facts["k"])
        path, tensors = addon_tensors(folder, method)
        _check_tensors(path, tensors, module)
        module.load_state_dict(tensors)
        modules[method] = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return modules, card["addons"]


def load_layers(folder: Path, backbone: Backbone) -> Split | None:
    """Give the backbone the folder's `dmtd_layers`; returns the split that they are made for, None
    where there are none. The base was checked by `load_addons`. Raises UserError."""
    facts = _read_card(folder)["addons"].get(dmtd_layers.NAME)
    return dmtd_layers.take(folder, facts, backbone) if facts else None


def load_fed_back(folder: Path, backbone: Backbone) -> fed_back.FedBackHead | None:
    """The folder's MTP head that reads its own drafts; None where there is none. The base was
    checked by `load_addons`. Raises UserError."""
    facts = _read_card(folder)["addons"].get(fed_back.NAME)
    if facts is None:
        return None
    if type(facts.get("width")) is not int or not 1 <= facts["width"] <= 2**17:
        raise UserError(
            f"{folder / CARD}: {fed_back.NAME} needs width, a whole number; got "
            f"{facts.get('width')!r}"
        )
    return fed_back.load(folder, facts["width"], backbone)


def load_frequent(folder: Path, backbone: Backbone) -> frequent.FrequentHead | None:
    """The LM head for drafts by the folder's list of frequent tokens; None where it has none, or
    where the backbone's cannot be divided. The base was checked by `load_addons`. Raises
    UserError."""
    facts = _read_card(folder)["addons"].get(frequent.NAME)
    if facts is None:
        return None
    entries = facts.get("entries")
    if type(entries) is not int or not ROWS_TOGETHER <= entries <= backbone.vocab_size:
        raise UserError(
            f"{folder / CARD}: {frequent.NAME} needs entries, a whole number from {ROWS_TOGETHER} "
            f"to {backbone.vocab_size}; got {entries!r}"
        )
    return frequent.load(folder, entries, backbone)


def _check_base(folder: Path, card: dict, base: Base) -> None:
    """Compare the bases by their weights' fingerprints where both have one, else by name.

    Raises UserError where they differ.
    """
    name, fingerprint = card.get("base_model"), card.get("base_fingerprint")
    same = (
        fingerprint == base.fingerprint
        if fingerprint and base.fingerprint
        else str(name).rpartition("/")[2] == base.name.rpartition("/")[2]
    )
    if not same:
        raise UserError(
            f"the add-ons in {folder} are made for the base {name} (weights "
            f"{fingerprint or 'not named'}); this model is {base.name} (weights "
            f"{base.fingerprint or 'unknown'}): take those made for it, or train them"
        )


def _check_size(folder: Path, card: dict[str, Any], hidden_size: int) -> None:
    if card["hidden_size"] != hidden_size:
        raise UserError(
            f"the add-ons in {folder} are made for hidden size {card['hidden_size']} "
            f"({card.get('base_model', 'unnamed base')}); this model has hidden size {hidden_size}"
        )


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    temporary = folder / f"{CARD}.part"
    temporary.write_text(json.dumps(card, indent=2) + "\n")
    temporary.rename(folder / CARD)


def _read_card(folder: Path) -> dict:
    try:
        card = parsed(read_text(folder / CARD))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"a folder of add-ons needs {CARD}; {folder} has none") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{folder / CARD} needs to be JSON; reading it gave: {in_one_line(error)}"
        ) from None
    if (
        not isinstance(card, dict)
        or not isinstance(card.get("addons"), dict)
        or type(card.get("hidden_size")) is not int
    ):
        raise UserError(
            f"{folder / CARD} needs the fields hidden_size (a number) and addons (an object)"
        )
    for method, facts in card["addons"].items():
        if method in APART and isinstance(facts, dict):
            continue
        if (
            not isinstance(facts, dict)
            or type(facts.get("k")) is not int
            or not 1 <= facts["k"] <= 16
        ):
            got = facts.get("k") if isinstance(facts, dict) else facts
            raise UserError(
                f"{folder / CARD}: {method} needs k, a whole number from 1 to 16; got {got!r}"
            )
        _check_facts(folder, method, facts)
    return card


def _check_facts(folder: Path, method: str, facts: dict[str, Any]) -> None:
    """Raise UserError where a decoder could not run by what the card says of an add-on."""
    threshold: Any = facts.get("threshold")
    given = type(threshold) in (int, float) and 0 <= threshold <= 1
    if not given and (method in CHOOSING or threshold is not None):
        raise UserError(
            f"{folder / CARD}: {method} needs threshold, a number from 0 to 1; got {threshold!r}"
        )
    accuracy = facts.get("accuracy")
    if accuracy is not None and (cause := unlike(accuracy, [float], "accuracy")):
        raise UserError(f"{folder / CARD}: {method} needs accuracy, a list of numbers: {cause}")


def _check_tensors(path: Path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise UserError(
                f"{path} needs the tensor {name} {list(shape)}; it holds "
                f"{', '.join(sorted(tensors)) or 'nothing'}"
            )
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{path}: the tensor {name} needs shape {list(shape)}; got "
                f"{list(tensors[name].shape)}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path}: the tensor {name} holds values that are not finite")
    extra = set(tensors) - set(wanted)
    if extra:
        raise UserError(f"{path} holds tensors that nothing reads: {', '.join(sorted(extra))}")
