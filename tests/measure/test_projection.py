"""Estimates from bytes and operations."""

from __future__ import annotations

import pytest

from dmtd_demo.backbone.packed import parameters
from dmtd_demo.backbone.split import Split
from dmtd_demo.errors import UserError
from dmtd_demo.measure.projection import (
    DEVICES,
    EAGER,
    FORMATS,
    MODELS,
    REACHED,
    AddonTraining,
    Device,
    ModelShape,
    Projection,
    Setting,
    cycle_seconds,
    project,
    training_seconds,
)
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.loading import load

MEMORY_ONLY = Device("all memory, no arithmetic, no fixed cost", 1e9, float("inf"), 0.0)


def test_bytes_alone_give_the_ratios_of_methods_section_6():
    """Qwen3-4B, bf16, E0D8: C2 1.54, C3 1.88, C4 2.11, C6 2.41."""
    shape = ModelShape.of("Qwen3-4B")
    setting = Setting(shape, MEMORY_ONLY, context=0)
    ratios = [
        tau * setting.seconds([(36, 1)]) / cycle_seconds(setting, Split(36, 0, 8), tau)
        for tau in (2, 3, 4, 6)
    ]
    assert ratios == pytest.approx([1.54, 1.88, 2.11, 2.41], abs=0.006)


def test_a_pass_takes_the_time_of_its_bytes_or_of_its_operations():
    shape = ModelShape.of("Qwen3-4B")
    assert Setting(shape, MEMORY_ONLY, context=0).seconds([(36, 1)]) == pytest.approx(
        2 * (36 * shape.layer + shape.head) / 1e9 / REACHED
    )
    counting = Device("all arithmetic", float("inf"), 1e9, 0.0)
    assert Setting(shape, counting, context=0, batch=3).seconds([(36, 2)], 2) == pytest.approx(
        2 * 3 * 2 * (36 * shape.layer + shape.head) / 1e9 / REACHED
    )
    assert (
        Setting(shape, Device("slow to start", float("inf"), float("inf"), 0.25)).seconds([(8, 1)])
        == 2.0
    )


def test_the_parameters_are_those_of_the_model():
    """classroom's norms, 2 x 256 and 2 x 32 in a layer and 256 at the end, are all that is left
    out.
    """
    shape = ModelShape.of("classroom")
    assert (
        parameters(load("classroom").backbone.module)
        == 12 * (shape.layer + 2 * 256 + 2 * 32) + 256 + shape.head
    )


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_an_estimate(model):
    rows = {
        row["panel"]: row for row in project(Projection(model, "h200", quantization="nf4"))["rows"]
    }
    assert rows["ar"]["over_ar"] == 1.0 and all(
        row["tokens_per_second"] > 0 for row in rows.values()
    )
    assert rows["dmtd:tau=2"]["over_ar"] < rows["dmtd:tau=6"]["over_ar"]


def test_training_takes_answers_passes_and_the_updates_of_heads():
    """64 answers of 256 tokens, each a read of every weight; then 3 x 64 passes of 256 positions;
    the updates of heads alone, three times their forward operations.
    """
    shape = ModelShape.of("Qwen3-4B")
    weights = 36 * shape.layer + shape.head
    updates, positions = (
        {"heads": 2000, "clp": 1000, "adaptive": 1000},
        {"heads": 256, "clp": 2048, "adaptive": 2048},
    )
    device = Device("all memory", 1e12, float("inf"), 0.0)
    cache = 36 * 2 * 2 * shape.kv_size * 1024
    assert training_seconds(
        shape, device, AddonTraining(64, 256, updates, positions)
    ) == pytest.approx((64 * 256 + 3 * 64) * (2 * weights + cache) / 1e12 / EAGER)
    device = Device("all arithmetic", float("inf"), 1e12, 0.0)
    forward = 2 * weights + 36 * 2 * 2 * shape.query_size * 1024
    heads = 2000 * 256 * 4 * 2 * (shape.head + shape.hidden**2)
    assert training_seconds(
        shape, device, AddonTraining(64, 256, updates, positions)
    ) == pytest.approx((4 * 64 * 256 * forward + 3 * heads) / 1e12 / EAGER)


def test_published_figures_stand_beside_their_estimates():
    estimate = project(Projection("Qwen3-4B", "h100"))
    for source in ("published", "measured"):
        assert estimate[source]
        for row in estimate[source]:
            assert row["error"] == pytest.approx(row["predicted"] / row[source] - 1, abs=1e-3)


def test_no_estimate_is_far_from_what_was_measured():
    """Of bfloat16, which nothing was set by, and of the quantizations, whose reading was."""
    rows = project(Projection("Qwen3-4B", "h200"))["measured"]
    for quantization in FORMATS:
        assert sum(f", {quantization}, one H200" in row["what"] for row in rows) == 2
    assert all(abs(row["error"]) <= 0.25 for row in rows)


def test_what_was_never_measured_is_not_estimated():
    assert set(FORMATS["none"].read) == set(DEVICES)
    for quantization, device, word in (
        ("int8", "h200", "needs one of none, nf4, fast-int8, fast-int4"),
        ("nf4", "rtx4090", "nf4 was measured, or one like it: laptop, h100, h200"),
        ("fast-int4", "server-cpu", "fast-int4 was measured"),
    ):
        with pytest.raises(UserError, match=word):
            Projection("Qwen3-4B", device, quantization=quantization)
    for quantization, kept in FORMATS.items():
        for device in kept.read:
            assert project(Projection("Qwen3-4B", device, quantization=quantization))["rows"]


def test_quantized_weights_are_read_at_their_own_speed():
    """A pass over one position, and one over four, whose head reads one of them."""
    shape = ModelShape.of("Qwen3-4B")
    setting = Setting(shape, MEMORY_ONLY, "fast-int4", context=0, read=(0.5, 0.25))
    bytes_ = 0.625 * 36 * shape.layer, 0.625 * shape.head
    for positions, layers in ((1, 0.5), (4, 0.25)):
        assert setting.seconds([(36, positions)]) == pytest.approx(
            (bytes_[0] / layers + bytes_[1] / 0.5) / 1e9 / REACHED
        )
    setting = Setting(shape, MEMORY_ONLY, "nf4", context=0, read=(0.5, 0.25))
    assert setting.seconds([(36, 1)]) == pytest.approx(
        (0.5625 * 36 * shape.layer / 0.5 + 2 * shape.head) / 1e9 / REACHED
    )


def test_what_was_published_without_a_span_gives_the_span_it_needs():
    """Turned round again: a step of that span, which `clp` predicts for two positions, has the
    published ratio.
    """
    rows = project(Projection("Qwen2.5-1.5B-Instruct", "a100-40gb", span=2.0))
    # per token of a span
    predicted = next(row["over_ar"] for row in rows["rows"] if row["panel"] == "clp") / 2
    first = rows["implied"][0]
    assert first["published"] == [1.20, 1.29] and [
        span * predicted for span in first["span"]
    ] == pytest.approx(first["published"], rel=5e-3)
    assert all(
        published <= span < 1.2 * published
        for row in rows["implied"]
        for published, span in zip(row["published"], row["span"])
    )


@pytest.mark.parametrize(
    "settings,word",
    [
        (dict(name="Qwen3-5B"), "Qwen3-4B"),
        (dict(device="abacus"), "h100"),
        (dict(quantization="int2"), "nf4"),
        (dict(batch=0), "from 1"),
        (dict(span=0.5), "from 1"),
        (dict(split="E0D99"), "middle"),
        (dict(reached=2), "got 2"),
    ],
)
def test_bad_input_says_what_was_needed(settings, word):
    settings = {"name": "Qwen3-4B", "device": "h100"} | settings
    with pytest.raises(UserError, match=word):
        project(Projection(settings.pop("name"), settings.pop("device"), **settings))


def test_the_catalog_is_covered():
    assert set(CATALOG) <= set(MODELS)
