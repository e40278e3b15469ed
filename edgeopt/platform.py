"""Devices and runtimes as data, and the platform that is one of each.

A device profile is ``devices/NAME.yaml``, a runtime profile ``runtimes/NAME.yaml``. Third parties
add folders of profiles through the entry point group ``edgeopt.devices``; a user names a file of
their own by its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from pydantic import BeforeValidator, Field, model_validator

from edgeopt import schema, units
from edgeopt.cores import known_cores
from edgeopt.errors import ProfileError, UserError, nearest


def _quantity(kind: str) -> Callable[[Any], float]:
    """Reads a quantity; a bad one is a ValueError, so that the schema can say where it stands."""

    def read(text: Any) -> float:
        try:
            return units.parse_one(text, kind)
        except UserError as error:
            raise ValueError(f"{error.message} ({error.hint})") from None

    return read


Size = Annotated[int, BeforeValidator(lambda text: int(_quantity("size")(text)))]
Frequency = Annotated[float, BeforeValidator(_quantity("frequency"))]
Bandwidth = Annotated[float, BeforeValidator(_quantity("bandwidth"))]

Role = Literal["activation", "weight", "bias"]
IntegerType = Literal["int4", "uint4", "int8", "uint8", "int16", "uint16", "int32"]


# ---- device


class Cluster(schema.Schema):
    """Equal cores that share a clock.

    ``isa`` names the extensions that matter to kernels: neon, vfpv4, dotprod, i8mm, fp16, bf16, sve, ...
    """

    core: str
    cores: int = Field(gt=0)
    clock: Frequency
    isa: list[str] = []
    l1d: Size | None = None
    l2: Size | None = None
    l3: Size | None = None


class Cpu(schema.Schema):
    """A processor: its clusters from the fastest to the slowest."""

    arch: Literal["aarch64", "armv7", "x86_64"]
    clusters: list[Cluster] = Field(min_length=1)


class Memory(schema.Schema):
    """Main memory; the bandwidth is what one can copy or, failing that, the bus's peak."""

    ram: Size
    bandwidth: Bandwidth


class Accelerator(schema.Schema):
    """A GPU, NPU or TPU, with the precisions that it runs fast.

    Attributes:
        name: What people call it.
        kind: Its kind.
        architecture: What compilers call it, such as ``sm_53``.
        precisions: Element types that it runs fast.
        runtime: The runtime that runs on it.
        clock: The clock of its arithmetic.
        macs_per_cycle: Dense multiply-accumulates of the whole accelerator a cycle, per element type.
        bandwidth: The peak of its memory's bus.
    """

    name: str
    kind: Literal["gpu", "npu", "tpu", "dsp"]
    architecture: str = ""
    precisions: list[Literal["float32", "float16", "bfloat16", "int8"]] = []
    runtime: str | None = None
    clock: Frequency | None = None
    macs_per_cycle: dict[str, float] = {}
    bandwidth: Bandwidth | None = None

    @model_validator(mode="after")
    def _can_be_predicted(self) -> Accelerator:
        if self.runtime is not None and not (self.clock and self.macs_per_cycle and self.bandwidth):
            raise ValueError("an accelerator with a runtime needs clock, macs_per_cycle and bandwidth")
        return self


class Emulation(schema.Schema):
    """The nearest QEMU core that has no instruction the real one lacks, and what differs."""

    cpu: str
    differs: list[str] = []


class Device(schema.Schema):
    """Hardware as data.

    ``runtimes`` maps each runtime the device carries to its version; the first is the default.
    ``sources`` gives the origin of every figure by its key; a guess says ``estimated``.
    """

    version: Literal[1] = Field(alias="schema")
    name: str
    description: str = ""
    soc: str = ""
    cpu: Cpu
    memory: Memory
    runtimes: dict[str, str] = Field(min_length=1)
    accelerators: list[Accelerator] = []
    emulate: Emulation | None = None
    sources: dict[str, str]


# ---- runtime


class TensorRule(schema.Schema):
    """How a runtime wants one kind of operand quantized.

    ``scale`` and ``zero_point`` are given only where the runtime fixes them.
    """

    dtype: IntegerType
    symmetric: bool = False
    per_channel: bool = False
    scale: float | None = None
    zero_point: int | None = None


class OperatorRule(schema.Schema):
    """Which operands of an operator are quantized when it runs in integers.

    Attributes:
        inputs: The role of each input by position, ``None`` where it stays as it is; the last one
            holds for all further inputs. A weight or bias that is no constant is an activation.
        outputs: The same for outputs.
        channel_axis: The weight's axis that has a scale of its own per channel.
        same_scale: Inputs and outputs share one scale and zero point (concat, pooling, reshape).
        output: Parameters or a type of its own for the outputs, where the runtime fixes them.
        weight: A type of its own for the weight, where it differs from the runtime's general one.
        follow: The operator only passes integers on: where its first input is quantized and its output
            wanted in integers, its output is quantized with the same parameters.
        when: ``always``, or ``between`` where the operator pays only in the midst of integers: some
            input comes in integers and some reader of its output wants them; or ``residual`` where a
            product runs the sum in its own kernel if the other summand comes in integers.
    """

    inputs: list[Role | None] = []
    outputs: list[Role | None] = []
    channel_axis: int = 0
    same_scale: bool = False
    output: TensorRule | None = None
    weight: TensorRule | None = None
    follow: bool = False
    when: Literal["always", "between", "residual"] = "always"


class QuantizationRules(schema.Schema):
    """What a runtime demands at calibration time.

    Attributes:
        activation: Of values computed at run time.
        weight: Of constant weights.
        bias: ``float``, or ``int32`` at scale input × weight.
        activations_by_isa: Another activation rule where the device's core has an extension; the
            first that it has decides.
        operators: Per operator type the operands that are quantized.
        fused_activations: Activations that follow an operator in the same kernel: the value between
            the two is not quantized.
        dynamic: Operators that the runtime can run with ranges computed at run time.
        row_ranges: Operators before which rows may be divided by the largest of each, and multiplied behind,
            since what lies between products computes in float in any case.
        constants_stored: How the file holds quantized constants: as integers before DequantizeLinear, or
            as floats before QuantizeLinear and DequantizeLinear.
        constants: Per operator type the inputs that may hold integers when they are constant, though
            the operator computes in float (weight-only quantization), with the axis that has a scale
            of its own per channel, or ``None``.
        rows_of: Operators that gather rows of a constant, which may then have a scale per row instead.
        block_sizes: Block sizes of weight-only quantization, the preferred first.
        block_kernels: Operators that compute on constants packed in blocks; others widen them.
        slope_factor: Where the kernel of LeakyRelu multiplies in fixed point, one over its smallest factor;
            0 where it takes any scales and slope.
    """

    activation: TensorRule
    weight: TensorRule
    activations_by_isa: dict[str, TensorRule] = {}
    bias: Literal["float", "int32"] = "int32"
    operators: dict[str, OperatorRule]
    fused_activations: list[str] = []
    dynamic: list[str] = []
    row_ranges: list[str] = []
    constants_stored: Literal["integer", "float"] = "integer"
    constants: dict[str, dict[int, int | None]] = {}
    rows_of: list[str] = []
    block_sizes: list[int] = []
    block_kernels: list[str] = []
    slope_factor: int = 0


class Tolerance(schema.Schema):
    """How far an artifact's outputs may stray from its golden vectors, per precision.

    ``relative`` is max|Δ| over max|expected|, per output.
    """

    relative: float
    source: str


class RuntimeVersion(schema.Schema):
    """What a range of versions of a runtime can do.

    Attributes:
        versions: A version specifier, such as ``>=1.17``; the first entry that matches holds.
        opset: The lowest and highest ai.onnx opset that it takes.
        opset_with: The highest opset of a file with an operator that has no kernel for the highest of all.
        operators: Per domain ("" is ai.onnx) the operators it runs, ``["*"]`` for all of them.
        floats_only: Operators of ai.onnx that are documented to compute on floats alone, though they have
            kernels for integers elsewhere.
        data_types: Element types that it computes in.
        fusions: The patterns that run as one kernel; the fusion passes of these names may fire.
        precisions: Schemes that it runs, the generally fastest first.
        floats_need: Per architecture the extension without which its official build cannot run floats.
        float16: What the scheme float16 does to the file: weights are stored in float16, or the file
            keeps float32 and the command that builds the engine asks for float16.
        quantization: Rules of its integer kernels; ``None`` where it has none.
        formats: Forms of artifact, the default first.
        order: Whether operators run in the order of the file, or in one that the runtime chooses.
        memory: Peak memory of a process that holds the runtime and an empty session.
        floors: Lowest ``glibc`` and ``python``.
        tolerance: Per precision how far golden vectors may stray.
    """

    versions: str
    opset: tuple[int, int] = (7, 25)
    opset_with: dict[str, int] = {}
    operators: dict[str, list[str]]
    floats_only: list[str] = []
    data_types: list[str] = []
    fusions: list[str] = []
    precisions: list[str] = ["float32"]
    floats_need: dict[str, str] = {}
    float16: Literal["stored", "build-flag"] = "stored"
    quantization: QuantizationRules | None = None
    formats: list[str] = ["onnx"]
    order: Literal["file", "own"] = "own"
    memory: Size
    floors: dict[str, str] = {}
    tolerance: dict[str, Tolerance] = {}

    def runs(self, op_type: str, domain: str = "") -> bool:
        """Whether the runtime has a kernel for an operator."""
        known = self.operators.get("" if domain == "ai.onnx" else domain, [])
        return "*" in known or op_type in known

    def highest_opset(self, operators: Iterable[str]) -> int:
        """Returns the highest ai.onnx opset of a file that holds these operators of it."""
        held = set(operators)
        return min([self.opset[1], *(opset for name, opset in self.opset_with.items() if name in held)])

    def on(self, isa: list[str]) -> RuntimeVersion:
        """Returns the rules as they hold on a core with these extensions."""
        if self.quantization is None:
            return self
        by_isa = self.quantization.activations_by_isa
        activation = next((by_isa[name] for name in by_isa if name in isa), self.quantization.activation)
        update = {"activation": activation, "activations_by_isa": {}}
        return self.model_copy(update={"quantization": self.quantization.model_copy(update=update)})

    def within(self, types: Sequence[str]) -> RuntimeVersion:
        """Returns the rules as they hold on an accelerator that runs only these element types fast."""
        needed = {"float32": "float32", "float16": "float16"}
        precisions = [name for name in self.precisions if needed.get(name, "int8") in types]
        quantization = self.quantization if "int8" in types else None
        return self.model_copy(update={"precisions": precisions, "quantization": quantization})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that the rules say."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Runtime(schema.Schema):
    """Software as data: a runtime's version ranges, each with what it can do.

    ``architectures`` are those that it is built for officially, all where none is named.
    """

    version: Literal[1] = Field(alias="schema")
    name: str
    target: str
    description: str = ""
    architectures: list[Literal["aarch64", "armv7", "x86_64"]] = []
    ranges: list[RuntimeVersion] = Field(min_length=1)
    sources: dict[str, str]

    def at(self, version: str) -> RuntimeVersion:
        """Returns what holds for one version.

        Raises:
            ProfileError: No range holds that version.
        """
        for entry in self.ranges:
            if SpecifierSet(entry.versions, prereleases=True).contains(Version(version)):
                return entry
        raise ProfileError(f"the runtime profile {self.name!r} does not cover version {version}")


# ---- platform


class Platform(schema.Schema):
    """A device with one of its runtimes: what passes and targets ask for rules."""

    device: Device
    runtime: Runtime
    runtime_version: str

    @cached_property
    def rules(self) -> RuntimeVersion:
        """What the device's version of the runtime can do and demands, on its fastest cores.

        Where the runtime is that of an accelerator, only what the accelerator runs fast holds. Two
        devices with equal rules share every step, whatever else tells them apart.
        """
        rules = self.runtime.at(self.runtime_version).on(self.device.cpu.clusters[0].isa)
        return rules if self.accelerator is None else rules.within(self.accelerator.precisions)

    @property
    def lacking(self) -> str | None:
        """The extension that the runtime's float kernels need and the fastest cores lack; ``None`` for none.

        Cores of Armv8 have all of Armv7's.
        """
        cluster = self.device.cpu.clusters[0]
        core = known_cores().get(cluster.core)
        needed = self.rules.floats_need.get(self.device.cpu.arch)
        if needed is None or needed in cluster.isa or (core is not None and core.arch == "aarch64"):
            return None
        return needed

    @property
    def accelerator(self) -> Accelerator | None:
        """The accelerator that the runtime runs on; ``None`` for the processor."""
        return next((item for item in self.device.accelerators if item.runtime == self.runtime.name), None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of both profiles."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()


Profile = TypeVar("Profile", Device, Runtime)


def profile_folders(kind: Literal["devices", "runtimes"]) -> list[Path]:
    """Lists the folders that hold profiles: our own, then those of installed packages.

    In the repository they lie beside the package, in a wheel inside it.
    """
    inside = Path(__file__).parent / "profiles" / kind
    ours = inside if inside.is_dir() else Path(__file__).parent.parent / kind
    group = f"edgeopt.{kind}"
    return [ours, *(Path(str(point.load())) for point in entry_points(group=group))]


@cache
def profile_names(kind: Literal["devices", "runtimes"]) -> dict[str, Path]:
    """Maps the name of every known profile to its file, sorted by name."""
    found: dict[str, Path] = {}
    for folder in profile_folders(kind):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def load_device(name: str) -> Device:
    """Loads a device profile by its name, or by the path of a YAML file.

    Raises:
        ProfileError: There is no such profile, or it is not valid.
    """
    return _load(name, "devices", Device)


def load_runtime(name: str) -> Runtime:
    """Loads a runtime profile by its name, or by the path of a YAML file."""
    return _load(name, "runtimes", Runtime)


def load_platform(device: str | Device, target: str | None = None) -> Platform:
    """Joins a device with the runtime that a target is for, by default the device's first.

    Raises:
        ProfileError: The device or runtime is unknown, or the device does not carry it.
    """
    if isinstance(device, str):
        device = load_device(device)
    name = target or next(iter(device.runtimes))
    if name not in device.runtimes:
        raise ProfileError(
            f"the device {device.name!r} carries no runtime {name!r}",
            hint=f"one of {', '.join(device.runtimes)}",
        )
    runtime = load_runtime(name)
    version = device.runtimes[name]
    runtime.at(version)
    return Platform(device=device, runtime=runtime, runtime_version=version)


def _load(name: str, kind: Literal["devices", "runtimes"], model: type[Profile]) -> Profile:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return schema.read(path, model, ProfileError)
    known = profile_names(kind)
    if name not in known:
        raise ProfileError(
            f"there is no {kind[:-1]} {name!r}",
            nearest=nearest(name, known),
            hint=f"edgeopt {kind} list" if kind == "devices" else None,
        )
    return schema.read(known[name], model, ProfileError)
