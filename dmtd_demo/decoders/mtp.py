"""What the decoders with MTP heads share: one step of docs/methods.md, section 3, and the option k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

from torch import Tensor

from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Token, option
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

MAX_K = 16


def heads_option(help: str) -> Any:
    """The option k of a decoder with MTP heads; None is as trained."""
    return option(None, int, "MTP heads k", help, minimum=1, maximum=MAX_K, step=1)


@dataclass(frozen=True)
class HeadsOptions(Options):
    k: int | None = heads_option("how many MTP heads follow the token before them")


def at_most_trained(options: Any, model: Model, trained: int) -> Any:
    """The options, where their k heads are there; raises UserError."""
    if options.k > trained:
        raise UserError(
            f"the option k needs a value from 1 to {trained}, the heads that {model.name} has; got {options.k}"
        )
    return options


class HeadsDecoder(Decoder):
    """Base of the decoders whose only option is k."""

    Options = HeadsOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {"k": model.addons["mtp_heads"].k}

    @classmethod
    def resolve(cls, options: HeadsOptions, model: Model) -> HeadsOptions:
        return at_most_trained(super().resolve(options, model), model, model.addons["mtp_heads"].k)


def unverified_steps(
    model: Model,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    states_of: Callable[[Tensor], tuple[Tensor, tuple[float, ...]]],
    first: str,
) -> Iterator[Step]:
    """Steps whose tokens are emitted as they are drawn; the next pass reads all of them at once.

    states_of: the last hidden state [1, hidden] to one state for each token of the step, [1 + accepted, hidden], read by the LM head, and Step.lengths.
    first: the origin of the step's first token; the others are `mtp`.
    """
    stack = Stack(model.backbone, model.split)
    token = yield from prefill(stack, prompt_ids, sampler)
    emitted = [token.id]
    while True:
        out, runs = stack.full(emitted)
        states, lengths = states_of(stack.last_hidden(out))
        choices = sampler.choose(model.backbone.logits(states))
        tokens = tuple(Token.of(choice, "mtp" if i else first) for i, choice in enumerate(choices))
        yield Step(tokens, (Pass("full", runs),), lengths)
        emitted = [t.id for t in tokens]
