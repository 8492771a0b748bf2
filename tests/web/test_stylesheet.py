"""The page's stylesheet, as Gradio takes it over."""

from __future__ import annotations

import re

from dmtd_demo.web.stylesheet import style


def test_gradio_keeps_every_rule() -> None:
    """Of rules with an @ it keeps @media alone; others stand within a rule, which it keeps whole."""
    assert set(re.findall(r"^\s*(@[a-z-]+)", style(), re.MULTILINE)) == {"@media"}
