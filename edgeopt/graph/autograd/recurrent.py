"""RNN, GRU and LSTM, step by step, forward and backward in time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from edgeopt.graph.autograd.operators import Call, Tensor, operator

Activation = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""One step: projected inputs [batch, gates * hidden] and the states before to the states after."""

_ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "hardsigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}


def _activations(call: Call, defaults: list[str], direction: int) -> list[Activation]:
    names = call.texts("activations") or defaults * 2
    own = names[direction * len(defaults) : (direction + 1) * len(defaults)]
    if call.numbers("activation_alpha") or call.numbers("activation_beta"):
        raise call.refuse("with parameters of activations")
    unknown = [name for name in own if name.lower() not in _ACTIVATIONS]
    if unknown:
        raise call.refuse(f"with the activation {unknown[0]}")
    functions = [_ACTIVATIONS[name.lower()] for name in own]
    limit = call.number("clip", 0.0)
    return [_clipped(function, limit) for function in functions] if limit else functions


def _clipped(function: Activation, limit: float) -> Activation:
    return lambda x: function(torch.clamp(x, -limit, limit))


def _run(
    call: Call,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    lengths: list[int] | None,
    states: tuple[Tensor, ...],
    make: Callable[[int], Step],
) -> tuple[Tensor, ...]:
    """Runs every direction over time.

    Args:
        call: The node.
        x: Inputs [time, batch, features], or with ``layout`` [batch, time, features].
        weights: Input weights [directions, gates * hidden, features].
        bias: Biases of the projected inputs [directions, gates * hidden].
        lengths: Steps per sample.
        states: Initial states, each [directions, batch, hidden].
        make: Makes the step of a direction.

    Returns:
        All outputs, then the last states, laid out as the node says.
    """
    batch_first = call.integer("layout")
    x = x.transpose(0, 1) if batch_first else x
    time, batch = x.shape[:2]
    counts = None
    if lengths is not None and any(int(count) != time for count in lengths):
        counts = torch.tensor([int(count) for count in lengths], device=x.device).reshape(batch, 1)
    kind = call.text("direction", "forward")
    outputs, finals = [], []
    for direction in range(len(weights)):
        backward = kind == "reverse" or direction == 1
        projected = F.linear(x, weights[direction], None if bias is None else bias[direction])
        step = make(direction)
        now = tuple(state[direction] for state in states)
        rows: list[Tensor] = [x] * time
        for moment in reversed(range(time)) if backward else range(time):
            after = step(projected[moment], now)
            if counts is None:
                now = after
                rows[moment] = now[0]
            else:
                live = moment < counts
                now = tuple(torch.where(live, new, old) for new, old in zip(after, now, strict=True))
                rows[moment] = torch.where(live, now[0], torch.zeros_like(now[0]))
        outputs.append(torch.stack(rows))
        finals.append(now)
    everything = torch.stack(outputs, 1)
    last = [torch.stack(parts) for parts in zip(*finals, strict=True)]
    if batch_first:
        everything = everything.permute(2, 0, 1, 3)
        last = [state.transpose(0, 1) for state in last]
    return everything, *last


def _initial(call: Call, x: Tensor, recurrence: Tensor, given: Tensor | None) -> Tensor:
    """Returns initial states [directions, batch, hidden], zeros by default."""
    first = call.integer("layout")
    if given is not None:
        return given.transpose(0, 1) if first else given
    batch = x.shape[0 if first else 1]
    return torch.zeros(
        len(recurrence), batch, recurrence.shape[-1], dtype=recurrence.dtype, device=recurrence.device
    )


def _biases(bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Splits biases into those of the inputs and those of the recurrence, [directions, gates * hidden]."""
    return (None, None) if bias is None else torch.chunk(bias, 2, 1)


@operator("RNN", host=(4,))
def rnn(
    call: Call,
    x: Tensor,
    weights: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: list[int] | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """A plain recurrent layer."""
    of_input, of_state = _biases(bias)
    both = None if of_input is None else of_input + of_state

    def make(direction: int) -> Step:
        (f,) = _activations(call, ["Tanh"], direction)
        return lambda projected, state: (f(projected + F.linear(state[0], recurrence[direction])),)

    return _run(call, x, weights, both, lengths, (_initial(call, x, recurrence, initial),), make)


@operator("GRU", host=(4,))
def gru(
    call: Call,
    x: Tensor,
    weights: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: list[int] | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """A gated recurrent unit, gates z, r, h."""
    of_input, of_state = _biases(bias)
    reset_after = bool(call.integer("linear_before_reset"))

    def make(direction: int) -> Step:
        f, g = _activations(call, ["Sigmoid", "Tanh"], direction)
        r_zr, r_h = torch.split(recurrence[direction], [2 * recurrence.shape[-1], recurrence.shape[-1]])
        b_zr = b_h = None
        if of_state is not None:
            b_zr, b_h = torch.split(of_state[direction], [2 * recurrence.shape[-1], recurrence.shape[-1]])

        def step(projected: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (before,) = states
            x_z, x_r, x_h = torch.chunk(projected, 3, -1)
            h_z, h_r = torch.chunk(F.linear(before, r_zr, b_zr), 2, -1)
            z, r = f(x_z + h_z), f(x_r + h_r)
            if reset_after:
                hidden = g(x_h + r * F.linear(before, r_h, b_h))
            else:
                hidden = g(x_h + F.linear(r * before, r_h, b_h))
            return ((1 - z) * hidden + z * before,)

        return step

    return _run(call, x, weights, of_input, lengths, (_initial(call, x, recurrence, initial),), make)


@operator("LSTM", host=(4,))
def lstm(
    call: Call,
    x: Tensor,
    weights: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: list[int] | None = None,
    initial: Tensor | None = None,
    initial_cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """A long short-term memory, gates i, o, f, c."""
    of_input, of_state = _biases(bias)
    both = None if of_input is None else of_input + of_state
    coupled = bool(call.integer("input_forget"))

    def make(direction: int) -> Step:
        f, g, h = _activations(call, ["Sigmoid", "Tanh", "Tanh"], direction)
        peeks = None if peepholes is None else torch.chunk(peepholes[direction], 3)

        def step(projected: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            before, cell = states
            gates = projected + F.linear(before, recurrence[direction])
            i, o, forget, c = torch.chunk(gates, 4, -1)
            if peeks is not None:
                i, forget = i + peeks[0] * cell, forget + peeks[2] * cell
            i = f(i)
            forget = 1 - i if coupled else f(forget)
            cell = forget * cell + i * g(c)
            o = f(o if peeks is None else o + peeks[1] * cell)
            return o * h(cell), cell

        return step

    states = (_initial(call, x, recurrence, initial), _initial(call, x, recurrence, initial_cell))
    return _run(call, x, weights, both, lengths, states, make)
