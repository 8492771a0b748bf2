"""What the documents say is what the code has and what was measured."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from dmtd_demo.decoders import DECODERS
from dmtd_demo.errors import UserError
from dmtd_demo.measure.report import accepted_table, curve_tables, family_table, summary_table
from dmtd_demo.measure.results import page
from dmtd_demo.models.catalog import ASSETS
from written import ANYWHERE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ASSETS / "classroom" / "results.json"
DOCUMENTS = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "assets/classroom/README.md",
            "assets/smollm2-135m/README.md",
        )
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
# A document, and where the text says it, one of its sections: by anchor, by number, or by title.
CITED = re.compile(
    r"""([\w./-]*\w\.md)\b(?:\#([\w-]+)|,\ section\ (\d+)|,\ "([^"]+)")?""", re.VERBOSE
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


# https://huggingface.co/docs/hub/spaces-config-reference
SPACES_KEYS = set(
    """title emoji colorFrom colorTo sdk sdk_version python_version app_file app_port base_path fullWidth header short_description license models datasets tags
thumbnail pinned hf_oauth hf_oauth_scopes hf_oauth_expiration_minutes disable_embedding startup_duration_timeout custom_headers preload_from_hub suggested_hardware
suggested_storage""".split()
)
SPACES_COLOURS = set("red yellow green blue indigo purple pink gray".split())


def sources() -> list[Path]:
    """The files that may cite a document: code, scripts and the documents themselves."""
    folders = ("dmtd_demo", "assets/race", "tests", "scripts", "benchmarks")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    found = [path for path in found if path.suffix in (".py", ".js", ".sh", ".css")]
    found.remove(Path(__file__))  # it names some that are not there
    return sorted([*found, ROOT / "app.py", ROOT / "Dockerfile", ROOT / ".ci" / "run", *DOCUMENTS])


@cache
def sections(document: Path) -> dict[str, str]:
    """The headings of a document, by the anchor that GitHub gives each."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): title for title in titles}


def lost(path: Path) -> list[str]:
    """What a file cites that is not there; it may break a line within a citation."""
    text = re.sub(r"\s*\n\s*(?:#|//|\*)?\s*", " ", path.read_text(encoding="utf-8"))
    text = re.sub(r"https?://\S+", "", text)
    missing = []
    for name, anchor, number, title in CITED.findall(text):
        places = [ROOT / name.lstrip("/")]
        if path in DOCUMENTS:
            places.append(path.parent / name)
        document = next((place.resolve() for place in places if place.is_file()), None)
        if document is None:
            missing.append(name)
        elif anchor and anchor not in sections(document):
            missing.append(f"{name}#{anchor}")
        elif number and not any(
            heading.startswith(f"{number}. ") for heading in sections(document).values()
        ):
            missing.append(f"{name}, section {number}")
        elif title and title not in sections(document).values():
            missing.append(f'{name}, "{title}"')
    return missing


def test_every_document_and_section_that_is_cited_exists():
    assert not {path: missing for path in sources() if (missing := lost(path))}


def test_a_citation_of_what_is_not_there_is_found(tmp_path: Path):
    path = tmp_path / "code.py"
    path.write_text(
        "# docs/methods.md,\n# section 2; docs/methods.md, section 9; docs/none.md; "
        "docs/design.md,\n"
        '# "The trace"; docs/design.md, "The track"; docs/methods.md#2-dmtd; '
        "docs/methods.md#dmtd\n",
        encoding="utf-8",
    )
    assert lost(path) == [
        "docs/methods.md, section 9",
        "docs/none.md",
        'docs/design.md, "The track"',
        "docs/methods.md#dmtd",
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(document: Path):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        if not name:
            assert anchor in sections(document), target
        elif "://" not in target:
            assert (document.parent / name).exists(), target


def test_the_readme_begins_as_a_space_needs_it():
    facts = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert (
        set(facts) <= SPACES_KEYS
        and facts["sdk"] == "gradio"
        and {facts["colorFrom"], facts["colorTo"]} <= SPACES_COLOURS
    )
    assert (
        (ROOT / facts["app_file"]).is_file()
        and len(facts["short_description"]) <= 60
        and len(facts["emoji"]) <= 2
    )
    (wanted,) = [
        Requirement(line)
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith("gradio")
    ]
    # the two that ZeroGPU has
    assert wanted.specifier.contains(facts["sdk_version"]) and facts["python_version"] in (
        "3.10",
        "3.12",
    )


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_has_a_section_and_a_picture(name):
    text = (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8")
    section = text.split(f"## `{name}`:")[1].split("\n## ")[0]
    assert f"![]({name}.svg)" in section and "**Costs**" in section and "**Risks**" in section
    ElementTree.parse(ROOT / "docs" / f"{name}.svg")


def test_the_tables_are_those_of_the_stored_result():
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {row["decoder"] for row in result["rows"]} == set(ANYWHERE)
    assert result["prompts"] >= 500
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, rule, *rows = summary_table(result).splitlines()
    # the README has ten of them
    assert f"{head}\n{rule}\n" in readme and sum(row in readme for row in rows) == 10
    own = {row["panel"]: row for row in result["rows"]}
    for panel in ("clp", "mtp-verified"):  # its first lines
        assert f"{own[panel]['over_ar']:.2f} times as fast with `{panel}`" in readme
    assert f"{100 * own['clp']['exact_match']:.1f} % exact" in readme
    assert f"({100 * own['ar']['exact_match']:.1f} % one token at a time)" in readme
    card = (ASSETS / "classroom" / "README.md").read_text(encoding="utf-8")
    assert summary_table(result) in card and family_table(result) in card


def test_the_card_of_classroom_hybrid_has_its_stored_result():
    folder = ASSETS / "classroom-hybrid"
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert summary_table(result) in card and accepted_table(result) in card


def test_the_curves_are_the_stored_ones():
    result = json.loads((ASSETS / "classroom" / "curves.json").read_text(encoding="utf-8"))
    assert result["over_training"] and curve_tables(result) in (
        ROOT / "docs" / "decoders.md"
    ).read_text(encoding="utf-8")


def test_the_page_of_results_is_the_stored_ones(tmp_path):
    text = page(ASSETS / "classroom")
    assert text == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    quantized = json.loads((ASSETS / "classroom" / "quantized.json").read_text(encoding="utf-8"))
    assert [result["quantization"] for result in quantized] == [
        "none",
        "nf4",
        "int8",
        "fast-int8",
        "fast-int4",
    ] and all(result["prompts"] >= 100 for result in quantized)
    with pytest.raises(UserError, match="results.json gave"):
        page(tmp_path)


def test_clp_and_the_gate_are_compared_at_many_thresholds():
    result = json.loads((ASSETS / "classroom" / "clp_and_gate.json").read_text(encoding="utf-8"))
    assert {row["decoder"] for row in result["rows"]} == {"ar", "clp", "mtp-gate"} and len(
        result["rows"]
    ) >= 10
    assert summary_table(result) in (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8")


def test_the_pictures_of_the_readme_are_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, most_bytes in (("assets/screenshot.png", 500_000), ("assets/race.webp", 1_500_000)):
        assert f"]({name})" in readme and (ROOT / name).stat().st_size <= most_bytes
    with Image.open(ROOT / "assets" / "screenshot.png") as page:
        assert page.width == 1280 and page.height >= 720
    with Image.open(ROOT / "assets" / "race.webp") as moving:
        assert 800 <= moving.width <= 960 and moving.n_frames >= 30
        durations = []
        for frame in range(moving.n_frames):
            moving.seek(frame)
            moving.load()
            durations.append(moving.info["duration"])
        assert 6000 <= sum(durations) <= 8000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_wrap_at_100_columns_outside_their_tables(document: Path):
    lines = document.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 100 and not line.startswith("|")]
