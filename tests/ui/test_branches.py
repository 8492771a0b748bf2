"""What `ar` would have written, against what it writes."""

from __future__ import annotations

import json

import pytest

from dmtd_demo.errors import UserError
from dmtd_demo.models.loading import load
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race
from dmtd_demo.race.request import messages_of
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.ui.branches import MOST_TOKENS, Branching, Raced, go_on


def test_ar_goes_on_from_its_own_text_as_it_did():
    classroom = load("classroom")
    conversation = messages_of("Why is decoding slow?")
    settings = RaceSettings(max_new_tokens=60, audit=False)
    records = [
        record
        for batch in race(classroom, [PanelSpec("ar")], [conversation], settings)
        for record in batch
    ]
    tokens = [token for r in records if r["type"] == "step" for token in r["tokens"]]
    run = records[0]["run"]
    raced = Raced(run, ["k"], [conversation], False, [[token["id"] for token in tokens]])
    for index in (0, 7):
        branching = Branching.of(json.dumps([run, 0, index]), raced)
        wanted = "".join(token["text"] for token in tokens[index : index + MOST_TOKENS])
        assert go_on(classroom, raced, branching) == wanted


@pytest.mark.parametrize(
    "asked", ["", "[]", '["run", 0, 9]', '["other", 0, 0]', '["run", 1, 0]', '["run", true, 0]']
)
def test_what_is_no_token_of_the_race_is_refused(asked):
    with pytest.raises(UserError):
        Branching.of(asked, Raced("run", ["k"], [[]], False, [[1, 2, 3]]))
    with pytest.raises(UserError):
        Branching.of(asked, None)
