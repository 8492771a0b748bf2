"""Quantized models on a CPU: every decoder, at every quantization, against plain float32 models of
the same (dequantized) weights.
"""

from __future__ import annotations

import json
from dataclasses import replace

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmtd_demo.backbone.bitsandbytes_4bit import SWITCH, choose_layout, keep_layout
from dmtd_demo.backbone.cpu_packed import Int4Linear, Int8Linear
from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.errors import UserError
from dmtd_demo.machine import free
from dmtd_demo.measure import availability
from dmtd_demo.models import placement
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.config import CLASSES
from dmtd_demo.models.loading import load, load_random
from dmtd_demo.models.memory import Need, Sizes, gib, taken, weight_bytes
from dmtd_demo.models.model import Model
from dmtd_demo.models.placement import QUANTIZATIONS, Asked, has_fast_kernels, place
from dmtd_demo.race.panels import parse_panel
from dmtd_demo.race.race import race_ids
from dmtd_demo.race.settings import RaceSettings
from tiny import ATTENTION, tiny_model, tiny_module
from written import ANYWHERE, KIND

# bitsandbytes quantizes blocks of 64; calmer than other tests' weights, so that rounding does not
# decide what follows
SHAPE = dict(hidden_size=64, intermediate_size=128, initializer_range=0.15)
PROMPT = [5, 17, 60, 42, 9, 5, 17, 60]
NEW = 12
# Options that leave no decision to a predictor's rounding: what is compared are the tokens.
OPTIONS = {
    "clp": ":threshold=0",
    "mtp-gate": ":threshold=0",
    "dmtd-adaptive": ":threshold=0,max=3",
    "mixed": ":threshold=0,max=3",
    # the default goes by the quantization
    "mtp-verified": ":k=3",
    "mtp-lookup": ":k=3",
}


@pytest.fixture(scope="module", params=(*ATTENTION, KIND))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / request.param
    tiny_module(request.param, tied=request.param == "qwen3", **SHAPE).save_pretrained(path)
    return path


def plain(model: Model) -> Model:
    """The same model in float32, its matrices dequantized."""
    module = model.backbone.module
    state = {
        name: t.float()
        for name, t in module.state_dict().items()
        if t.is_floating_point() and ".weight." not in name and not name.endswith(("SCB", ".scale"))
    }
    for name, part in module.named_modules():
        if isinstance(part, bitsandbytes.nn.Linear4bit):
            state[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(
                part.weight.data, part.weight.quant_state
            ).float()
        elif isinstance(part, bitsandbytes.nn.Linear8bitLt):
            state[f"{name}.weight"] = bitsandbytes.functional.int8_vectorwise_dequant(
                part.weight.data, part.weight.SCB
            )
        elif isinstance(part, Int4Linear):
            state[f"{name}.weight"] = part.dense().float()
        elif isinstance(part, Int8Linear):
            state[f"{name}.weight"] = part.weight.float() * part.scale.float()[:, None]
    fields = {
        k: v
        for k, v in module.config.to_dict().items()
        if k
        not in (
            "tie_word_embeddings",
            "quantization_config",
            "dtype",
            "model_type",
            "transformers_version",
        )
    }
    copy = (
        type(module)
        ._from_config(
            type(module.config)(**fields, tie_word_embeddings=False), attn_implementation="sdpa"
        )
        .float()
    )
    copy.load_state_dict(state)
    made = Model(
        "plain",
        "plain",
        Backbone(copy.eval().requires_grad_(False)),
        None,
        None,
        None,
        frozenset(),
        None,
        "none",
        [],
    )
    made.addons, made.addon_facts = model.addons, model.addon_facts
    return made


def tokens(model: Model, panel: str, top: int = 0) -> list[dict]:
    batches = race_ids(
        model,
        [parse_panel(panel)],
        [PROMPT],
        RaceSettings(max_new_tokens=NEW, ignore_eos=True, audit=False, top=top),
    )
    records = [record for batch in batches for record in batch]
    assert records[-1].get("message") is None, records[-1]
    return [token for record in records if record["type"] == "step" for token in record["tokens"]]


@pytest.mark.parametrize(
    "quantization,dtype,margin",
    [
        ("nf4", "float32", 0),
        ("nf4-single", "float32", 0),
        ("nf4", None, 0.3),
        ("int8", None, 0.3),
        ("fast-int8", "float32", 0),
        ("fast-int8", None, 0.3),
        ("fast-int4", "float32", 0),
        ("fast-int4", None, 0.3),
        ("none", "bfloat16", 0.3),
    ],
)
def test_every_decoder_decodes_as_with_the_dequantized_weights(folder, quantization, dtype, margin):
    """In float32 token for token; below, up to a token that the plain model holds as likely as its
    own, within `margin` of its log-probability.
    """
    model = load(str(folder), quantization=quantization, dtype=dtype)
    assert model.quantization == quantization
    # a recurrent state carries rounding on
    margin = 0.5 if margin and model.backbone.hybrid else margin
    donor = tiny_model(addons=True, **SHAPE)
    model.addons, model.addon_facts = donor.addons, donor.addon_facts
    reference = plain(model)
    model.addons = {
        name: module.to(model.backbone.dtype)
        for name, module in tiny_model(addons=True, **SHAPE).addons.items()
    }
    compared = 0
    for name in ANYWHERE:
        panel = name + OPTIONS.get(name, "")
        ours, wanted = tokens(model, panel), tokens(reference, panel, top=97)
        for mine, theirs in zip(ours, wanted):
            if mine["origin"] != theirs["origin"]:
                # a predictor at its threshold has ended a cycle one token sooner or later
                assert margin, (panel, mine, theirs)
                break
            if mine["id"] != theirs["id"]:
                behind = next(p for i, _, p in theirs["top"] if i == mine["id"])
                assert margin and theirs["top"][0][2] / max(behind, 1e-9) < torch.e**margin, (
                    panel,
                    mine,
                    theirs["top"][:3],
                )
                break
            compared += 1
        else:
            assert len(ours) == len(wanted) == NEW
    assert compared >= (len(ANYWHERE) * NEW if not margin else len(ANYWHERE) * NEW // 2)


def test_only_bfloat16_matrices_that_fit_are_laid_out_anew(folder, model_folder):
    """On CPUs with instructions for bfloat16 bitsandbytes would do so with all others too, and
    compute in bfloat16 where float32 was asked for, or fail.
    """
    if folder.name == KIND:
        pytest.skip("its matrices are of many shapes")
    # of model_folder some are 32 wide, half a block
    for path, dtype in (
        (folder, torch.bfloat16),
        (folder, torch.float32),
        (model_folder, torch.bfloat16),
    ):
        model = load(str(path), quantization="nf4", dtype=str(dtype).removeprefix("torch."))
        parts = [
            part
            for part in model.backbone.module.modules()
            if isinstance(part, bitsandbytes.nn.Linear4bit)
        ]
        for part in parts:
            setattr(part, SWITCH, True)  # as on such a CPU
        choose_layout(model.backbone.module, dtype)
        chosen = [getattr(part, SWITCH) for part in parts]
        assert chosen == [
            dtype == torch.bfloat16 and part.in_features % 64 == 0 for part in parts
        ] and (any(chosen), all(chosen)) == (
            dtype == torch.bfloat16,
            path == folder and dtype == torch.bfloat16,
        )
        keep_layout(model.backbone.module)
        assert not any(getattr(part, SWITCH) for part in parts)


def test_what_has_run_is_still_measured_and_is_not_trained_on_where_it_was_laid_out_anew(folder):
    model = load(str(folder), quantization="nf4", dtype="bfloat16")
    before = model.memory
    tokens(model, "ar")
    assert 0.95 * before < model.memory < 1.05 * before
    part = next(
        part
        for part in model.backbone.module.modules()
        if isinstance(part, bitsandbytes.nn.Linear4bit)
    )
    part.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(UserError, match="load the model again"):
        keep_layout(model.backbone.module)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_no_step_of_int8_warns(folder, caplog, dtype):
    tokens(load(str(folder), quantization="int8", dtype=dtype), "ar")
    assert not caplog.records


def test_the_quantized_matrices_are_quantized_and_nothing_else(folder):
    for quantization, kind in (
        ("nf4", bitsandbytes.nn.Linear4bit),
        ("nf4-single", bitsandbytes.nn.Linear4bit),
        ("int8", bitsandbytes.nn.Linear8bitLt),
    ):
        model = load(str(folder), quantization=quantization)
        found = [part for part in model.backbone.module.modules() if isinstance(part, kind)]
        hybrid = model.backbone.hybrid  # three layers with qkv, z and out, one of attention
        assert len(found) == (3 * 3 + 4 + 4 * 3 if hybrid else 4 * 7) and not isinstance(
            model.backbone.module.lm_head, kind
        )
        assert {
            getattr(part.weight, "quant_state", None) is not None and part.weight.quant_state.nested
            for part in found
        } == {quantization == "nf4"}
        assert model.parameters == load(str(folder)).parameters


# which does not take a vocabulary of 97: tests/backbone/test_cpu_packed.py
@pytest.mark.parametrize("quantization", [name for name in QUANTIZATIONS if name != "fast-int4"])
def test_the_arithmetic_is_what_the_weights_take(folder, quantization):
    model = load(str(folder), quantization=quantization)
    config = model.backbone.config
    sizes = Sizes.of(config.model_type, config.to_dict())
    expected = weight_bytes(sizes, quantization, model.backbone.dtype.itemsize)
    tables = sum(
        b.numel() * b.element_size() for b in model.backbone.module.model.rotary_emb.buffers()
    )
    # bitsandbytes rounds its scales of scales up to a whole block for each of these 28 small
    # matrices
    if model.backbone.hybrid:  # which this folder lacks
        expected -= sizes.mtp * model.backbone.dtype.itemsize
    assert 0 <= model.memory - expected - tables <= 28 * 4 * (quantization == "nf4")


# of Qwen3.5: tests/models/test_qwen35_folders.py
@pytest.mark.parametrize("name", [n for n, e in CATALOG.items() if e.family in ATTENTION])
def test_the_sizes_in_the_catalog_are_those_of_transformers_modules(name):
    entry = CATALOG[name]
    config_cls, cls = CLASSES[entry.family]
    with torch.device("meta"):
        module = cls(config_cls(**entry.shape))
    sizes = Sizes.of(entry.family, entry.shape)
    # those of the recurrent layers that are matrices of the layers, not the two small ones
    inner = ("proj.weight", "in_proj_qkv.weight", "in_proj_z.weight")
    matrices = [p for n, p in module.named_parameters() if n.endswith(inner)]
    assert (
        sizes.parameters == parameters(module)
        and sizes.matrices == sum(p.numel() for p in matrices)
        and sizes.rows == sum(p.shape[0] for p in matrices)
    )
    # transformers leaves the MTP head out
    assert weight_bytes(sizes, "none", 4) - 4 * sizes.mtp == taken(module) - sum(
        b.numel() * b.element_size() for b in module.buffers()
    )


def test_what_does_not_fit_is_refused_before_it_is_loaded(folder, tmp_path):
    config = {
        **json.loads((folder / "config.json").read_text()),
        "num_hidden_layers": 400_000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "layer_types": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    need = Need.of(
        Sizes.of(config["model_type"], config), "nf4", 2, config["max_position_embeddings"]
    )
    with pytest.raises(UserError) as caught:
        load(str(tmp_path))
    message = str(caught.value)
    assert (
        f"{gib(need.weights)} for its weights + " in message
        and f"= {gib(need.total)}" in message
        and "GiB free: take a smaller model" in message
    )
    assert need.total == need.weights + need.cache + need.working


def test_a_refusal_says_which_quantization_would_fit():
    layer, base = (
        Sizes.of("qwen3", {**CATALOG["Qwen3-8B"].shape, "num_hidden_layers": n}) for n in (2, 1)
    )
    # about 1.4 times what is free, in bfloat16
    layers = int(free("cpu") * 0.7 / 2 / (layer.parameters - base.parameters)) * 2
    sizes = Sizes.of("qwen3", {**CATALOG["Qwen3-8B"].shape, "num_hidden_layers": layers})
    with pytest.raises(
        UserError,
        match="bfloat16, quantization none, needs .* cpu has .* GiB free: --quantization nf4 needs",
    ):
        place(sizes, 64, Asked(quantization="none"))


@pytest.mark.parametrize(
    "settings,quantization,dtype",
    [
        ({}, "fast-int4" if has_fast_kernels("cpu") else "nf4", "bfloat16"),
        ({"fast": False}, "nf4", "bfloat16"),
        ({"dtype": "bf16"}, "none", "bfloat16"),
        ({"quantization": "int8"}, "int8", "float16"),
        ({"quantization": "nf4-single", "dtype": "fp32"}, "nf4-single", "float32"),
    ],
)
def test_the_defaults_of_a_cpu(settings, quantization, dtype):
    sizes = Sizes.of("qwen2", CATALOG["Qwen2.5-0.5B-Instruct"].shape)
    chosen = place(sizes, 4096, Asked(device="cpu", **settings))
    assert (chosen.quantization, str(chosen.dtype)) == (quantization, f"torch.{dtype}")
    named = {reason.partition(":")[0] for reason in chosen.reasons}
    assert named == ({quantization} if not settings or "fast" in settings else set()) | (
        {dtype} if "dtype" not in settings else set()
    )


def test_fast_int4_is_a_processors_default_where_it_has_code_for_it(monkeypatch):
    """And where the dense weights have room, beside which it is packed; nf4 elsewhere."""
    sizes = Sizes.of("qwen2", CATALOG["Qwen2.5-0.5B-Instruct"].shape)
    needs = {q: Need.of(sizes, q, 2, 4096).total for q in ("fast-int4", "nf4")}
    for capability, room, chosen in (
        ("AVX512", 2**40, "fast-int4"),
        ("AVX2", needs["fast-int4"], "fast-int4"),
        ("AVX512", needs["fast-int4"] - 1, "nf4"),
        ("DEFAULT", 2**40, "nf4"),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda it=capability: it)
        monkeypatch.setattr(placement, "free", lambda device, it=room: it)
        found = place(sizes, 4096, Asked(device="cpu"))
        assert found.quantization == chosen and found.reasons[0].startswith(f"{chosen}: ")
    assert needs["nf4"] < needs["fast-int4"]


def test_what_a_gpu_defaults_to_follows_what_was_measured(monkeypatch):
    """fast-int8 on GPUs like the measured one, unless less than it fits; elsewhere as stored."""
    entry = CATALOG["Qwen3-4B"]
    sizes = Sizes.of(entry.family, entry.shape)
    large = 80 * 2**30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for capability, model, room, chosen in (
        ((9, 0), sizes, large, "fast-int8"),
        ((9, 0), sizes, Need.of(sizes, "fast-int8", 2, 4096, "cuda").total, "fast-int8"),
        ((9, 0), sizes, Need.of(sizes, "fast-int4", 2, 4096, "cuda").total, "fast-int4"),
        ((9, 0), replace(sizes, in_four_bits=True), large, "fast-int4"),
        ((8, 0), sizes, large, "none"),
        ((8, 0), sizes, Need.of(sizes, "nf4", 2, 4096, "cuda").total, "nf4"),
        ((9, 0), Sizes.of("qwen3", CATALOG["classroom"].shape), large, "none"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None, it=capability: it)
        monkeypatch.setattr(placement, "free", lambda device, it=room: it)
        found = place(model, 4096, Asked(device="cuda"))
        assert found.quantization == chosen, (capability, room)
        assert "not quantized" in found.reasons[0] or found.reasons[0].startswith(f"{chosen}: ")
    assert place(sizes, 4096, Asked(device="cuda", quantization="nf4")).quantization == "nf4"


def test_the_catalog_needs_on_a_gpu_what_loading_there_needs(monkeypatch):
    """Not the dense weights, which lie beside it: only on a CPU they are there meanwhile."""
    entry = CATALOG["Qwen3-8B"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(availability, "free", lambda device: 2**40)
    memory = availability.describe_model(entry, "cuda")["memory"]
    context = entry.shape["max_position_embeddings"]
    for name in ("fast-int8", "fast-int4"):
        assert memory[name] == Need.of(entry.sizes, name, 2, context, "cuda").total
        assert memory[name] < Need.of(entry.sizes, name, 2, context, "cpu").total


@pytest.mark.parametrize("device", ["cuda:1", "cuda:x", "cuda:", "auto:0", "mps"])
def test_a_device_that_is_not_there_is_refused_in_a_sentence(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    sizes = CATALOG["Qwen3-0.6B"].sizes
    with pytest.raises(UserError, match=f"device needs to be cpu, or cuda .*; got '{device}'"):
        place(sizes, 4096, Asked("none", "bfloat16", device))


def test_random_weights_can_be_quantized():
    for quantization in ("nf4", "int8", "fast-int8", "fast-int4"):
        model = load_random("classroom", quantization=quantization)
        assert (
            model.quantization == quantization
            and model.parameters == 9_968_640
            and len(tokens(model, "dmtd")) == NEW
        )
