"""Choose a quantization scheme for the platform and the data, and see it through.

With calibration data the scheme is static int8. Before it the ranges of channels are made alike, and what
they always have is absorbed into biases, which is exact; after it weights and biases are solved for, layer by
layer in closed form, which costs two runs over the data; then, where torch is installed, scales of
activations, biases and weights are trained together against the float model's outputs, for longer where more
effort is asked for; last the layers that int8 hurts most return to float where even that was not enough.
Every step keeps only what gains on the validation samples.

Steps that recover accuracy come cheapest first, and end when three in a row gained less than 0.1 dB or when
the plan's processor time is spent; what was left out stands in the ledger.

Without data, models made of matrix products get dynamic int8 where the runtime has it, others 8-bit weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import onnx_ir as ir

from edgeopt.errors import UserError, nearest
from edgeopt.graph.change import Change
from edgeopt.graph.placement import is_constant
from edgeopt.graph.quantization import FIRST_OPSET
from edgeopt.graph.thresholds import PERCENTILE
from edgeopt.passes._calibration import WORTH
from edgeopt.passes._rules import kept
from edgeopt.passes.absorb_biases import AbsorbBiases
from edgeopt.passes.base import Context, Entry, Facet, Keeps, Pass, Plan, Stage
from edgeopt.passes.bias_correction import BiasCorrection
from edgeopt.passes.distill import Distill
from edgeopt.passes.dynamic_int8 import DynamicInt8
from edgeopt.passes.end_plan import EndPlan
from edgeopt.passes.equalize_channels import EqualizeChannels
from edgeopt.passes.float16 import Float16
from edgeopt.passes.gptq import Gptq
from edgeopt.passes.keep_stem import KeepStem
from edgeopt.passes.move_pools import MovePools
from edgeopt.passes.normalize_rows import NormalizeRows
from edgeopt.passes.restore_float import RestoreFloat
from edgeopt.passes.restore_pixels import RestorePixels
from edgeopt.passes.search_ranges import SearchRanges
from edgeopt.passes.smooth_activations import SmoothActivations
from edgeopt.passes.split_leaky_relu import SplitLeakyRelu
from edgeopt.passes.split_operands import SplitOperands
from edgeopt.passes.static_int8 import Choice, Regime, StaticInt8
from edgeopt.passes.weight_only import WeightOnly
from edgeopt.platform import RuntimeVersion, load_runtime

Scheme = Literal["auto", "static-int8", "dynamic-int8", "float16", "weight-only"]

Effort = Literal["minimal", "default", "more"]

FAITHFUL = 30.0
"""dB on the validation samples below which biases are corrected where nothing else has helped."""

CPU_SECONDS = 240.0
"""Processor time after which no further step begins."""

IN_VAIN = 3
"""So many steps in a row that gain too little end the recovery of accuracy."""

Preparing = (
    SmoothActivations
    | MovePools
    | KeepStem
    | RestorePixels
    | EqualizeChannels
    | AbsorbBiases
    | SplitLeakyRelu
    | NormalizeRows
    | SplitOperands
)

PREPARING: tuple[type[Preparing], ...] = get_args(Preparing)
"""Steps before static int8, in order; all are exact in float."""

LESS = Distill(seconds=12.0, iterations=250)
"""The training of the whole model where no more effort is asked for."""

MORE = Distill(seconds=90.0, iterations=1500, weights=0.003, biases=0.01)
"""The one where it is."""

WITHOUT = "torch is not installed, so scales are not learned (pip install 'edgeopt[torch]')"
"""What the ledger says where the training was left out."""

PRODUCTS = ("MatMul", "Gemm", "LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Quantize(Plan):
    """Quantize the model as the platform and the data allow.

    Attributes:
        scheme: ``auto``, ``static-int8``, ``dynamic-int8``, ``float16`` or ``weight-only``.
        keep_float: Shell patterns of original node names that stay in float.
        bits: Bits of weights, for weight-only.
        block: Block size of 4-bit weights; by default the runtime's.
        activations: ``symmetric`` or ``asymmetric`` ranges; by default as the runtime wants.
        observer: How ranges of activations are chosen: ``min-max``, ``moving-average``, ``percentile``,
            ``entropy``, ``mse``, or the better of ``min-max`` and ``mse`` (``auto``).
        percentile: Per cent of an activation's numbers that its range holds, for ``percentile``.
        samples: At most this many calibration samples are used.
        throughout: Quantize everything that flows between products, as integer-only hardware needs
            (``int8``; ``residual-int16`` with 16 bits for a transformer's residual sums).
        activation_bits: 8, or 16 for activations of static int8.
        equalize: Equalize the ranges of channels and absorb biases before static int8.
        fidelity: Below this many dB on the validation samples layers return to float; 0 never does, and
            ``throughout`` never does either.
        effort: ``default`` solves for the weights in closed form and, where torch is installed, trains the
            whole model for some 20 CPU seconds if that ends within a minute; ``more`` searches ranges before
            it and trains for longer; ``minimal`` does nothing where static int8 meets ``fidelity``.
        cpu_seconds: Once the plan's steps took so much processor time, those that recover accuracy are
            left out, and the ledger says which; a step under way is not interrupted. 0 knows no end.
    """

    name: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    scheme: Scheme = "auto"
    keep_float: tuple[str, ...] = ()
    bits: int = 8
    block: int = 0
    activations: str = ""
    observer: Choice = "auto"
    samples: int = 256
    equalize: bool = True
    fidelity: float = 15.0
    effort: Effort = "default"
    percentile: float = PERCENTILE
    throughout: Regime = "no"
    activation_bits: int = 8
    cpu_seconds: float = CPU_SECONDS

    def __post_init__(self) -> None:
        _one_of("scheme", self.scheme, get_args(Scheme))
        _one_of("observer", self.observer, get_args(Choice))
        _one_of("throughout", self.throughout, get_args(Regime))
        _one_of("effort", self.effort, get_args(Effort))
        _one_of("activations", self.activations, ("", "symmetric", "asymmetric"))
        if self.bits not in (4, 8):
            raise UserError(f"weights are quantized to 4 or 8 bits, not {self.bits}")
        if self.activation_bits not in (8, 16):
            raise UserError(f"activations have 8 or 16 bits, not {self.activation_bits}")
        if self.samples < 1:
            raise UserError("quantize needs at least one sample")
        if self.cpu_seconds < 0:
            raise UserError(f"the processor time of quantize is at least 0 seconds, not {self.cpu_seconds:g}")

    @property
    def reads(self) -> frozenset[Facet]:
        """Rules, calibration and validation samples."""
        return frozenset({"rules", "calibration", "validation"})

    def next(self, model: ir.Model, context: Context, ledger: Sequence[Entry]) -> Pass | None:
        """Names the pass of the scheme with those that prepare it, then those that recover accuracy."""
        if not ledger:
            kept(model, self.keep_float)  # a pattern without a match is an error before any work
            first = self._first(model, context)
            if not isinstance(first, StaticInt8) or not self.equalize:
                return first
            return SmoothActivations(self.keep_float)
        last = ledger[-1].step
        spent = 0 < self.cpu_seconds <= sum(entry.cpu_seconds for entry in ledger)
        for before, following in pairwise(self._preparing):
            if isinstance(last, before) and not spent:
                return following(self._kept(ledger))
        if isinstance(last, PREPARING):
            return replace(self, keep_float=self._kept(ledger))._first(model, context)
        recovery = self._recovery(context, ledger)
        if recovery is None:
            return _hint(ledger)
        return self._ended(context, ledger) if spent else recovery

    def _recovery(self, context: Context, ledger: Sequence[Entry]) -> Pass | None:
        """The step that may recover accuracy behind those so far."""
        last = ledger[-1].step
        if context.validation is None or isinstance(last, (RestoreFloat, EndPlan)):
            return None
        if isinstance(last, StaticInt8) and self._recovers(ledger[-1]) and self.effort == "more":
            return SearchRanges()
        if isinstance(last, SearchRanges) or (isinstance(last, StaticInt8) and self._recovers(ledger[-1])):
            return Gptq()
        unsolved = isinstance(last, Gptq) and not ledger[-1].change.rewrites
        if unsolved and _reached(ledger) < FAITHFUL and _in_vain(ledger) < IN_VAIN:
            return BiasCorrection()
        solved = isinstance(last, (Gptq, BiasCorrection))
        if solved and find_spec("torch") is not None and _in_vain(ledger) < IN_VAIN:
            return MORE if self.effort == "more" else LESS
        recovered = isinstance(last, (StaticInt8, Gptq, BiasCorrection, Distill))
        returns = self.fidelity > 0 and self.throughout == "no"  # integer-only hardware has no float
        return RestoreFloat(self.fidelity) if recovered and returns else None

    def _ended(self, context: Context, ledger: Sequence[Entry]) -> EndPlan:
        """What stands in the ledger where the processor time is spent."""
        exact = self._preparing[1:] if self.equalize else []
        names = [kind.name for kind in exact if not _has(ledger, kind)]
        assumed = [replace(entry, cpu_seconds=0.0) for entry in ledger]
        while (following := self._recovery(context, assumed)) is not None:
            names.append(following.name)
            assumed.append(Entry(following, Change(), ledger[-1].model))
        reason = f"the plan's {self.cpu_seconds:g} CPU seconds are spent"
        return EndPlan(tuple(names), reason)

    @property
    def _preparing(self) -> list[type[Preparing]]:
        """The steps before static int8 that suit the options."""
        floats = (KeepStem, NormalizeRows, SplitOperands)
        return [kind for kind in PREPARING if kind not in floats or self._between_in_float]

    def _kept(self, ledger: Sequence[Entry]) -> tuple[str, ...]:
        """The patterns of what stays in float, with what steps so far have chosen."""
        chosen = (
            entry.change.details.get("keep_float", ()) for entry in ledger if isinstance(entry.step, KeepStem)
        )
        return (*self.keep_float, *(pattern for patterns in chosen for pattern in patterns))

    @property
    def _between_in_float(self) -> bool:
        """Whether products read 8 bits and what lies between them may compute in float."""
        return self.throughout == "no" and self.activation_bits == 8

    def _recovers(self, entry: Entry) -> bool:
        """Whether there is something to win back."""
        if not entry.change.rewrites:
            return False
        return self.effort != "minimal" or _reached([entry]) < self.fidelity

    def _first(self, model: ir.Model, context: Context) -> Pass:
        scheme = self.chosen(model, context.rules, has_data=bool(context.calibration))
        if scheme == "static-int8":
            return StaticInt8(
                self.keep_float,
                self.observer,
                self.samples,
                self.activations,
                self.percentile,
                self.throughout,
                self.activation_bits,
            )
        if scheme == "dynamic-int8":
            return DynamicInt8(self.keep_float)
        if scheme == "float16":
            return Float16(self.keep_float)
        return WeightOnly(self.keep_float, self.bits, self.block)

    def chosen(self, model: ir.Model, rules: RuntimeVersion | None, *, has_data: bool) -> Scheme:
        """Returns the scheme that ``auto`` stands for.

        Raises:
            UserError: Static int8 was asked for and there is no calibration data.
        """
        if self.scheme == "static-int8" and not has_data:
            raise UserError(
                "static-int8 needs calibration data", hint="--data PATH, or the scheme dynamic-int8"
            )
        if self.scheme != "auto":
            return self.scheme
        if rules is None:
            rules = load_runtime("onnxruntime").ranges[0]
        if rules.quantization is None or model.opset_imports.get("", 0) < FIRST_OPSET:
            return "float16"
        if has_data and "static-int8" in rules.precisions:
            return "static-int8"
        heavy = _weight_of_products(model) > 0.5
        if heavy and rules.quantization.dynamic and "dynamic-int8" in rules.precisions:
            return "dynamic-int8"
        return "weight-only" if rules.quantization.constants else "float16"


def _hint(ledger: Sequence[Entry]) -> EndPlan | None:
    """What stands last in the ledger where torch would have brought more."""
    if not _has(ledger, Gptq) or _has(ledger, Distill) or _has(ledger, EndPlan):
        return None
    return EndPlan((Distill.name,), WITHOUT) if find_spec("torch") is None else None


def _reached(ledger: Sequence[Entry]) -> float:
    """The fidelity in dB that static int8 reached on the validation samples; 0 where nobody looked."""
    found = [entry.change.details.get("fidelity") for entry in ledger if isinstance(entry.step, StaticInt8)]
    return max((found[-1] or {}).values(), default=0.0) if found else 0.0


def _has(ledger: Sequence[Entry], kind: type[Pass]) -> bool:
    return bool(_of(ledger, kind))


def _of(ledger: Sequence[Entry], kind: type[Pass]) -> list[Entry]:
    return [entry for entry in ledger if isinstance(entry.step, kind)]


def _in_vain(ledger: Sequence[Entry]) -> int:
    """How many of the last steps gained too little on the validation samples.

    Static int8 itself and steps that found nothing to do do not count.
    """
    count = 0
    for entry in reversed(ledger):
        gain = None if isinstance(entry.step, StaticInt8) else gained(entry.change)
        if gain is not None and gain >= WORTH:
            break
        count += gain is not None
    return count


def gained(change: Change) -> float | None:
    """What a step brought on the validation samples in dB; ``None`` where it compared nothing."""
    judged, after = change.details.get("fidelity"), change.details.get("fidelity_after")
    if isinstance(judged, Mapping):
        others = [value for name, value in judged.items() if name != "none"]
        if "none" not in judged or not others:
            return None
        return float(max(others) - judged["none"]) if change.rewrites else 0.0
    if judged is None or after is None:
        return None
    return float(after - judged) if change.rewrites else 0.0


def _weight_of_products(model: ir.Model) -> float:
    """Returns the share of a model's weights that matrix products and recurrent layers hold."""
    total = products = 0
    for node in model.graph:
        for value in node.inputs:
            if value is not None and is_constant(value) and value.const_value is not None:
                size = value.const_value.size
                total += size if node.op_type != "Gather" else 0
                products += size if node.op_type in PRODUCTS else 0
    return products / total if total else 0.0


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(
            f"quantize has no {option} {value!r}",
            nearest=nearest(value, known),
            hint=f"one of {', '.join(item for item in known if item)}",
        )
