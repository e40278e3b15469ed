"""Channel shuffles: weights are reordered, and data stay where they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tflite_models import Calls, convert, error, feeds_of, model, node, platform

from edgeopt.graph.execute import Executor
from edgeopt.passes import Context, Facets, make
from edgeopt.targets.tflite import Tflite
from edgeopt.targets.tflite.lower import lower

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")


class Net:
    """A network in the making, of 6 x 6 images, with random weights from a seed."""

    def __init__(self, channels: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}
        self.channels = {"x": channels}

    def add(self, op_type: str, inputs: str, outputs: str, channels: list[int], **attributes) -> str:
        self.nodes.append(node(op_type, inputs, outputs, **attributes))
        self.channels |= dict(zip(outputs.split(","), channels, strict=True))
        return outputs

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = array
        return name

    def conv(self, x: str, y: str, channels: int, *, group: int = 1, kernel: int = 1) -> str:
        shape = (channels, self.channels[x] // group, kernel, kernel)
        w = self.constant(f"{y}_w", self.random.standard_normal(shape).astype(np.float32))
        b = self.constant(f"{y}_b", self.random.standard_normal(channels).astype(np.float32))
        self.add("Conv", f"{x},{w},{b}", f"{y}_c", [channels], group=group, pads=[kernel // 2] * 4)
        return self.add("Relu", f"{y}_c", y, [channels])

    def shuffle(self, x: str, y: str, groups: int = 2) -> str:
        count = self.channels[x]
        wide = self.constant(f"{y}_to", np.array([1, groups, count // groups, 6, 6]))
        back = self.constant(f"{y}_back", np.array([1, count, 6, 6]))
        self.add("Reshape", f"{x},{wide}", f"{y}_5", [count])
        self.add("Transpose", f"{y}_5", f"{y}_t", [count], perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", f"{y}_t,{back}", y, [count])

    def concat(self, inputs: list[str], y: str) -> str:
        return self.add("Concat", ",".join(inputs), y, [sum(self.channels[x] for x in inputs)], axis=1)

    def split(self, x: str, sizes: list[int], names: list[str]) -> list[str]:
        parts = self.constant(f"{names[0]}_sizes", np.array(sizes))
        return self.add("Split", f"{x},{parts}", ",".join(names), sizes, axis=1).split(",")

    def unit(self, x: str, y: str) -> str:
        """One block of ShuffleNet v2."""
        half = self.channels[x] // 2
        past, through = self.split(x, [half, half], [f"{y}_past", f"{y}_through"])
        made = self.conv(through, f"{y}_1", half)
        made = self.conv(made, f"{y}_2", half, group=half, kernel=3)
        made = self.conv(made, f"{y}_3", half)
        return self.shuffle(self.concat([past, made], f"{y}_both"), y)

    def halve(self) -> None:
        """Stores the weights in float16."""
        for name, array in list(self.constants.items()):
            if array.dtype == np.float32:
                self.constants[f"{name}_half"] = self.constants.pop(name).astype(np.float16)
                self.nodes.insert(0, node("Cast", f"{name}_half", name, to=1))

    def model(self, *outputs: str):
        return model(self.nodes, {"x": [1, self.channels["x"], 6, 6]}, list(outputs), self.constants)


def codes(given, folder) -> list[str]:
    """The operators of the file, in order."""
    _, prepared = convert(given, folder)
    return [operation.code for operation in lower(prepared).program.operations]


def network(units: int, width: int = 12) -> Net:
    net = Net(3)
    both = net.concat([net.conv("x", "a", width), net.conv("x", "b", width)], "start")
    last = net.shuffle(both, "u0")
    for number in range(units):
        last = net.unit(last, f"u{number + 1}")
    net.conv(net.conv(last, "deep", 2 * width, group=2 * width, kernel=3), "y", 5)
    return net


@pytest.mark.parametrize("units", [1, 3, 6])
def test_a_shuffle_between_convolutions_moves_nothing(tmp_path, units):
    given = network(units).model("y")
    assert error(given, tmp_path) < 1e-5
    found = codes(given, tmp_path)
    assert "TRANSPOSE" not in found
    assert "RESHAPE" not in found
    assert "SPLIT_V" not in found


def test_weights_in_float16_are_reordered_as_they_are_stored(tmp_path):
    net = network(2)
    net.halve()
    given = net.model("y")
    assert error(given, tmp_path) < 1e-5
    assert "TRANSPOSE" not in codes(given, tmp_path)
    _, prepared = convert(given, tmp_path)
    weights = [value for value in prepared.graph.initializers.values() if (value.shape or ())[2:]]
    assert {value.dtype for value in weights} == {ir.DataType.FLOAT16}


def test_a_quantized_shuffle_is_left_as_it_is(tmp_path):
    given, where = network(2).model("y"), platform()
    calls = Calls([feeds_of(given, seed) for seed in range(2)])
    context = Context(Facets(rules=where.rules, calibration=calls))
    make("static-int8", {"observer": "min-max"}).apply(given, context)
    prepared, change = Tflite().prepare(given, where)
    assert "order-channels" not in {rewrite.rule for rewrite in change.rewrites}
    found = [operation.code for operation in lower(prepared).program.operations]
    assert found.count("TRANSPOSE") == 3


def test_an_order_that_counts_is_not_put_together_channel_by_channel(tmp_path):
    net = Net(3)
    shuffled = net.shuffle(net.add("Mul", f"{net.conv('x', 'a', 24)},a", "m", [24]), "s", groups=4)
    net.add("Mul", f"{shuffled},{net.constant('each', np.ones((1, 24, 1, 1), np.float32))}", "y", [24])
    assert codes(net.model("y"), tmp_path).count("TRANSPOSE") == 1


def test_a_convolution_gets_all_the_channels_of_a_half_from_few_pieces(tmp_path):
    convolutions = {"CONV_2D", "DEPTHWISE_CONV_2D"}
    found = [code for code in codes(network(1).model("y"), tmp_path) if code not in convolutions]
    # Two inputs cut in halves; one half of each into the block, the others past it.
    assert sorted(found) == ["CONCATENATION", "CONCATENATION", "SPLIT", "SPLIT"]


def test_values_that_kept_their_names_kept_their_channels(tmp_path):
    given = network(3).model("y")
    _, prepared = convert(given, tmp_path)
    names = {value.name for item in given.graph for value in item.outputs}
    shared = [value.name for item in prepared.graph for value in item.outputs if value.name in names]
    feeds = feeds_of(given)
    with Executor(given, shared) as one, Executor(prepared, shared) as two:
        expected, got = one.run(feeds), two.run(feeds)
    assert {"u0_5", "u1_past"}.isdisjoint(shared)
    assert "y" in shared
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * np.abs(array).max())


def test_a_shuffle_stays_where_the_order_is_an_output(tmp_path):
    net = Net(3)
    net.shuffle(net.conv("x", "a", 8), "y", groups=4)
    net.conv("y", "z", 4)
    given = net.model("y", "z")
    assert error(given, tmp_path) < 1e-5


def test_an_input_keeps_its_order_and_is_shuffled_by_the_weights_of_its_reader(tmp_path):
    net = Net(8)
    net.conv(net.shuffle("x", "s"), "y", 4)
    given = net.model("y")
    assert error(given, tmp_path) < 1e-5
    assert codes(given, tmp_path) == ["CONV_2D"]


def test_a_grouped_convolution_gets_its_own_channels(tmp_path):
    net = Net(3)
    net.conv(net.shuffle(net.conv("x", "a", 8), "s", groups=4), "y", 8, group=2)
    given = net.model("y")
    assert error(given, tmp_path) < 1e-5
    assert "TRANSPOSE" not in codes(given, tmp_path)


def test_channels_wanted_twice_are_left_alone(tmp_path):
    net = Net(3)
    index = net.constant("index", np.array([3, 1, 1, 0]))
    net.conv(net.add("Gather", f"{net.conv('x', 'a', 4)},{index}", "g", [4], axis=1), "y", 4)
    assert error(net.model("y"), tmp_path) < 1e-5


@pytest.mark.parametrize("seed", range(24))
def test_whatever_reads_a_shuffled_value_reads_the_same(tmp_path, seed):
    """Random moves between random readers, some of which mind the order."""
    random = np.random.default_rng(seed)
    net = Net(4, seed)
    live = [net.conv("x", "a", 8), net.conv("x", "b", 8), "x"]
    for number in range(8):
        name, kind = f"v{number}", random.integers(7)
        x = str(random.choice([value for value in live if net.channels[value] % 2 == 0]))
        count = net.channels[x]
        if kind < 3:
            live.append(net.shuffle(x, name))
        elif kind == 3:
            live.extend(net.split(x, [count // 2, count // 2], [f"{name}l", f"{name}r"]))
        elif kind == 4:
            live.append(net.concat([x, str(random.choice(live))], name))
        elif kind == 5:
            live.append(net.conv(x, name, count, group=count, kernel=3))
        else:
            live.append(net.add("Mul", f"{x},{x}", name, [count]))
    ends = [net.conv(value, f"e{number}", 2) for number, value in enumerate(live[3:])]
    outputs = [*ends, *(value for value in live[3:] if random.random() < 0.2)]
    assert error(net.model(*outputs), tmp_path) < 1e-5
