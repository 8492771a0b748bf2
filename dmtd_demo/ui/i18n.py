"""The page's texts as Gradio's own components take them: as marks.

Gradio's page replaces a mark by the text in the browser's language.
"""

from __future__ import annotations

import json

import gradio as gr

from dmtd_demo.web.texts import ENGLISH, LANGUAGES, filled

# Texts with places to be filled come to it filled, by `control`.
I18N = gr.I18n(
    **{
        language: {key: text for key, text in texts.items() if "{" not in text}
        for language, texts in LANGUAGES.items()
    }
)


def control(key: str, /, **values: str | int) -> str:
    """Return a mark that Gradio's page replaces by the text.

    It stands in a label, a placeholder, a button or a choice; one mark in a string.

    values: of texts, their keys, as long as the page is built only: what is filled later has not
    been sent.
    """
    if not values:
        return str(I18N(key))
    name = f"{key} {json.dumps(values)}".replace("{", "(").replace("}", ")").replace('"', "")
    for language, texts in LANGUAGES.items():
        text = {**ENGLISH, **texts}
        I18N.translations[language][name] = filled(
            text[key], {place: text.get(str(value), value) for place, value in values.items()}
        )
    return str(I18N(name))
