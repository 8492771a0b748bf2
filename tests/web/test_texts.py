"""The page's texts: every language has every key and its places, and sources and files name the
same keys.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmtd_demo.decoders import DECODERS
from dmtd_demo.ui.i18n import I18N, control
from dmtd_demo.web.files import script
from dmtd_demo.web.texts import ENGLISH, FOLDER, LANGUAGES, slot, span

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "assets" / "race").glob("*.js"))
# a heading of the CSV file, ids, classes
NO_TEXT = {
    "ar agrees",
    "tour-title tour-text tour-outcome",
    "turn system",
    "turn user",
    "turn assistant",
}
PLACE = re.compile(r"\{[\w -]+\}")
CALLS = {"control", "span", "english", "hint", "label"}  # of dmtd_demo/web/texts.py, the key first
LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`')
CALL = re.compile(r'\bt\((?:"([^"]+)"|`([^`]+)`)')


def code(path: Path) -> str:
    return re.sub(r"(^|\s)//.*", "", path.read_text(encoding="utf-8"))


def javascript() -> Iterator[tuple[str, bool]]:
    """Every literal of the scripts as a pattern, and whether it is surely a key."""
    for path in SCRIPTS:
        for sort in (CALL, LITERAL):
            for match in sort.finditer(code(path)):
                yield (
                    ".+".join(
                        map(
                            re.escape,
                            re.split(r"\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", match[match.lastindex]),
                        )
                    ),
                    sort is CALL,
                )


def python() -> Iterator[tuple[str, bool]]:
    for path in [
        path
        for room in ("web", "server", "ui")
        for path in (ROOT / "dmtd_demo" / room).glob("*.py")
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        sure = {
            id(node.args[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in CALLS
            and node.args
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.escape(node.value), id(node) in sure
            elif isinstance(node, ast.JoinedStr):
                yield (
                    "".join(
                        re.escape(part.value) if isinstance(part, ast.Constant) else ".+"
                        for part in node.values
                    ),
                    id(node) in sure,
                )


USED = [*javascript(), *python()]
OWN = set(json.loads((FOLDER / "en.json").read_text(encoding="utf-8")))


def test_english_has_no_key_of_a_decoder():
    # those stay in their classes
    assert not {key for key in OWN if re.match(r"(decoder|option)\.", key)} - {"decoder.cannot"}
    assert all(
        ENGLISH[f"decoder.{name}.label"] == decoder.label for name, decoder in DECODERS.items()
    )


@pytest.mark.parametrize("language", sorted(set(LANGUAGES) - {"en"}))
def test_a_translation_is_whole(language):
    texts = LANGUAGES[language]
    assert set(texts) == set(ENGLISH), set(texts) ^ set(ENGLISH)
    for key, text in texts.items():
        assert text.strip() and sorted(set(PLACE.findall(text))) == sorted(
            set(PLACE.findall(ENGLISH[key]))
        ), key


def test_every_key_that_is_asked_for_exists():
    asked = [pattern for pattern, sure in USED if sure]
    assert len(asked) > 200
    prefixes = {key.partition(".")[0] for key in OWN}
    # those that are chosen from, or stand in a table
    asked += [
        pattern
        for pattern, sure in USED
        if re.fullmatch(rf"({'|'.join(prefixes)})(\\\.([\w-]|\\-)+)+", pattern)
    ]
    assert not [
        pattern for pattern in asked if not any(re.fullmatch(pattern, key) for key in ENGLISH)
    ]


def test_every_key_is_asked_for():
    patterns = {pattern for pattern, sure in USED if sure or re.match(r"[a-z]+\\\.", pattern)}
    everything = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    assert not [key for key in OWN if not everything.fullmatch(key)]


def test_the_scripts_have_no_sentence_of_their_own():
    for path in SCRIPTS:
        # prompts: the race of a step is the same in every language
        if path.name == "tour_steps.js":
            continue
        for match in LITERAL.finditer(code(path)):
            text = re.sub(r"\$\{[^}]*\}", "", match[match.lastindex])
            assert (
                text.startswith("#")
                or text in NO_TEXT
                or not re.search(r"[A-Za-z]{2,} [a-z]{2,}", text)
            ), f"{path.name}: {text}"


def test_a_mark_for_gradio_has_its_text_in_every_language():
    mark = control("control.decoder", panel=7)
    key = json.loads(mark.removeprefix("__i18n__"))["key"]
    assert (
        I18N.translations["en"][key] == "Decoder of panel 7"
        and I18N.translations["zh-CN"][key] == "面板 7 的解码器"
    )
    key = json.loads(control("decoder.cannot", label="decoder.ar.label").removeprefix("__i18n__"))[
        "key"
    ]
    assert I18N.translations["zh-CN"][key] == "自回归（此模型不支持）"
    assert all("{" not in text for texts in I18N.translations.values() for text in texts.values())


def test_values_in_html_are_text_and_slots_are_html():
    html = span("models.stage", name='<b>"', stage=slot("stage", span("stage.load")))
    assert '&lt;b&gt;&quot;: <span data-slot="stage">' in html and "<b>" not in html
    assert json.loads(
        re.search(r'data-values="([^"]*)"', html)[1]
        .replace("&quot;", '"')
        .replace("&lt;", "<")
        .replace("&gt;", ">")
    ) == {"name": '<b>"'}


def test_the_script_carries_the_texts():
    texts = json.loads(script().split("\n", 1)[0].removeprefix("const TEXTS = ").rstrip(";"))
    assert texts == LANGUAGES and set(texts) >= {"en", "zh-CN"}
