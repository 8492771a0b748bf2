"""The gated delta rule, and the state of one recurrent layer that can be rewound.

With keys k and queries q of length 1, q also divided by the root of its size, a decay g <= 0 and a
strength beta, a head's state S [key size, value size] takes a position in as

    S <- S * e^g;   S <- S + k (x) beta * (v - k S);   o = q S

(Gated Delta Networks, arXiv 2412.06464, equation 10). Everything here is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
from torch import Tensor

# positions that are solved at once
SOLVED_AT_ONCE = 64
# up to so many positions, a GPU solves them by products
SHORT = 16


class Write(NamedTuple):
    """What n positions write into a layer's state.

    keys [heads, n, key size], values [heads, n, value size], decays and strengths [heads, n].
    """

    keys: Tensor
    values: Tensor
    decays: Tensor
    strengths: Tensor

    def part(self, start: int, stop: int) -> Write:
        """Return what the positions [start, stop) of these write."""
        return Write(*(t[:, start:stop] for t in self))


def step(state: Tensor, queries: Tensor, write: Write, in_place: bool) -> tuple[Tensor, Tensor]:
    """Take in one position. state [heads, key size, value size]; queries [heads, 1, key size].

    Returns the output [heads, 1, value size], and the state after it. The old state is read once
    for key and query: o = e^g q S + (q k) d with d = beta * (v - e^g k S).
    """
    keys, values, decays, strengths = write
    decay = decays.exp()[..., None]
    of_key, of_query = (torch.cat((keys, queries), dim=1) @ state).mul_(decay).split(1, dim=1)
    change = torch.sub(values, of_key).mul_(strengths[..., None])
    out = torch.addcmul(of_query, (queries * keys).sum(-1, keepdim=True), change)
    state = state.mul_(decay) if in_place else state * decay
    return out, state.baddbmm_(keys.transpose(1, 2), change)


@overload
def chunk(state: Tensor, queries: Tensor, write: Write) -> tuple[Tensor, Tensor]: ...


@overload
def chunk(state: Tensor, queries: None, write: Write) -> tuple[None, Tensor]: ...


def chunk(state: Tensor, queries: Tensor | None, write: Write) -> tuple[Tensor | None, Tensor]:
    """Take in n positions in blocks, none of them padded. Shapes as in `step`, with n for 1.

    Returns the outputs, None where there are no queries, and the state after the last position.
    """
    n = write.keys.shape[1]
    outs: list[Tensor] = []
    for start in range(0, n, SOLVED_AT_ONCE):
        stop = min(start + SOLVED_AT_ONCE, n)
        asked = None if queries is None else queries[:, start:stop]
        out, state = _solve_block(state, asked, write.part(start, stop))
        if out is not None:
            outs.append(out)
    if queries is None:
        return None, state
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1), state


def _solve_block(
    state: Tensor, queries: Tensor | None, write: Write
) -> tuple[Tensor | None, Tensor]:
    """Take in up to SOLVED_AT_ONCE positions at once.

    The changes d_i of all positions are the solution of a triangular system, because each reads
    what those before it have written: d_i = beta_i (v_i - e^(G_i) k_i S - sum_(j<i) e^(G_i - G_j)
    (k_i k_j) d_j), where G_i is the sum of the decays up to i.
    """
    keys, values, decays, strengths = write
    n = keys.shape[1]
    total = decays.cumsum(-1)
    grown = total.exp()[..., None]
    between = (total[..., :, None] - total[..., None, :]).tril_().exp_().tril_()
    asking = keys if queries is None else torch.cat((keys, queries), dim=1)
    read, alike = asking @ state, asking @ keys.transpose(1, 2)
    strengths = strengths[..., None]
    right = torch.addcmul(values, read[:, :n], grown, value=-1).mul_(strengths)
    change = _solved((alike[:, :n] * between).mul_(strengths), right)
    out = None
    if queries is not None:
        out = (read[:, n:] * grown).baddbmm_(alike[:, n:] * between, change)
    left = keys * between[:, -1, :, None]
    return out, (state * grown[:, -1:]).baddbmm_(left.transpose(1, 2), change)


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """Solve (1 + A) x = right, where A [heads, n, n] is what lies under the system's diagonal."""
    n = system.shape[-1]
    if not system.is_cuda or n > SHORT:
        return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    # (1 - A) (1 + A^2) (1 + A^4) ... ends, because A^n is 0; the solver takes more launches
    power = system.tril(-1)
    change = torch.baddbmm(right, power, right, alpha=-1)
    for _ in range((n - 1).bit_length() - 1):
        power = power @ power
        change = torch.baddbmm(change, power, change)
    return change


@dataclass(frozen=True)
class LoggedPass:
    """One pass over n positions as the log of a recurrent state keeps it.

    start: how many positions came before it. state, window: those before the pass. inputs: of the
    convolution, [n, channels].
    """

    start: int
    state: Tensor
    window: Tensor
    inputs: Tensor
    write: Write


class RecurrentState:
    """One layer's memory of a text: the last inputs of its convolution, and S of every head.

    While `floor` is a length, passes are logged, and the state can be rewound to any length from
    there on; None: nothing is logged, and the state is changed in place.
    """

    def __init__(self) -> None:
        self.window: Tensor | None = None  # [kernel - 1, channels]
        self.state: Tensor | None = None  # [heads, key size, value size]
        self.length = 0
        self.floor: int | None = None
        self.log: list[LoggedPass] = []

    def keep(self, length: int | None) -> None:
        """Log passes, so that a rewind to `length` or further on is possible; None: no more."""
        self.floor = length
        if length is None:
            self.log.clear()
        while self.log and self.log[0].start + self.log[0].inputs.shape[0] <= (length or 0):
            del self.log[0]

    def advance(self, inputs: Tensor, extended: Tensor, write: Write, state: Tensor) -> None:
        """Take over what a pass over inputs [n, channels] has made.

        extended: the inputs with the window before them. state: the one after them.
        """
        if self.floor is not None:
            assert self.window is not None and self.state is not None
            self.log.append(LoggedPass(self.length, self.state, self.window, inputs, write))
        self.window = extended[inputs.shape[0] :]
        self.state = state
        self.length += inputs.shape[0]

    def rewind(self, length: int) -> None:
        """Go back to `length` positions.

        The rule is run again over what is kept of the pass that contains them; no layer is. Raises
        ValueError where no log reaches back so far.
        """
        if length >= self.length:
            return
        while self.log and self.log[-1].start > length:
            del self.log[-1]
        if not self.log or self.floor is None or length < self.floor:
            raise ValueError(
                f"a recurrent layer of {self.length} positions can be rewound to "
                f"those after a keep(); asked for {length}"
            )
        entry = self.log.pop()
        kept = length - entry.start
        self.length = entry.start
        self.state, self.window = entry.state, entry.window
        if kept:
            write = entry.write.part(0, kept)
            inputs = entry.inputs[:kept]
            _, state = chunk(entry.state, None, write)
            self.advance(inputs, torch.cat((entry.window, inputs)), write, state)

    def nbytes(self) -> int:
        """Return the bytes held, the log included."""
        held = [self.window, self.state, *(t for e in self.log for t in (e.state, *e.write))]
        return sum(t.numel() * t.element_size() for t in held if t is not None)
