"""docs/results.md: every stored figure of `classroom` beside the papers' own.

Each stands with the command that measured it. `python -m dmtd_demo results` prints the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.measure.report import (
    accepted_table,
    curve_tables,
    family_table,
    markdown,
    percent,
    summary_table,
)

FILES = ("results.json", "quantized.json", "clp_and_gate.json", "curves.json", "twin.json")

DMTD, CLP = "DMTD, arXiv 2510.11958", "CLP, arXiv 2606.10935"
# published: the paper, what, their figure, the panel of ours, its field, what differs
QUALITY = (
    "theirs is relative to a vanilla Qwen3-4B over six benchmarks, ours to the same checkpoint's "
    "own `ar` on tasks of a small world; against a vanilla twin, trained on fewer tokens: below"
)
SPEED = (
    "theirs is the best of a 4B model, limited by memory, on one A100; ours one CPU thread on "
    "10 M parameters, where every pass has a fixed cost"
)
PUBLISHED = (
    (DMTD, "quality, C2", "100.9 %", "dmtd:tau=2", "relative", QUALITY),
    (DMTD, "quality, C3", "99.4 %", "dmtd:tau=3", "relative", QUALITY),
    (DMTD, "quality, C4", "95.9 %", "dmtd:tau=4", "relative", QUALITY),
    (
        DMTD,
        "quality, C6",
        "81.7 %",
        "dmtd:tau=6",
        "relative",
        QUALITY + "; six was among the cycle lengths that it was trained with",
    ),
    (DMTD, "speed-up, C4", "up to 2.15×", "dmtd:tau=4", "over_ar", SPEED),
    (
        CLP,
        "speed-up",
        "1.20× to 1.29× on Qwen2.5-1.5B, 1.14× to 1.20× on 7B",
        "clp",
        "over_ar",
        "the small world's answers are far easier to foresee than text from people, so spans are "
        "longer",
    ),
    (
        CLP,
        "repetition ratio",
        "under 0.02",
        "clp",
        "repetition_ratio",
        "their abstract does not define it; ours is the share of 4-grams that occurred before in "
        "the same text",
    ),
    (
        CLP,
        "gate-based MTP, speed-up",
        "1.07×, or severely degraded text",
        "mtp-gate",
        "over_ar",
        "our gate is calibrated as CLP is; against it at many thresholds, see above",
    ),
)

RESULTS_PAGE = """# Results

This page is written by `python -m dmtd_demo results > docs/results.md`, from the files in
`assets/classroom`; a test holds it against them. Every figure was measured by this repository, on
`{processor}`, {cores} cores, {threads} thread, PyTorch {torch}, transformers {transformers}. To
measure one again, run the command above its table and compare: the answers come out the same on the
same versions, the times as your machine has them.

## Every decoder

    python -m dmtd_demo eval --seed 7 --prompts {prompts} --json

{prompts} prompts whose contents were held out of training, greedy. Brackets are 95 % bootstrap
intervals over the prompts.

{summary}
Exact match by family, per cent:

{families}
## Quantized

    python -m dmtd_demo eval --seed 7 --prompts {quantized_prompts} --quantization nf4 --panel ar \\
        --panel dmtd:tau=4 --panel clp --json

The same checkpoint and add-ons, {quantized_prompts} prompts; speed-ups are over `ar` under the same
quantization. The runs came one after the other: between them only large differences of speed count.
On matrices this small, bitsandbytes saves memory and costs time.

{quantized}
## Thresholds: CLP and the gate

    python -m dmtd_demo eval --seed 7 --prompts {gate_prompts} --panel ar \\
        --panel clp:threshold=0.5 --panel mtp-gate:threshold=0.5 … --json

{gate}
## Over training: MTP heads and cycle lengths

    python -m dmtd_demo curves --kept FOLDER --prompts {curve_prompts} --seed 7 --json

{curves}
## Beside the papers

{papers}
## A vanilla twin

The papers hold DMTD against a model that was never trained for it. `classroom` itself took more
training than a twin could be given; so here are two models of the same recipe, size, seed and data,
each from nothing over {twin_tokens} tokens: one with the cycles, one without (`--vanilla`, every
position a head). Neither ships; `classroom` saw four times as many tokens. Both runs were begun for
10 M tokens and, at 4.2 M, shortened alike (`--resume`).

    python -m dmtd_demo train classroom --tokens {twin_number} --output runs/pair
    python -m dmtd_demo train classroom --tokens {twin_number} --output runs/twin --vanilla
    python -m dmtd_demo eval --model runs/twin/model --seed 7 --prompts {twin_prompts} --panel ar \\
        --json

{twin}
Without cycles a quarter of `classroom`'s tokens was enough for what its `ar` answers
exactly. In a model this small, decoding several tokens from the late layers is paid for in
training: with as many tokens as the twin, both `ar` and every cycle length stay behind it, and
`classroom` came level with it by training longer. A 4B model that is fine-tuned has more room: the
paper's figures stand in the table above.

What `project` predicts for the papers' own machines from bytes and operations, beside what they
published: `python -m dmtd_demo project`.

## A Qwen3.5 with its own MTP head

`classroom-hybrid` is what Qwen3.5 is, in small: three recurrent layers to one with attention, and
an MTP head in its own weights that was trained together with them; its card says how. The same
prompts as above, the first {hybrid_prompts} of them.

    python -m dmtd_demo eval --model classroom-hybrid --seed 7 --prompts {hybrid_prompts} --json \\
{hybrid_panels}

{hybrid}
Its machine was busy with other work, which slows every panel alike: of the times, the speed-ups
count. PLT counts the layers of the backbone, not the head's own.

How many of the drafts the next pass accepts, and the share of the passes that accept at least so
many:

{accepted}
What others report of the real models, whose head works the same way. None of it can be measured
here, and it is no forecast for these tasks: a small world is easier to foresee than text from
people, and on one CPU thread a 10 M model's pass costs what its Python costs, where a large one's
costs the reading of its weights.

| who | model | accepted, or times as fast |
| --- | --- | --- |
| llama.cpp, pull request 22673 | Qwen3.6-27B, Q6_K, k = 2 | 22.7 to 40.6 tokens/s; \
55 to 93 % of the drafts, by task |
| mlx-vlm, pull request 1167 | Qwen3.5-4B | 1.18× in bfloat16, 1.32× in 4 bits |
| mlx-vlm, pull request 1167 | Qwen3.6-27B | 1.74× in 4 bits |
| LightLLM, issue 1402 | Qwen3.5-0.8B | 2.74 tokens a pass, \
fed with the state after the final norm |

## What was not shown

- No real Qwen weights were run: no model hub can be reached from the machines that made this.
  Loading, quantizing, training and decoding are tested on random weights in their shapes, and the
  released DMTD checkpoint on folders built like it.
- No Space, no ZeroGPU machine, no multi-GPU machine. The tests run both environments of a Space
  here, with the CPU in the GPU's place.
- The vanilla twin saw a quarter of the tokens that `classroom` did, so what DMTD's training costs a
  model that is trained to its end is not measured.
- {prompts} prompts bound an exact match of 98 % to about ± 1.2 percentage points.
"""


def page(folder: Path) -> str:
    """Write docs/results.md from the files stored in a model's folder.

    FILES are as `eval --json` and `curves --json` print them; quantized.json is a list of the
    former, twin.json has two of them. Raises UserError where one is missing or no JSON.
    """
    stored: dict[str, Any] = {}
    for name in FILES:
        try:
            stored[name] = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"results needs {', '.join(FILES)} in {folder}; {name} gave: {error}"
            ) from None
    results, quantized, gate, curves, twin = (stored[name] for name in FILES)
    hybrid = _hybrid(folder.parent / "classroom-hybrid" / "results.json")
    machine = results["machine"]
    return RESULTS_PAGE.format(
        summary=summary_table(results),
        families=family_table(results),
        quantized=_quantized(quantized),
        gate=summary_table(gate),
        curves=curve_tables(curves),
        papers=_papers(results),
        hybrid=summary_table(hybrid),
        hybrid_prompts=hybrid["prompts"],
        hybrid_panels=_panels(hybrid),
        accepted=accepted_table(hybrid),
        twin=_twin(twin),
        twin_tokens=f"{twin['tokens'] / 1e6:.1f} M",
        twin_number=f"{twin['tokens']:.1e}".replace("e+0", "e"),
        twin_prompts=twin["vanilla"]["prompts"],
        prompts=results["prompts"],
        quantized_prompts=quantized[0]["prompts"],
        gate_prompts=gate["prompts"],
        curve_prompts=curves["prompts"],
        **{
            name: machine[name]
            for name in ("processor", "cores", "threads", "torch", "transformers")
        },
    )


def _hybrid(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"results needs {path}, as eval --json prints it; it gave: {error}"
        ) from None


def _panels(result: dict[str, Any]) -> str:
    """Return the panels of a result as a command's arguments, three on a line."""
    given = [f"--panel {row['panel']}" for row in result["rows"]]
    lines = ["        " + " ".join(given[i : i + 3]) for i in range(0, len(given), 3)]
    return " \\\n".join(lines)


def _quantized(results: list[dict[str, Any]]) -> str:
    lines = [
        ["quantization", "panel", "exact match", "audit", "mean span", "tokens/s", "speed-up"],
        ["---"] * 7,
    ]
    for result in results:
        lines += [
            [
                f"`{result['quantization']}` ({result['dtype']})",
                f"`{row['panel']}`",
                percent(row["exact_match"]),
                percent(row["audit_agreement"]),
                f"{row['mean_span']:.2f}",
                f"{row['tokens_per_second']:.0f}",
                f"{row['over_ar']:.2f}×",
            ]
            for row in result["rows"]
        ]
    return markdown(lines)


def _papers(results: dict[str, Any]) -> str:
    rows = {row["panel"]: row for row in results["rows"]}
    lines = [["paper", "figure", "theirs", "ours", "what differs"], ["---"] * 5]
    for paper, what, theirs, panel, field, differs in PUBLISHED:
        value = rows[panel][field]
        ours = (
            f"{value:.2f}×"
            if field == "over_ar"
            else f"{value:.3f}"
            if field == "repetition_ratio"
            else percent(value)
        )
        lines.append([paper, what, theirs, f"`{panel}` {ours}", differs])
    return markdown(lines)


def _twin(twin: dict[str, Any]) -> str:
    """Format the twin. twin: tokens, and two results, vanilla and cyclical."""
    lines = [
        ["trained", "panel", "exact match", "÷ vanilla `ar`", "÷ its own `ar`", "mean span"],
        ["---"] * 6,
    ]
    base = twin["vanilla"]["rows"][0]["exact_match"]
    for name, words in (("vanilla", "without cycles"), ("cyclical", "with cycles")):
        for row in twin[name]["rows"]:
            low, high = row["intervals"]["exact_match"]
            lines.append(
                [
                    words,
                    f"`{row['panel']}`",
                    f"{percent(row['exact_match'])} [{100 * low:.1f}, {100 * high:.1f}]",
                    percent(row["exact_match"] / base),
                    percent(row["relative"]),
                    f"{row['mean_span']:.2f}",
                ]
            )
    return markdown(lines)
