"""A folder of add-ons with a card of its own, as it goes to the hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dmtd_demo.destinations import write_text
from dmtd_demo.errors import UserError
from dmtd_demo.models import hub
from dmtd_demo.models.addons import CARD, load_addons
from dmtd_demo.text_files import parsed, read_text

WHAT = {
    "mtp_heads": "MTP heads on the backbone's last hidden state, for `clp`, `mtp-heads`, "
    "`mtp-gate` and `mtp-verified`",
    "head0": "head 0, which `mtp-heads` has in the LM head's place",
    "clp": "Collocation-Length Predictor, for `clp`",
    "confidence": "reader of the heads' confidences, for `clp:rule=confidence`",
    "acceptance": "predictor of whether a draft would be kept, for `mtp-native`",
    "native_clp": "length predictor for the model's own MTP head, for `mtp-native`",
    "gate": "span gate, for `mtp-gate`",
    "adaptive": "predictor of cycle lengths, for `dmtd-adaptive`",
    "mixed": "MTP heads on late hidden states, for `mixed`",
    "dmtd_layers": "late layers for late-layer-only passes, for `dmtd` and `dmtd-spec`",
    "frequent": "the most frequent tokens, from which drafts are chosen",
    "fed_back": "MTP head that reads its own drafts, for `mtp-native-verified` and `mtp-native`",
}


def card_text(card: dict, hub_id: str) -> str:
    """README.md of a repository of add-ons, from addons.json alone."""
    base = card["base_model"]
    revision = f" at revision {card['base_revision']}" if card.get("base_revision") else ""
    lines = [
        "---",
        f"license: {card['license']}",
        f"base_model: {base}",
        "base_model_relation: adapter",
        "tags: [multi-token-prediction, dmtd_demo]",
        "---",
        "",
        f"# Add-ons for {base}: {', '.join(card['addons'])}",
        "",
        f"Trained on the frozen backbone{revision} (hidden size {card['hidden_size']}, "
        f"weights {card.get('base_fingerprint', 'without fingerprint')}) with dmtd_demo.",
        "",
        "| add-on | k | default threshold | trained on |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{method}`: {WHAT[method]} | {facts.get('k', '–')} | "
        f"{facts.get('threshold', '–')} | {facts.get('data', 'not stated')} |"
        for method, facts in card["addons"].items()
    ]
    measured = {
        method: facts[name]
        for method, facts in card["addons"].items()
        for name in ("results", "validation")
        if facts.get(name)
    }
    lines += (
        [
            "",
            "## Measured",
            "",
            *(
                f"- `{method}`: {', '.join(f'{name} {value}' for name, value in figures.items())}"
                for method, figures in measured.items()
            ),
        ]
        if measured
        else []
    )
    return "\n".join(
        [
            *lines,
            "",
            "## Use",
            "",
            f"    python -m dmtd_demo compare --model {base} --addons {hub_id} --panel ar "
            '--panel clp --prompt "…"',
            "",
        ]
    )


def publish(folder: Path, hub_id: str, license: str | None, private: bool = False) -> str:
    """Check the add-ons, write the license into addons.json and the card beside it, and upload.

    Returns the upload's address. Raises UserError.
    """
    if not hub.is_id(hub_id):
        raise UserError(f"push needs a hub id of the form owner/name; got {hub_id!r}")
    # strictly, as it will be read by others
    load_addons(folder, _hidden_size(folder), torch.float32, torch.device("cpu"))
    card = parsed(read_text(folder / CARD))
    if not isinstance(card.get("base_model"), str):
        raise UserError(
            f"push needs base_model in {folder / CARD}, the model that the add-ons were trained "
            f"on; got {card.get('base_model')!r}"
        )
    card["license"] = license or card.get("license")
    if not card["license"]:
        raise UserError(
            "push needs --license, such as apache-2.0: under which others may use the add-ons"
        )
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
    write_text(folder / "README.md", card_text(card, hub_id))
    return hub.push(folder, hub_id, private)


def _hidden_size(folder: Path) -> int:
    try:
        return int(parsed(read_text(folder / CARD))["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"push needs a folder of add-ons with {CARD}; got {folder}") from None
