"""The step of the decoders with MTP heads (docs/methods.md, section 3), and their option k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Sequence

from torch import Tensor

from dmtd_demo.backbone.cpu_packed import AT_ONCE
from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps, Token, option
from dmtd_demo.decoders.stack import Stack, prefill
from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

MAX_K = 16
# the share of a draft's cases that pays for its position in a pass, a fifth of one in 4 bits
USEFUL = 0.2


def heads_option(help: str) -> Any:
    """Declare the option k of a decoder with MTP heads; None is as trained."""
    return option(None, int, "MTP heads k", help, within=(1, MAX_K, 1))


@dataclass(frozen=True)
class HeadsOptions(Options):
    k: int = heads_option("how many MTP heads follow the token before them")


def check_heads(k: int, model: Model, trained: int) -> None:
    """Raise UserError where k heads are asked for and fewer are trained."""
    if k > trained:
        raise UserError(
            f"the option k needs a value from 1 to {trained}, the heads that {model.name} has; "
            f"got {k}"
        )


def checked_heads(model: Model) -> int:
    """Return how many heads' drafts a pass checks by default: all of them.

    In 4 bits on a CPU at most what the kernel takes at once beside the token before them, and no
    head whose card says that it is right less often than USEFUL.
    """
    trained: int = model.addons["mtp_heads"].k
    if model.quantization != "fast-int4" or model.backbone.device.type != "cpu":
        return trained
    accuracy = model.addon_facts.get("mtp_heads", {}).get("accuracy", [])
    useful = next((i for i, share in enumerate(accuracy) if share < USEFUL), trained)
    return max(1, min(trained, AT_ONCE - 1, useful))


class HeadsDecoder(Decoder[HeadsOptions]):
    """Base of the decoders whose only option is k."""

    Options = HeadsOptions

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        return {"k": model.addons["mtp_heads"].k}

    @classmethod
    def resolve(cls, options: HeadsOptions, model: Model) -> HeadsOptions:
        options = super().resolve(options, model)
        check_heads(options.k, model, model.addons["mtp_heads"].k)
        return options


def unverified_steps(
    model: Model,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    logits_of: Callable[[Tensor], tuple[Tensor, tuple[float, ...]]],
    first: str,
) -> Steps:
    """Emit tokens as they are drawn; the next pass reads all of a step's tokens at once.

    logits_of: takes the last hidden state [1, hidden]; gives logits for each token of the step,
    [1 + accepted, vocabulary], and Step.lengths. first: the origin of the step's first token; the
    others are `mtp`.
    """
    stack = Stack(model.backbone, model.split)
    token = yield from prefill(stack, prompt_ids, sampler)
    emitted = [token.id]
    while True:
        out, runs = stack.full(emitted)
        logits, lengths = logits_of(stack.last_hidden(out))
        choices = sampler.choose(logits)
        tokens = tuple(Token.of(choice, "mtp" if i else first) for i, choice in enumerate(choices))
        yield Step(tokens, (Pass("full", runs),), lengths)
        emitted = [t.id for t in tokens]
