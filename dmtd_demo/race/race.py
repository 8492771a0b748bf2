"""One prompt, several panels, one stream of records: every panel is measured alike.

The panels of this machine share a device, so they take turns by a virtual clock: each clock counts
only its own panel's steps, and the panel furthest behind moves next. Every panel then moves as
fast, relative to the others, as it would alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict

from dmtd_demo.machine import describe
from dmtd_demo.models.chat import Message
from dmtd_demo.models.model import Model, use_threads
from dmtd_demo.models.token_text import TokenText
from dmtd_demo.race import trace
from dmtd_demo.race.local import LocalPanel
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.protocol import Panel, ending
from dmtd_demo.race.remote import RemotePanel
from dmtd_demo.race.remote_server import Remote
from dmtd_demo.race.request import Entry, chat_entries, id_entries
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.race.trace import Burst

# for a server elsewhere, where no panel of ours has anything to do
WAIT_SECONDS = 0.05


def race(
    model: Model | Sequence[Model],
    panels: Sequence[PanelSpec],
    conversations: Sequence[Sequence[Message]],
    settings: RaceSettings = RaceSettings(),
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[Burst, None, None]:
    """Race the panels, a conversation each, the user's turn last.

    model: one for all panels, or one for each. Yields lists of records (docs/design.md, "The
    trace"), one list a burst. Raises UserError before the first record for anything that the user
    supplied. When `should_stop` turns true, or the generator is closed, the race ends within one
    pass.
    """
    return _run(chat_entries(model, panels, conversations, settings), settings, should_stop)


def race_ids(
    model: Model | Sequence[Model],
    panels: Sequence[PanelSpec],
    prompts: Sequence[Sequence[int]],
    settings: RaceSettings = RaceSettings(),
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[Burst, None, None]:
    """Race the panels as `race` does, on token ids that are used as they are, a prompt each."""
    return _run(id_entries(model, panels, prompts, settings), settings, should_stop)


def _run(
    entries: list[Entry], settings: RaceSettings, should_stop: Callable[[], bool]
) -> Generator[Burst, None, None]:
    texts = {entry.model: TokenText(entry.model.tokenizer) for entry in entries}
    panels = [_panel(index, entry, settings, texts) for index, entry in enumerate(entries)]
    try:
        yield [_header(entries, panels, settings)]
        for panel in panels:
            panel.prepare()
        for panel in panels:
            panel.start()
        running = list(panels)
        while running:
            batch = _turns(running, should_stop)
            if should_stop():
                for panel in running:
                    panel.stop = panel.stop or "stopped"
            for panel in [panel for panel in running if panel.stop]:
                panel.close()
                batch.append({"type": "end", **ending(panel)})
                running.remove(panel)
            if batch:
                yield batch
        for panel in panels:
            yield panel.verdict(panels[0], settings.audit and not should_stop())
    finally:
        for panel in panels:
            panel.close()


def _panel(
    index: int, entry: Entry, settings: RaceSettings, texts: dict[Model, TokenText]
) -> Panel:
    if isinstance(entry.decoder, Remote):
        return RemotePanel(index, entry.decoder, entry.messages, settings)
    return LocalPanel(index, entry.decoder, entry, settings, texts[entry.model])


def _turns(running: Sequence[Panel], should_stop: Callable[[], bool]) -> Burst:
    """Let the panel that is furthest behind move, and take what has come for the others."""
    clocks = [(panel.clock, panel.index, panel) for panel in running if panel.clock is not None]
    elsewhere = [panel for panel in running if panel.clock is None]
    batch = min(clocks)[2].take(should_stop, 0.0) if clocks else []
    for panel in elsewhere:
        wait = 0.0 if clocks or batch else WAIT_SECONDS / len(elsewhere)
        batch += panel.take(should_stop, wait)
    return batch


def _header(
    entries: Sequence[Entry], panels: Sequence[Panel], settings: RaceSettings
) -> trace.Record:
    sampling = asdict(settings.sampling)
    use_threads(entries[0].model)
    trained = [
        (entry.model.trained_length, len(entry.prompt) + settings.max_new_tokens)
        for entry in entries
        if entry.model.trained_length and entry.prompt
    ]
    messages = entries[0].messages
    return {
        "type": "header",
        "schema": trace.TRACE_SCHEMA,
        "run": uuid.uuid4().hex,
        "seed": sampling.pop("seed"),
        "sampling": sampling,
        "prompt": messages[-1]["content"] if messages else "",
        "max_new_tokens": settings.max_new_tokens,
        "machine": describe(entries[0].model.device),
        "panels": [
            {
                "panel": panel.index,
                "spec": str(entry.panel),
                "decoder": entry.panel.decoder,
                "label": entry.decoder.label,
                "options": asdict(entry.decoder.options),
                **panel.facts(),
            }
            for entry, panel in zip(entries, panels)
        ],
        **(
            {
                "trained_length": min(length for length, _ in trained),
                "beyond_trained_length": any(longest > length for length, longest in trained),
            }
            if trained
            else {}
        ),
    }
