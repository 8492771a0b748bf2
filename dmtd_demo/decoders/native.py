"""The reading of one text by an MTP head that reads its drafts, for the decoders with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Generator, Sequence

import torch
from torch import Tensor

from dmtd_demo.backbone.cache import KVCache
from dmtd_demo.decoders.base import Step, Token, option
from dmtd_demo.decoders.drafting import Drafting
from dmtd_demo.decoders.mtp import MAX_K
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.models.memory import taken
from dmtd_demo.sampling import Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

# a draft's share of a full pass from which on, and under which, k changes
DEAR, CHEAP = 0.25, 0.1
# how likely drafts have to be together to be worth a place in a CPU's pass
P_MIN = 0.3
# how probable it has to be that a first draft is kept: measured with SmolLM2, where a draft costs
# an eighth of a full pass (docs/performance.md, "Drafts that would not be kept")
WORTH = 0.2


def drafts_option(help: str) -> Any:
    """Declare the option k: how often the head is applied; None is by the cost of a draft."""
    return option(None, int, "drafts k", help, within=(1, MAX_K, 1))


def p_min_option() -> Any:
    """Declare the option p_min of a decoder that stops drafting where its drafts get unlikely."""
    return option(
        None,
        float,
        "p min",
        "draft on while all drafts together are right with at least this probability, by the "
        "head's own word",
        within=(0.0, 1.0, 0.01),
    )


class Likely:
    """Says whether to draft on, from the logits of one draft after another.

    While the probabilities of each draft's likeliest token, multiplied, reach p_min. That is
    known before the draft is drawn, so what is drawn does not decide whether it is verified, and
    sampled text keeps its distribution. (llama.cpp's `--draft-p-min` looks at one draft alone.)
    """

    def __init__(self, p_min: float) -> None:
        self.p_min, self.together = p_min, 1.0

    def __call__(self, logits: Tensor) -> bool:
        """logits: of the next draft, [1, vocabulary]."""
        if self.p_min <= 0:
            return True
        self.together *= logits.float().softmax(-1).amax().item()
        return self.together >= self.p_min


def usual_k(model: Model) -> int:
    """Return how many drafts are worth their cost: 1 for small models.

    Their LM head is a large part of them, where no list of frequent tokens spares a draft the most
    of it.
    """
    layers, lm_head = model.backbone.weight_bytes()
    frequent = model.addons.get("frequent")
    read = lm_head if frequent is None else taken(frequent)
    share = (read + taken(model.addons["native_mtp"])) / (sum(layers) + lm_head)
    return 1 if share > DEAR else 2 if share > CHEAP else 3


def usual_p_min(model: Model) -> float:
    """Return P_MIN on a CPU; 0 on a GPU, where a further place is nearly free and a look waits."""
    return P_MIN if model.backbone.device.type == "cpu" else 0.0


class NativeText:
    """The head's own cache of one text.

    It holds a pair (h_t, x_(t+1)) for each position whose next token is known. States wait in
    `unpaired` until it is.
    """

    def __init__(self, model: Model) -> None:
        self.backbone = model.backbone
        self.head = model.addons["native_mtp"]
        # on a GPU a look at it would wait for longer than a draft takes
        on_cpu = self.backbone.device.type == "cpu"
        self.acceptance = model.addons.get("acceptance") if on_cpu else None
        self.cache = KVCache(1)
        # [positions, hidden] each
        self.unpaired: list[Tensor] = []

    def saw(self, states: Tensor) -> None:
        """Take in states after the final norm, [positions, hidden], in the order of the text."""
        self.unpaired.append(states)

    def worth_drafting(self, token: int, threshold: float) -> bool:
        """Whether a first draft is likely enough to be as probable as the threshold.

        By the model's acceptance predictor, from the last state that was seen and the token after
        it; True where there is none.
        """
        if self.acceptance is None:
            return True
        state, embedded = self.unpaired[-1][-1], self.backbone.embed([token])[0, 0]
        chance: float = self.acceptance.chance(state, embedded, threshold)
        return chance >= WORTH

    def pair(self, ids: Sequence[int]) -> Tensor:
        """Take in as many pairs as there are ids, each the token that followed a waiting state.

        Returns the last pair's m, [1, hidden], which the LM head reads for the token after the last
        id.
        """
        states = torch.cat(self.unpaired) if len(self.unpaired) > 1 else self.unpaired[0]
        rest = states[len(ids) :]
        self.unpaired = [rest] if len(rest) else []
        return self.head.run(states[: len(ids)], self.backbone.embed(list(ids))[0], self.cache)

    def drafts(
        self,
        m: Tensor,
        k: int,
        drafting: Drafting,
        go_on: Callable[[Tensor], bool] = lambda logits: True,
    ) -> tuple[list[Choice], Tensor | None]:
        """Draw up to k tokens one after another, the head applied again to its own output.

        go_on: whether to draw a token from its logits [1, …]; the first no is the end. Returns the
        tokens and the logits that they were drawn from, as `Drafting` has them, None where there
        are none; the cache holds no more than before.
        """
        pairs = self.cache.length(0)
        rows: list[Tensor] = []
        drawn: list[Tensor] = []
        # nothing here waits for the device, but for what `go_on` looks at
        for depth in range(k):
            if depth:
                embedded = self.backbone.embed(drafting.ids(drawn[-1])[None])[0]
                m = self.head.run(m, embedded, self.cache)
            row = drafting.logits(m)
            if not go_on(row):
                break
            rows.append(row)
            drawn.append(drafting.sampler.draw(row))
        self.cache.crop(pairs)
        if not rows:
            return [], None
        logits = torch.cat(rows)
        return drafting.describe(torch.cat(drawn), logits), logits


def native_prefill(
    stack: Stack, text: NativeText, prompt_ids: Sequence[int], sampler: Sampler
) -> Generator[Step, None, Token]:
    """Read the prompt as `prefill` does, the head along with it, chunk by chunk.

    The last state is left out: its next token is the one that is returned.
    """
    done = 0

    def read(out: Tensor) -> None:
        nonlocal done
        text.saw(stack.backbone.final_norm(out[0]))
        following = prompt_ids[done + 1 : done + 1 + out.shape[1]]
        done += out.shape[1]
        if following:
            text.pair(following)

    return (yield from prefill(stack, prompt_ids, sampler, read))
