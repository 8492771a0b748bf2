"""The models of the catalog: their memory, the decoders that run now, the way to the others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from dmtd_demo.decoders import DECODERS
from dmtd_demo.machine import free
from dmtd_demo.measure.projection import DEVICES, AddonTraining, ModelShape, training_seconds
from dmtd_demo.models import hub
from dmtd_demo.models.addons import methods_in
from dmtd_demo.models.catalog import CATALOG, CatalogEntry
from dmtd_demo.models.checkpoint import names
from dmtd_demo.models.fetch import at_hand
from dmtd_demo.models.memory import HYBRID, Need, gib
from dmtd_demo.models.placement import default_dtype, offered
from dmtd_demo.training.any_model import STEPS
from dmtd_demo.training.corpus import ANSWER, PROMPTS
from dmtd_demo.training.features import DRAWN

# add-on: the recipe that makes it for any Qwen, in this order
TRAINED = {
    "mtp_heads": "heads",
    "clp": "clp",
    "gate": "gate",
    "head0": "head0",
    "adaptive": "adaptive",
    "mixed": "mixed",
}
# the GPU for which the time of training is estimated
RENTED = DEVICES["a10g"]
OWN = "native_mtp"
# bytes a parameter in the published checkpoints: bfloat16
STORED = 2


def describe_model(entry: CatalogEntry, device: str) -> dict[str, Any]:
    """Describe a model as plain data.

    bytes: of the checkpoint's download. memory: bytes to run it, by quantization; `fits`: the
    quantizations for which they are free on the device now. decoders: those that run now. missing:
    for each that add-ons would bring, the add-ons that it lacks. never: those that need an MTP
    head that reads its own drafts, which it has not. published: the hub id of add-ons that will be
    fetched with the model.
    """
    sizes = entry.sizes
    context = int(entry.shape["max_position_embeddings"])
    memory = {
        name: Need.of(
            sizes, name, default_dtype(device, name, sizes)[0].itemsize, context, device
        ).total
        for name in offered(device)
    }
    room = free(device)
    addons = _addons(entry)
    have = {"split"} | addons | _own(entry) | ({OWN} if "fed_back" in addons else set())
    lacks = {name: sorted(decoder.needs - have) for name, decoder in DECODERS.items()}
    # such a head comes with a model's weights or its published add-ons: nobody trains it here
    never = [name for name, lack in lacks.items() if OWN in lack]
    return {
        "name": entry.name,
        "label": entry.label,
        "source": "assets" if entry.name in CATALOG and entry.is_local else entry.source,
        "family": entry.family,
        "here": here(entry),
        "parameters": sizes.parameters,
        "bytes": entry.stored or sizes.parameters * STORED,
        "memory": memory,
        "fits": [name for name, need in memory.items() if need <= room],
        "decoders": [name for name, lack in lacks.items() if not lack],
        "missing": {name: lack for name, lack in lacks.items() if lack and name not in never},
        "never": never,
        "note": entry.note,
        "published": entry.addons if entry.addons and not _addons_at(entry.addons) else None,
        "at": _kept_at(entry),
        "package": entry.archive.package if entry.archive else None,
        **entry.shape,
    }


def location(described: dict[str, Any]) -> str:
    """Say where a model lies."""
    if described["source"] == "assets":
        return "ships with the app"
    if Path(described["source"]).is_absolute():
        return f"in {described['source']}"
    if described["at"]:
        return f"in {described['at']}"
    if described["here"]:
        return f"downloaded from {described['source']}"
    command = f"python -m dmtd_demo get {described['name']}"
    other = f" or the package index ({described['package']})" if described["package"] else ""
    return f"to be downloaded from {described['source']}{other}: {command}"


def lines(described: dict[str, Any]) -> list[str]:
    """Write the description of a model in words."""
    d = described
    words = [
        f"{d['name']}: {d['parameters'] / 1e9:.2f} B parameters, {d['num_hidden_layers']} layers, "
        f"{gib(d['bytes'])}, {location(d)}",
        "  memory: "
        + ", ".join(
            f"{name} {gib(need)}{'' if name in d['fits'] else ' (more than is free)'}"
            for name, need in d["memory"].items()
        ),
        "  runs now: " + ", ".join(d["decoders"]),
    ]
    if d["missing"] and d["published"]:
        words.append(
            f"  not yet: {', '.join(d['missing'])}: the add-ons published for it, "
            f"{d['published']}, will be fetched with it"
        )
    elif d["missing"]:
        words.append(
            f"  not yet: {', '.join(d['missing'])}: no {', '.join(lacking(d))} published for this "
            "model yet"
        )
        words += [f"    {command}" for command in training(d)]
        words.append(
            f"    about {minutes(d)} minutes on an {RENTED.label}, by estimate; then run it with "
            f"--addons runs/{d['name']}/addons"
        )
        if untaught(d):
            words.append(
                f"    {', '.join(untaught(d))}: no recipe trains it for this model; "
                "classroom has it"
            )
    if d["never"]:
        words.append(
            f"  never: {', '.join(d['never'])}: the model has no MTP head that reads its own drafts"
        )
    return words + ([f"  {d['note']}"] if d["note"] else [])


def lacking(described: dict[str, Any]) -> list[str]:
    """List the add-ons without which some decoder cannot run."""
    return sorted({need for needs in described["missing"].values() for need in needs})


def training(described: dict[str, Any]) -> list[str]:
    """List the commands that train the missing add-ons, where any Qwen can have them, in order."""
    model = described["source"] if Path(described["source"]).is_absolute() else described["name"]
    return [
        f"python -m dmtd_demo train {recipe} --model {model} --output runs/{described['name']}"
        for addon, recipe in TRAINED.items()
        if addon in lacking(described)
    ]


def minutes(described: dict[str, Any]) -> int:
    """Estimate the minutes of these commands on a rented GPU, from bytes and operations."""
    recipes = [recipe for addon, recipe in TRAINED.items() if addon in lacking(described)]
    texts = len(PROMPTS.read_text(encoding="utf-8").splitlines())
    work = AddonTraining(texts, ANSWER, {recipe: STEPS[recipe] for recipe in recipes}, DRAWN)
    return math.ceil(training_seconds(ModelShape.of_fields(described), RENTED, work) / 60)


def untaught(described: dict[str, Any]) -> list[str]:
    """List the decoders whose add-ons no recipe trains for any Qwen."""
    return [name for name, lack in described["missing"].items() if not set(lack) <= set(TRAINED)]


def _addons(entry: CatalogEntry) -> set[str]:
    """List the add-ons that come with a model, without loading it."""
    if entry.is_local:
        return methods_in(Path(entry.source) / "addons")
    folder = _addons_at(entry.addons) if entry.addons else None
    return methods_in(folder) if folder else set()


def _own(entry: CatalogEntry) -> set[str]:
    """List the modules that a model's own checkpoint brings.

    Seen from the weights where they are here, else as the family is published.
    """
    if entry.family != HYBRID:
        return set()
    if entry.is_local and not any(name.startswith("mtp.") for name in names(Path(entry.source))):
        return set()
    return {OWN}


def _addons_at(source: str) -> Path | None:
    """Find the folder of published add-ons on this machine: shipped, or in the local cache."""
    if Path(source).is_absolute():
        return Path(source)
    path = try_to_load_from_cache(source, "addons.json")
    return Path(path).parent if isinstance(path, str) else None


def _kept_at(entry: CatalogEntry) -> str | None:
    """Find a file that may have come from the hub or from elsewhere; None for other models."""
    found = at_hand(entry.source, entry.archive) if entry.archive else None
    return str(found) if found else None


def here(entry: CatalogEntry) -> bool:
    """Say whether nothing of a model has to be fetched."""
    if entry.is_local:
        return True
    parts = hub.split(entry.source)
    if parts and parts[1]:
        return at_hand(entry.source, entry.archive) is not None
    return cached(entry.source)


def cached(source: str) -> bool:
    """Say whether all weights of a hub model lie in the local cache."""
    if isinstance(try_to_load_from_cache(source, "model.safetensors"), str):
        return True
    index = try_to_load_from_cache(source, "model.safetensors.index.json")
    if not isinstance(index, str):
        return False
    try:
        with open(index, encoding="utf-8") as file:
            shards = set(json.load(file)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # loading says what is wrong with it
        return False
    return all(isinstance(try_to_load_from_cache(source, shard), str) for shard in shards)
