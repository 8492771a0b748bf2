"""What the server keeps of each visitor: their chat, and what differs for them."""

from __future__ import annotations

import gradio as gr

from dmtd_demo.server.stops import MOST_FLAGS, Stops
from dmtd_demo.ui.sessions import Sessions


def test_what_is_alike_for_all_visitors_is_there_once() -> None:
    with gr.Blocks() as page:
        number, chat = gr.Number(1), gr.State([])
    page.state_session_capacity = 100
    sessions = Sessions()
    sessions.set_blocks(page)
    for name in range(20):
        session = sessions[str(name)]
        session[number._id] = gr.Number(label=f"of {name % 2}", render=False)
        session[chat._id] = [name]
    seen = [sessions[str(name)] for name in range(20)]
    assert len({id(session[number._id]) for session in seen}) == 2
    assert [session[number._id].label for session in seen] == ["of 0", "of 1"] * 10
    assert [session[chat._id] for session in seen] == [[name] for name in range(20)]
    assert not any(session.config_values for session in seen)
    assert sessions["a new one"][number._id] is number


def test_who_leaves_without_a_word_is_forgotten_at_last() -> None:
    stops = Stops()
    first = stops.flag("first", "race")
    for other in range(MOST_FLAGS):
        assert stops.flag("second", "race") is stops.flag("second", "race")
        stops.flag(str(other), "race")
    assert len(stops._flags) == MOST_FLAGS
    assert stops.flag("first", "race") is not first
