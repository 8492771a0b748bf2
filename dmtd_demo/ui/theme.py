"""Gradio's theme: system fonts, small type and spacing, calm colours.

No font is fetched from outside.

The rest is in assets/style/.
"""

from __future__ import annotations

import gradio as gr

FONTS = (
    gr.themes.Font("system-ui"),
    gr.themes.Font("-apple-system"),
    gr.themes.Font("Segoe UI"),
    gr.themes.Font("Roboto"),
    gr.themes.Font("sans-serif"),
)
MONO_FONTS = (
    gr.themes.Font("ui-monospace"),
    gr.themes.Font("Cascadia Mono"),
    gr.themes.Font("Menlo"),
    gr.themes.Font("Consolas"),
    gr.themes.Font("monospace"),
)


def theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_sm,
        font=FONTS,
        font_mono=MONO_FONTS,
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0d1016",
        body_text_color="#16191f",
        body_text_color_dark="#eceff4",
        body_text_color_subdued="#545c69",
        body_text_color_subdued_dark="#a5aebc",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_padding="0px",
        block_shadow="none",
        block_label_text_color="#545c69",
        block_label_text_color_dark="#a5aebc",
        block_title_text_color="#545c69",
        block_title_text_color_dark="#a5aebc",
        block_title_text_size="12px",
        block_title_text_weight="500",
        input_background_fill="#ffffff",
        input_background_fill_dark="#14181f",
        input_border_color="#c9cfd8",
        input_border_color_dark="#3a4351",
        input_border_width="1px",
        input_shadow="none",
        input_padding="6px 10px",
        input_text_size="14px",
        button_primary_background_fill="#0b5cad",
        button_primary_background_fill_dark="#2f81d6",
        button_primary_background_fill_hover="#094a8c",
        button_primary_background_fill_hover_dark="#4492e0",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#0d1016",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1c222c",
        button_secondary_border_color="#c9cfd8",
        button_secondary_border_color_dark="#3a4351",
        button_border_width="1px",
    )
