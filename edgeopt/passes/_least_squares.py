"""Weights on a grid that make of quantized inputs what float weights make of float ones.

With q the quantized input of a product, y what the float model makes of its own and e = y - W q, the
weights and biases of least squared error are

    W* = W + cov(e, q) (cov(q, q) + damping)^-1,    b* = mean(y - W* q),

which takes back what earlier layers left over as far as it depends on q. Rounding column after column,
each column's error is given on to the columns not yet rounded, by the Cholesky factor of the inverse
(Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
ICLR 2023), so that what is left of the rounding error in W q is small.

Arrays have a leading axis of groups, as grouped convolutions have: weights [groups, outputs, columns],
second moments [groups, columns, columns].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgeopt.graph.gptq import round_rows

WIDE = 1024
"""With more columns than this, rows wait for others: each sum is larger than the processor's cache."""

SHRINK = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7)
"""Shares of a channel's extremes that its scale may represent."""


@dataclass(slots=True)
class Moments:
    """Sums over rows of a product's quantized inputs q and of the errors e of its outputs.

    Attributes:
        count: Rows.
        inputs: Sum of q, float64 [groups, columns].
        errors: Sum of e, float64 [groups, outputs].
        square: Sum of q q^T, float64 [groups, columns, columns].
        cross: Sum of e q^T, float64 [groups, outputs, columns].
        waiting: Rows with their errors that are yet to be added to the last two; see ``settle``.
    """

    count: int
    inputs: np.ndarray
    errors: np.ndarray
    square: np.ndarray
    cross: np.ndarray
    waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def empty(cls, groups: int, outputs: int, columns: int) -> Moments:
        """Sums over no rows."""
        return cls(
            0,
            np.zeros((groups, columns)),
            np.zeros((groups, outputs)),
            np.zeros((groups, columns, columns)),
            np.zeros((groups, outputs, columns)),
        )

    def see(self, rows: np.ndarray, errors: np.ndarray) -> None:
        """Adds rows [groups, rows, columns] with their errors [groups, rows, outputs]."""
        self.count += rows.shape[1]
        self.inputs += rows.sum(1, dtype=np.float64)
        self.errors += errors.sum(1, dtype=np.float64)
        self.waiting.append((rows, errors))
        columns = rows.shape[2]
        if columns <= WIDE or sum(item[0].shape[1] for item in self.waiting) >= columns:
            self.settle()

    def settle(self) -> None:
        """Adds the rows that wait."""
        if not self.waiting:
            return
        rows, errors = self.waiting[0]
        if len(self.waiting) > 1:
            rows, errors = (np.concatenate(arrays, 1) for arrays in zip(*self.waiting, strict=True))
        self.waiting = []
        for group in range(len(rows)):  # a matrix times its own transpose is half the work
            self.square[group] += rows[group].T @ rows[group]
            self.cross[group] += errors[group].T @ rows[group]

    def less(self, weight: np.ndarray) -> None:
        """Makes errors e - W q of the errors e seen so far, for weights W [groups, outputs, columns]."""
        self.settle()
        self.errors -= np.einsum("gok,gk->go", weight, self.inputs)
        self.cross -= weight @ self.square

    def about_means(self, *, free: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns the second moments of q, and of e and q; about their means where a bias is free."""
        self.settle()
        square, cross = self.square / self.count, self.cross / self.count
        if free:
            inputs, errors = self.inputs / self.count, self.errors / self.count
            square = square - inputs[:, :, None] * inputs[:, None, :]
            cross = cross - errors[:, :, None] * inputs[:, None, :]
        return square, cross


def damped(square: np.ndarray, damping: float) -> np.ndarray:
    """Adds a share of the mean of its diagonal to the diagonal of every group's matrix."""
    diagonal = np.einsum("gkk->gk", square)
    added = damping * diagonal.mean(1, keepdims=True) + 1e-12
    added = np.where(diagonal <= 0, added + 1e-6, added)  # inputs that are always zero
    stable: np.ndarray = square + np.eye(square.shape[1]) * added[:, None, :]
    return stable


def best_weights(weight: np.ndarray, square: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Returns W + cross square^-1, float64 [groups, outputs, columns]."""
    change = np.linalg.solve(square, np.swapaxes(cross, 1, 2))
    best: np.ndarray = weight + np.swapaxes(change, 1, 2)
    return best


def channel_steps(
    weight: np.ndarray, square: np.ndarray, least: np.ndarray, low: int, high: int
) -> np.ndarray:
    """Chooses each output's step by the expected damage of rounding to its nearest point.

    Args:
        weight: float64 [groups, outputs, columns].
        square: Second moments of the inputs; the diagonal weighs errors.
        least: The smallest step allowed, [groups, outputs].
        low: The smallest integer.
        high: The largest.

    Returns:
        Steps, float64 [groups, outputs].
    """
    diagonal = np.einsum("gkk->gk", square)[:, None, :]
    extreme = np.abs(weight).max(-1) / min(-low, high)
    extreme = np.where(extreme <= 0, 1.0, extreme)
    chosen, best = np.maximum(extreme, least), np.full(extreme.shape, np.inf)
    for share in SHRINK:
        steps = np.maximum(extreme * share, least).astype(np.float32).astype(np.float64)
        grid = np.clip(np.rint(weight / steps[..., None]), low, high) * steps[..., None]
        damage = (np.square(grid - weight) * diagonal).sum(-1)
        chosen = np.where(damage < best, steps, chosen)
        best = np.minimum(damage, best)
    rounded: np.ndarray = chosen.astype(np.float32).astype(np.float64)
    return rounded


def round_columns(
    weight: np.ndarray, steps: np.ndarray, square: np.ndarray, low: int, high: int
) -> np.ndarray:
    """Rounds weights to multiples of their steps, giving each column's error on to the later ones.

    Args:
        weight: float64 [groups, outputs, columns].
        steps: [groups, outputs].
        square: Second moments of the inputs, damped.
        low: The smallest integer.
        high: The largest.

    Returns:
        Weights on the grid, float64 [groups, outputs, columns].
    """
    moments = np.einsum("gkk->gk", square).sum(0)  # groups together: what matters most first
    order = np.broadcast_to(np.argsort(-moments, kind="stable"), (len(weight), weight.shape[2]))
    rows, scale = np.swapaxes(weight, 1, 2), steps[:, None]
    integers = round_rows(rows, square, scale, np.zeros_like(scale), low, high, damping=0.0, order=order)
    return np.swapaxes(integers * scale, 1, 2)


def residual(change: np.ndarray, moments: Moments) -> np.ndarray:
    """What changed weights add to the mean squared error of each output, with its bias as it was.

    Args:
        change: W' - W, [groups, outputs, columns].
        moments: Of the rows to judge by.

    Returns:
        float64 [groups, outputs].
    """
    moments.settle()
    left: np.ndarray = np.einsum(
        "gok,gkl,gol->go", change, moments.square / moments.count, change, optimize=True
    )
    left -= 2 * np.einsum("gok,gok->go", change, moments.cross / moments.count)
    return left


def shifted(change: np.ndarray, shift: np.ndarray, moments: Moments) -> np.ndarray:
    """What changed biases add to the mean squared error of each output, beside changed weights.

    Args:
        change: W' - W, [groups, outputs, columns].
        shift: b' - b, [groups, outputs].
        moments: Of the rows to judge by.

    Returns:
        float64 [groups, outputs].
    """
    inputs, errors = moments.inputs / moments.count, moments.errors / moments.count
    added: np.ndarray = 2 * shift * (np.einsum("gok,gk->go", change, inputs) - errors) + np.square(shift)
    return added
