"""Qwen3.5 checkpoints as they are published and as others save them again, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dmtd_demo.errors import UserError
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.finding import find
from dmtd_demo.models.loading import load
from dmtd_demo.models.memory import Need, Sizes
from dmtd_demo.models.native_mtp import NativeMTP
from dmtd_demo.race.panels import PanelSpec
from tiny import tiny_model
from written import KIND, generated, ids_of, steps_of

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def tensors_of(model, wrapper: bool, mtp: bool = True) -> dict[str, torch.Tensor]:
    """By the published names."""
    inner = "model.language_model." if wrapper else "model."
    state = model.backbone.module.state_dict()
    tied = model.backbone.config.tie_word_embeddings
    found = {
        inner + name.removeprefix("model.") if name.startswith("model.") else name: t.clone()
        for name, t in state.items()
        if not (tied and name == "lm_head.weight")
    }
    if wrapper:
        found["model.visual.patch_embed.proj.weight"] = torch.randn(4, 4)
        found["model.visual.blocks.0.norm1.weight"] = torch.randn(4)
    if mtp:
        head = model.addons["native_mtp"].state_dict()
        found |= {f"mtp.{name}": t.clone() for name, t in head.items()}
    return found


def write(folder: Path, model, wrapper: bool = True, shards: int = 1, mtp: bool = True) -> Path:
    folder.mkdir()
    text = model.backbone.config.to_dict() | {"mtp_num_hidden_layers": 1}
    raw = (
        {
            "model_type": "qwen3_5",
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "text_config": text,
            "vision_config": {"model_type": "qwen3_5", "depth": 1},
            "tie_word_embeddings": text["tie_word_embeddings"],
        }
        if wrapper
        else text
    )
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = tensors_of(model, wrapper, mtp)
    names, index = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wrapper,shards", [(True, 1), (True, 3), (False, 1), (False, 2)])
def test_every_layout_is_the_same_model(tmp_path, tied, wrapper, shards):
    made = tiny_model(KIND, tied=tied, seed=7)
    model = load(str(write(tmp_path / "it", made, wrapper, shards)), threads=1)
    assert model.parameters == made.parameters and model.has("native_mtp")
    assert ids_of(steps_of(model, PanelSpec("ar"), PROMPT, 40)) == generated(made, PROMPT, 40)
    for panel in (
        PanelSpec("mtp-native-verified", {"k": 2, "p_min": 0.0}),
        PanelSpec("mtp-native", {"threshold": 0.1}),
    ):
        assert ids_of(steps_of(model, panel, PROMPT, 40)) == ids_of(
            steps_of(made, panel, PROMPT, 40)
        )
    assert any("MTP head" in reason for reason in model.reasons)
    assert wrapper == any("vision tower" in reason for reason in model.reasons)


def test_without_its_head_it_is_a_model_all_the_same(tmp_path):
    """Whatever the config says: those who save such a model again often lose the head."""
    model = load(str(write(tmp_path / "it", tiny_model(KIND), mtp=False)), threads=1)
    assert not model.has("native_mtp") and model.backbone.config.model_type == KIND
    with pytest.raises(UserError, match="MTP head that reads its own drafts"):
        steps_of(model, PanelSpec("mtp-native"), PROMPT, 2)


def test_what_save_pretrained_writes_can_be_read(tmp_path):
    made = tiny_model(KIND, tied=False, seed=1)
    made.backbone.module.save_pretrained(tmp_path / "it")
    model = load(str(tmp_path / "it"), threads=1)
    assert ids_of(steps_of(model, PanelSpec("ar"), PROMPT, 30)) == generated(made, PROMPT, 30)


def without(name):
    return lambda tensors: tensors.pop(name)


def changed(name, shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


ATTENTION = "model.language_model.layers.3.self_attn.q_proj.weight"
RECURRENT = "model.language_model.layers.1.linear_attn."


@pytest.mark.parametrize(
    "damage,word",
    [
        (without("mtp.norm.weight"), "mtp.norm.weight is missing"),
        (changed("mtp.fc.weight", (32, 32)), r"needs mtp.fc.weight in the shape \[32, 64\]; got"),
        (
            changed("mtp.layers.1.mlp.up_proj.weight", (2, 2)),
            "mtp.layers.1.mlp.up_proj.weight is of no",
        ),
        (without(ATTENTION), "q_proj.weight is missing"),
        (without(RECURRENT + "A_log"), "A_log is missing"),
        (changed(RECURRENT + "dt_bias", (9,)), "wrong shape|do not fit"),
        (changed(RECURRENT + "in_proj_c.weight", (9,)), "in_proj_c.weight is of no part"),
        (
            lambda tensors: [tensors.pop(n) for n in list(tensors) if "language_model" in n],
            r"is missing \(\d+ such in all\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(tmp_path, damage, word):
    folder = write(tmp_path / "it", tiny_model(KIND))
    tensors = tensors_of(tiny_model(KIND), True)
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=word) as caught:
        load(str(folder), threads=1)
    assert "\n" not in str(caught.value)


# text model and MTP module, counted on meta devices beside the published configs
PUBLISHED = {
    "0.8B": (752_393_024, 20_452_864, 18),
    "2B": (1_881_825_088, 60_828_160, 18),
    "4B": (4_205_751_296, 120_599_552, 48),
    "9B": (8_953_803_264, 243_290_624, 48),
    "27B": (26_895_998_464, 424_699_392, 144),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_catalog_counts_what_the_modules_hold(size):
    from dmtd_demo.backbone.qwen import Backbone
    from dmtd_demo.models.config import CLASSES

    entry = CATALOG[f"Qwen3.5-{size}"]
    sizes = Sizes.of(entry.family, entry.shape)
    config_cls, cls = CLASSES[entry.family]
    with torch.device("meta"):
        module = cls(config_cls(**entry.shape))
        head = NativeMTP(Backbone(module))
    text = sum(p.numel() for p in module.parameters())
    own = sum(p.numel() for p in head.parameters())
    text, mtp, state = (text, own, sizes.state / 2**20)
    assert (sizes.parameters, sizes.mtp) == (text, mtp) == PUBLISHED[size][:2]
    assert PUBLISHED[size][2] < state < 1.1 * PUBLISHED[size][2]  # and the convolutions' windows
    need = Need.of(sizes, "none", 2, 262144)
    assert need.weights == 2 * (text + mtp) and need.cache > sizes.state


def test_the_state_takes_what_is_said(tmp_path):
    made = tiny_model(KIND, layers=8)
    folder = write(tmp_path / "it", made)
    sizes = find(str(folder)).sizes
    cache = made.backbone.new_cache(1)
    with torch.inference_mode():
        made.backbone.run_layers(made.backbone.embed([1]), 0, 8, cache)
    assert sum(state.nbytes() for state in cache.states.values()) == sizes.state
    assert sizes.parameters == made.parameters
    assert sizes.mtp == sum(p.numel() for p in made.addons["native_mtp"].parameters())
