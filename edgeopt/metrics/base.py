"""The contract of a metric.

A metric turns each sample's outputs into a *record*. Most records are scores, and the metric is their
mean. A metric over the whole set (a rank correlation, mean average precision) keeps what it needs in
the record and has an ``aggregate`` of its own; its intervals come from resampling records, in pairs
where two models are compared.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeopt import user_code
from edgeopt.budget import Budget
from edgeopt.errors import DataError, UserError, nearest


class Metric(ABC):
    """How good a model's outputs are.

    Attributes:
        name: Its name.
        unit: ``%`` (then records are shares of 1 and a drop is in pp), ``dB`` or "".
        higher_is_better: Its sense.
        drop: The default budget on its drop: limit and unit; ``%`` is relative to the original.
        needs_labels: Whether every sample must have a label.
        per_sample: Whether records are scores whose mean is the metric.
        resamples: Bootstrap resamples of an aggregate.
        output: The output that it reads; ``None`` for the only one.
    """

    name: str = ""
    unit: str = ""
    higher_is_better: bool = True
    drop: tuple[float, str] = (0.01, "")
    needs_labels: bool = True
    per_sample: bool = True
    resamples: int = 1000
    output: str | None = None

    @abstractmethod
    def record(self, outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> Any:
        """Judges one sample.

        Args:
            outputs: The sample's outputs by name, without the batch axis; with a harness whatever
                the harness yields.
            sample: The sample's own data by name, ``label`` among them where there are labels.
        """

    def aggregate(self, records: Sequence[Any]) -> float:
        """Turns the records of all samples into the metric; the mean by default."""
        return float(np.mean(np.asarray(records, np.float64)))

    def check_label(self, label: Any, index: int, classes: int | None, where: str) -> None:
        """Checks the label of one sample.

        Args:
            label: The label.
            index: The sample's number in its source, for the error.
            classes: The number of classes of the model's output, where it is known.
            where: The part, for the error.

        Raises:
            DataError: It cannot be a label of this metric.
        """
        return

    @property
    def digest(self) -> str:
        """SHA-256 of its source, its name and the output that it reads."""
        source = user_code.digest(type(self))
        return hashlib.sha256(f"{source} {self.name} {self.output}".encode()).hexdigest()

    def default_budget(self) -> Budget:
        """The budget on the drop that holds where the user gives none."""
        return Budget("accuracy_drop", self.drop[0], self.drop[1], explicit=False)

    def check_budget(self, budget: Budget) -> None:
        """Checks that a budget on the drop has a unit that this metric can be judged in.

        Raises:
            UserError: It has not.
        """
        allowed = {"%": ("pp", "%"), "dB": ("dB", "%")}.get(self.unit, ("", "%"))
        if budget.unit not in allowed:
            written = budget.unit or "no unit"
            raise UserError(
                f"a drop of {self.name} cannot be limited in {written!r}",
                hint="use " + " or ".join(unit or "a plain number" for unit in allowed),
            )

    def select(self, outputs: Mapping[str, Any]) -> np.ndarray:
        """Returns the output that the metric reads.

        Raises:
            DataError: There are several and none is named, or the named one does not exist.
        """
        if self.output is not None:
            if self.output not in outputs:
                raise DataError(
                    f"the metric {self.name} reads the output {self.output!r}, which the model has not",
                    nearest=nearest(self.output, outputs) or list(outputs)[:3],
                )
            return np.asarray(outputs[self.output])
        if len(outputs) != 1:
            first = next(iter(outputs), "output")
            raise DataError(
                f"the model has {len(outputs)} outputs and the metric {self.name} reads one",
                where=", ".join(outputs),
                hint=f"name it, for example --metric '{self.name}({first})'",
            )
        return np.asarray(next(iter(outputs.values())))


class UserMetric(Metric):
    """A metric from a user's function ``f(outputs, sample)``.

    The function is called once a sample and returns its score, where the metric is the mean of
    scores. Attributes of the function say the rest, all optional::

        def word_accuracy(outputs, sample):
            return outputs["phonemes"] == sample["label"]

        word_accuracy.unit = "%"               # scores are shares of 1; a drop is in pp
        word_accuracy.higher_is_better = True
        word_accuracy.drop = "1 pp"            # the default budget on its drop
        word_accuracy.needs_labels = True

    With an attribute ``aggregate`` (a function of the list of all records) ``f`` returns a record of
    any kind and the metric is ``aggregate(records)``; ``resamples`` says how often it is bootstrapped
    (1000).
    """

    def __init__(self, function: Any, name: str) -> None:
        self.function = function
        self.name = getattr(function, "metric", name)
        self.unit = getattr(function, "unit", "")
        self.higher_is_better = bool(getattr(function, "higher_is_better", True))
        self.needs_labels = bool(getattr(function, "needs_labels", True))
        self.per_sample = not hasattr(function, "aggregate")
        self.resamples = int(getattr(function, "resamples", 1000))
        if self.unit not in ("%", "dB", ""):
            raise UserError(f"the metric {name} has the unit {self.unit!r}; one of '%', 'dB', ''")
        self.drop = self._drop(getattr(function, "drop", None))

    @property
    def digest(self) -> str:
        """SHA-256 of the file that the user's function comes from, with its name."""
        return user_code.digest(self.function)

    def record(self, outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> Any:
        """Calls the user's function."""
        value = self.function(outputs, sample)
        if not self.per_sample:
            return value
        score = np.asarray(value)
        if score.size != 1 or score.dtype.kind not in "biuf":
            raise DataError(
                f"the metric {self.name} must return one number a sample, not {type(value).__name__} "
                f"of shape {tuple(score.shape)}",
                hint="give the function an attribute `aggregate` to judge the whole set at once",
            )
        if not np.isfinite(score).all():
            raise DataError(f"the metric {self.name} returned {score.item()} for a sample")
        return float(score.item())

    def aggregate(self, records: Sequence[Any]) -> float:
        """Calls the function's own ``aggregate``, or takes the mean."""
        if self.per_sample:
            return super().aggregate(records)
        return float(self.function.aggregate(records))

    def _drop(self, text: Any) -> tuple[float, str]:
        if text is not None:
            budget = Budget.parse("accuracy_drop", text)
            self.check_budget(budget)
            return budget.limit, budget.unit
        if self.unit == "%":
            return 1.0, "pp"
        if self.unit == "dB":
            return 0.2, "dB"
        return (0.01, "") if self.higher_is_better else (1.0, "%")


def parse_drop(text: str | float, metric: Metric) -> Budget:
    """Reads a limit on the drop of a metric, such as ``1pp`` or ``0.01``.

    Raises:
        UserError: It cannot be read, or has a unit that does not fit the metric.
    """
    budget = Budget.parse("accuracy_drop", text)
    metric.check_budget(budget)
    return budget
