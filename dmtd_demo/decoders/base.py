"""The decoder contract: a decoder is a generator of steps and never sees text, clocks, EOS or limits."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Iterator, Sequence

from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Alternative, Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

Run = tuple[int, int, int]  # first layer, last layer + 1, positions


@dataclass(frozen=True)
class Token:
    """origin: which computation made it (full, late, mtp; docs/methods.md, section 1). logprob: natural log, before temperature and truncation."""

    id: int
    origin: str
    logprob: float
    top: tuple[Alternative, ...] = ()

    @classmethod
    def of(cls, choice: Choice, origin: str) -> Token:
        return cls(choice.id, origin, choice.logprob, choice.top)


@dataclass(frozen=True)
class Pass:
    """kind: prefill, full, late or verify. runs: which layers ran over how many positions, in order."""

    kind: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Step:
    """What a decoder yields between two chances to stop: the tokens emitted, in order, and the passes they took. Both may be empty.

    lengths: where a predictor decided how many tokens follow the first one, the probability that it gave to 0, 1, 2 …
    """

    tokens: tuple[Token, ...]
    passes: tuple[Pass, ...]
    lengths: tuple[float, ...] = ()


def option(
    default: Any,
    kind: type,
    label: str,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field of a decoder's Options. A default of None is resolved against the model: the checkpoint's or the add-on's own."""
    return field(
        default=default,
        metadata={
            "kind": kind,
            "label": label,
            "help": help,
            "minimum": minimum,
            "maximum": maximum,
            "step": step,
            "choices": choices,
        },
    )


def caution_option() -> Any:
    """The option threshold of a decoder with a trained predictor; None is the add-on's own."""
    return option(
        None,
        float,
        "caution",
        "take as many tokens along as the predictor holds right with at least this probability",
        minimum=0.0,
        maximum=1.0,
        step=0.0001,
    )


@dataclass(frozen=True)
class Options:
    """Base of every decoder's options: types, ranges and choices are checked on construction."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, facts = getattr(self, f.name), f.metadata
            if value is None:
                continue
            kind = facts["kind"]
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
                object.__setattr__(self, f.name, value)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"the option {f.name} needs {_KINDS[kind]}; got {value!r}")
            low, high = facts["minimum"], facts["maximum"]
            if low is not None and not low <= value <= high:
                raise UserError(
                    f"the option {f.name} needs a value from {low} to {high}; got {value}"
                )
            if facts["choices"] and value not in facts["choices"]:
                raise UserError(
                    f"the option {f.name} needs one of {', '.join(facts['choices'])}; got {value!r}"
                )


_KINDS = {int: "a whole number", float: "a number", str: "text"}


class Decoder:
    """One way of decoding. Subclasses set the class attributes and write `steps`; the registry's key is `name`."""

    name: ClassVar[str]
    label: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def missing(cls, model: Model) -> list[str]:
        """What the model lacks for this decoder, one sentence each; empty where it can run."""
        return [
            _MISSING[need].format(decoder=cls.name, model=model.name)
            for need in sorted(cls.needs)
            if not model.has(need)
        ]

    @classmethod
    def resolve(cls, options: Options, model: Model) -> Options:
        """The options with every None filled in for this model, checked against it. Raises UserError where the model cannot serve them."""
        lacks = cls.missing(model)
        if lacks:
            raise UserError(" ".join(lacks))
        return replace(
            options,
            **{
                name: value
                for name, value in cls.model_defaults(model).items()
                if getattr(options, name) is None
            },
        )

    @classmethod
    def defaults(cls, model: Model) -> Options:
        """This decoder's options for this model where the user sets none."""
        return cls.resolve(cls.Options(), model)

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        """Values for the options whose default is None."""
        return {}

    @classmethod
    def extra_parameters(cls, model: Model) -> int:
        """Parameters that the method adds to the backbone."""
        return sum(
            p.numel()
            for need in cls.needs
            if need in model.addons
            for p in model.addons[need].parameters()
        )

    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Iterator[Step]:
        """Decode without end after the prompt; the first step with a token emits exactly one, from the prefill."""
        raise NotImplementedError


_MISSING = {
    "split": "{decoder} needs a split into early, middle and late layers, so at least two layers; {model} has one.",
    "mtp_heads": "{decoder} needs MTP heads trained for {model}; none are there.",
    "clp": "{decoder} needs a collocation-length predictor (CLP) trained for {model}; none is there.",
    "head0": "{decoder} needs an MTP head 0 trained for {model}; none is there.",
    "adaptive": "{decoder} needs a predictor of cycle lengths trained for {model}; none is there.",
    "mixed": "{decoder} needs MTP heads trained on the late hidden states of {model}; none are there.",
    "gate": "{decoder} needs a span gate trained for {model}; none is there.",
}
