"""The decoder contract: a generator of steps, which never sees text, clocks, EOS or limits."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from dmtd_demo.backbone.packed import parameters
from dmtd_demo.errors import UserError
from dmtd_demo.sampling import Alternative, Choice, Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model

# first layer, last layer + 1, positions
Run = tuple[int, int, int]


@dataclass(frozen=True)
class Token:
    """An emitted token.

    origin: which computation made it (full, late, mtp, draft; docs/methods.md, section 1).
    logprob: the natural log of its probability, before temperature and truncation. top: the
    likeliest alternatives, where they are asked for.
    """

    id: int
    origin: str
    logprob: float
    top: tuple[Alternative, ...] = ()

    @classmethod
    def of(cls, choice: Choice, origin: str) -> Token:
        """Make a token of what the sampler chose."""
        return cls(choice.id, origin, choice.logprob, choice.top)


@dataclass(frozen=True)
class Pass:
    """A forward pass. kind: prefill, full, late or verify. runs: which layers, in order."""

    kind: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Step:
    """The tokens that a decoder emits between two chances to stop, and the passes they took.

    Both may be empty. lengths: where a predictor decided how many tokens follow the first one, the
    probability that it gave to 0, 1, 2 … tree: where a tree of drafts was verified, for each draft
    the one before it on its branch, or -1; stood: which of them stand, one behind the other.
    """

    tokens: tuple[Token, ...]
    passes: tuple[Pass, ...]
    lengths: tuple[float, ...] = ()
    tree: tuple[int, ...] = ()
    stood: tuple[int, ...] = ()


Steps = Generator[Step, None, None]


def option(
    default: Any,
    kind: type,
    label: str,
    help: str,
    *,
    within: tuple[float, float, float] | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Declare a field of a decoder's Options, of the type that its resolved value has.

    default: None is resolved against the model, to the checkpoint's or the add-on's own value.
    within: the least and the greatest value, and the step of the page's control.
    """
    minimum, maximum, step = within or (None, None, None)
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
    """Declare the threshold of a decoder with a trained predictor; None is the add-on's own."""
    return option(
        None,
        float,
        "caution",
        "take as many tokens along as the predictor holds right with at least this probability",
        within=(0.0, 1.0, 0.0001),
    )


@dataclass(frozen=True)
class Options:
    """Base of every decoder's options.

    Types, ranges and choices are checked on construction, which raises UserError.
    """

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
OptionsT = TypeVar("OptionsT", bound=Options)


class Decoder(Generic[OptionsT]):
    """One way of decoding, generic over its options.

    Subclasses set the class attributes and write `steps`. name: the registry's key. needs: what the
    model must have. Options: the class of `options`, the same as in the brackets.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    # whether it writes what `ar` writes, rounding aside (docs/methods.md, section 4)
    lossless: ClassVar[bool] = False
    # a class attribute cannot be of the type OptionsT
    Options: ClassVar[type[Any]] = Options

    def __init__(self, options: OptionsT | None = None) -> None:
        self.options: OptionsT = self.Options() if options is None else options

    @classmethod
    def missing(cls, model: Model) -> list[str]:
        """Say what the model lacks for this decoder, one sentence each; [] where it can run."""
        return [
            _MISSING[need].format(decoder=cls.name, model=model.name)
            for need in sorted(cls.needs)
            if not model.has(need)
        ]

    @classmethod
    def resolve(cls, options: OptionsT, model: Model) -> OptionsT:
        """Fill in every None for this model, and check the options against it.

        Raises UserError where the model cannot serve them.
        """
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
    def defaults(cls, model: Model) -> OptionsT:
        """Resolve the options for this model where the user sets none."""
        options: OptionsT = cls.Options()
        return cls.resolve(options, model)

    @classmethod
    def model_defaults(cls, model: Model) -> dict[str, Any]:
        """Values for the options whose default is None."""
        return {}

    @classmethod
    def takes_nothing(cls, options: OptionsT, model: Model) -> bool:
        """Whether resolved options have a threshold of 1, at which nothing is taken along, because
        none lower was seen to keep enough tokens right as the add-on was trained."""
        by_default = cls.model_defaults(model).get("threshold") or 0
        return by_default >= 1 and (getattr(options, "threshold", None) or 0) >= 1

    @classmethod
    def extra_parameters(cls, model: Model) -> int:
        """Count the parameters that the method adds to the backbone."""
        return sum(parameters(model.addons[need]) for need in cls.needs if need in model.addons)

    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        """Decode without end after the prompt.

        The first step with a token emits exactly one, from the prefill.
        """
        raise NotImplementedError


_MISSING = {
    "split": "{decoder} needs a split into early, middle and late layers, so at least two layers; "
    "{model} has one.",
    "native_mtp": "{decoder} needs an MTP head that reads its own drafts: the model's own "
    "(Qwen3.5 and later), or one trained beside it; {model} has none.",
    "mtp_heads": "{decoder} needs MTP heads trained for {model}; none are there.",
    "clp": "{decoder} needs a collocation-length predictor (CLP) trained for {model}; "
    "none is there.",
    "head0": "{decoder} needs an MTP head 0 trained for {model}; none is there.",
    "adaptive": "{decoder} needs a predictor of cycle lengths trained for {model}; none is there.",
    "mixed": "{decoder} needs MTP heads trained on the late hidden states of {model}; "
    "none are there.",
    "gate": "{decoder} needs a span gate trained for {model}; none is there.",
}
