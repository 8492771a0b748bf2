"""Add-ons and MTP heads given to a loaded model, each with what there is to say of it."""

from __future__ import annotations

from pathlib import Path

from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.models import checkpoint, hub
from dmtd_demo.models.addons import (
    CYCLES,
    copy_apart,
    load_addons,
    load_fed_back,
    load_frequent,
    load_layers,
    methods_in,
)
from dmtd_demo.models.model import Model
from dmtd_demo.models.native_mtp import NativeMTP, read_native


def take_all(model: Model, folder: Path, given: str | None, published: str | None) -> None:
    """Give the model its add-ons: those given, else its folder's own, else the published ones.

    given, published: a folder or a hub id. Raises UserError for given ones, and those of its own
    folder, that do not fit; published ones that do not are told of.
    """
    own = folder / "addons"
    if given:
        _take_layers(model, _take_addons(model, given))
    elif own.is_dir():
        # they came with these weights
        model.addons, model.addon_facts = load_addons(
            own, model.backbone.hidden_size, model.backbone.dtype, model.backbone.device
        )
        _take_layers(model, own)
    elif published:
        try:
            _take_layers(model, _take_addons(model, published))
        except UserError as error:
            what = "DMTD layers" if model.addons else "add-ons"
            model.reasons.append(f"without the {what} that are published for it: {error}")


def take_checkpoints_own(model: Model, folder: Path) -> None:
    """Give a Qwen3.5 the MTP head of its checkpoint; tell of its vision tower. Raises UserError."""
    take_native(model, read_native(folder, model.backbone))
    unread = sum("visual." in name for name in checkpoint.names(folder))
    if unread:
        model.reasons.append(f"text alone: the {unread} tensors of its vision tower are left out")


def take_native(model: Model, head: NativeMTP | None) -> None:
    """Give the model its checkpoint's own MTP head, which is no add-on and never saved as one."""
    if head is not None:
        model.addons["native_mtp"] = head
        model.reasons.append(f"its own MTP head: {parameters(head):,} parameters")


def _take_addons(model: Model, addons: str) -> Path:
    """Give the model the modules of a folder or a hub id, without DMTD layers; returns the folder.

    Raises UserError where they are not made for this model.
    """
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
    """Give the model what a folder of add-ons has for the backbone itself.

    An MTP head that reads its drafts, and the tokens that drafts are chosen from; late layers, and
    with them the split and tau. What was trained on their late hidden states goes where they do not
    fit. Raises UserError.
    """
    facts = model.addon_facts.pop("fed_back", None)
    head = load_fed_back(folder, model.backbone)
    if head is not None and facts:
        known = facts.keys() & {"k", "threshold"}
        model.addon_facts["native_mtp"] = {name: facts[name] for name in known}
        model.addons["native_mtp"], model.apart["fed_back"] = head, folder
        model.reasons.append(
            "an MTP head that reads its own drafts, in Qwen3.5's form: trained beside the model, "
            "no part of its checkpoint"
        )
    model.addon_facts.pop("frequent", None)
    frequent = load_frequent(folder, model.backbone)
    if frequent is not None:
        model.addons["frequent"], model.apart["frequent"] = frequent, folder
        model.reasons.append(
            f"drafts of MTP heads are chosen from the {len(frequent.names):,} most frequent of "
            f"{model.backbone.vocab_size:,} tokens (FR-Spec); what checks them reads all"
        )
    facts = model.addon_facts.pop("dmtd_layers", None)
    try:
        split = load_layers(folder, model.backbone)
    except UserError:
        for method in CYCLES:
            model.addons.pop(method, None)
        raise
    if split and facts:
        model.split, model.tau, model.apart["dmtd_layers"] = split, facts["tau"], folder
        model.reasons.append(
            f"late-layer-only passes of {split} run late layers of their own; full passes, and so "
            "ar, the model's"
        )
    _leave_other_splits(model)


def _leave_other_splits(model: Model) -> None:
    """Take from the model what was trained on cycles of another split than those it runs."""
    for method in CYCLES:
        split = str(model.split or (Split.default(model.layers) if model.layers > 1 else None))
        trained = model.addon_facts.get(method, {}).get("split", split)
        if trained != split:
            model.addons.pop(method, None)
            model.addon_facts.pop(method)
            model.reasons.append(
                f"without {method}, which was trained on cycles of {trained}; this model runs "
                f"those of {split}"
            )


def keep_apart(model: Model, folder: Path) -> None:
    """Copy what the model has for the backbone itself into a folder of add-ons trained on it.

    So it runs there what they were trained on.
    """
    for method, source in model.apart.items():
        copy_apart(method, source, folder)
        # what says when the head is to draft goes with it
        if method == "fed_back" and "acceptance" in methods_in(source):
            copy_apart("acceptance", source, folder)
