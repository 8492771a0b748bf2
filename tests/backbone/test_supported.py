"""What a config asks for is computed as transformers computes it, or refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.supported import HYBRID, MODEL_TYPES, check_config
from dmtd_demo.errors import UserError
from tiny import HYBRID as HYBRID_SHAPE
from tiny import VOCABULARY, tiny_module

LAYERS = 4
ROPE = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 0.7,
        "beta_fast": 8.0,
        "truncate": False,
    },
    {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
]
ACTIVATIONS = ["silu", "swish", "relu", "gelu", "gelu_pytorch_tanh", "tanh"]


@st.composite
def configs(draw, family):
    """A family's config of any supported kind, as fields."""
    heads, shared = draw(st.sampled_from([(4, 4), (4, 2), (6, 3), (5, 1), (1, 1)]))
    rope = {"rope_theta": draw(st.sampled_from([500.0, 1e6])), **draw(st.sampled_from(ROPE))}
    fields = dict(
        num_attention_heads=heads,
        num_key_value_heads=shared,
        hidden_size=heads * 8,
        head_dim=draw(st.sampled_from([2, 8, 20, 64])),
        rms_norm_eps=draw(st.sampled_from([0.0, 1e-6, 1e-2])),
        rope_parameters=rope,
        attention_bias=draw(st.booleans()),
        initializer_range=0.15,
    )
    if family == HYBRID:
        # positions of time, height and width, which are the same in a text
        mrope = {"mrope_section": HYBRID_SHAPE["rope_parameters"]["mrope_section"]}
        share = draw(st.sampled_from([0.25, 0.5, 1.0]))
        fields["head_dim"] = draw(st.sampled_from([8, 24]))
        fields["rope_parameters"] = {**rope, **mrope, "partial_rotary_factor": share}
        kinds = st.sampled_from(["linear_attention", "full_attention"])
        types = st.lists(kinds, min_size=LAYERS, max_size=LAYERS)
        fields["layer_types"] = draw(types.filter(lambda types: "full_attention" in types))
        keys, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
        fields |= dict(linear_num_key_heads=keys, linear_num_value_heads=keys * groups)
        fields |= dict(
            linear_key_head_dim=draw(st.sampled_from([4, 8])),
            linear_value_head_dim=draw(st.sampled_from([4, 12])),
            linear_conv_kernel_dim=draw(st.integers(2, 5)),
        )
        return fields
    fields["hidden_act"] = draw(st.sampled_from(ACTIVATIONS))
    if family == "qwen2" and draw(st.booleans()):
        del fields["head_dim"]
    if draw(st.booleans()):
        window = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}
        fields |= window
    return fields


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("dtype,near", [(torch.float32, 2e-5), (torch.bfloat16, 0.12)])
def test_every_supported_config_is_computed_as_transformers_does(family, dtype, near):
    @settings(max_examples=40 if dtype == torch.float32 else 10, deadline=None)
    @given(configs(family), st.booleans(), st.integers(0, 99))
    @torch.inference_mode()
    def check(fields, tied, seed):
        module = tiny_module(family, tied, LAYERS, seed, **fields).to(dtype)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, VOCABULARY, (37,), generator=generator)
        backbone = Backbone(module)
        assert backbone.context == fields.get("sliding_window", 256)
        wanted = module(ids[None]).logits[0]
        cache, found = backbone.new_cache(capacity=4), []
        for some in ids.split([17, 1, 1, 5, 1, 12]):
            h = backbone.run_layers(backbone.embed(some.tolist()), 0, LAYERS, cache)
            found.append(backbone.logits(backbone.final_norm(h))[0])
        whole = backbone.run_layers(backbone.embed(ids[None]), 0, LAYERS)
        for logits in (torch.cat(found), backbone.logits(backbone.final_norm(whole))[0]):
            assert (logits - wanted).float().norm() < near * wanted.float().norm()

    check()


def test_another_activation_is_not_fused():
    silu, relu = (tiny_module("qwen3", hidden_act=name) for name in ("silu", "relu"))
    assert Backbone(silu)._fused and not Backbone(relu)._fused


@pytest.mark.parametrize(
    "family,changes,words",
    [
        ("qwen2", {"num_key_value_heads": 3}, "whole groups"),
        ("qwen3", {"num_key_value_heads": 0}, "whole groups"),
        ("qwen2", {"head_dim": None}, "head_dim of 1 or more"),
        ("qwen3", {"rms_norm_eps": -1e-6}, "rms_norm_eps of 0 or more"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "RoPE over whole heads"),
        ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "text's length"),
        ("qwen2", {"rope_parameters": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "'mrope'"),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 0.0}}, "factor above 0"),
        ("qwen2", {"rope_theta": -1.0}, "rope_theta above 0"),
        (HYBRID, {"partial_rotary_factor": [0.5]}, "partial_rotary_factor above 0"),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one RoPE"),
        ("qwen3", {"layer_types": ["chunked_attention"] * LAYERS}, "chunked_attention"),
        ("qwen2", {"layer_types": ["linear_attention"] * LAYERS}, "linear_attention"),
        ("qwen2", {"layer_types": ["sliding_attention"] * LAYERS}, "sliding_window of 1 or more"),
        (HYBRID, {"layer_types": ["sliding_attention"] * LAYERS}, "sliding_attention"),
        (HYBRID, {"layer_types": ["linear_attention"] * LAYERS}, "layer of full attention"),
        (HYBRID, {"hidden_act": "gelu"}, "SiLU as its hidden_act"),
        (HYBRID, {"linear_num_value_heads": 3}, "linear_num_value_heads 3"),
        (HYBRID, {"head_dim": 4}, "1 of 4"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias"),
        ("qwen2", {"is_causal": False}, "is_causal to be True"),
        ("qwen3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (HYBRID, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_what_would_come_out_wrong_is_refused_in_one_sentence(family, changes, words):
    from transformers import Qwen2Config, Qwen3_5TextConfig, Qwen3Config

    kinds = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, HYBRID: Qwen3_5TextConfig}
    shape = dict(
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    check_config(kinds[family].from_dict(dict(shape)))
    with pytest.raises(UserError, match=words) as error:
        check_config(kinds[family].from_dict({**shape, **changes}))
    text = str(error.value)
    assert text.startswith(f"a {family} model needs ") and "; its config says " in text
    assert "\n" not in text
