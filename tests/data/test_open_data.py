from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeopt import metrics
from edgeopt.data import Data, DataSpec, open_data
from edgeopt.errors import DataError, UserError
from edgeopt.session import TensorSpec

INPUT = [TensorSpec("features", "float32", ("batch", 3))]
LOGITS = [TensorSpec("logits", "float32", ("batch", 4))]


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def opened(path: Path | str, inputs: Any = INPUT, metric: str | None = None, **spec: Any) -> Data:
    judge = metrics.find(metric) if metric else None
    return open_data(DataSpec(path=str(path), **spec), inputs, judge, outputs=LOGITS)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def features(samples: Any) -> np.ndarray:
    return np.concatenate([feeds["features"] for feeds in samples.feeds(7)])


def test_a_single_file_is_split_by_index_and_validation_set_aside(tmp_path: Path) -> None:
    values = rows(500)
    data = opened(save(tmp_path / "d.npz", features=values, label=np.zeros(500, int)), metric="top1")
    calibration = values[::5]
    aside = np.arange(100) % 5 == 4
    np.testing.assert_array_equal(features(data.calibrate), calibration[~aside])
    np.testing.assert_array_equal(features(data.validate), calibration[aside])
    assert data.evaluate is not None and len(data.evaluate) == 400
    assert data.notes == ()


def test_below_fifty_calibration_samples_validation_is_calibration_and_a_note_says_so(tmp_path: Path) -> None:
    data = opened(save(tmp_path / "d.npz", features=rows(245)))
    assert data.calibrate is data.validate
    assert "49 calibration samples are too few" in data.notes[0]


def test_a_folder_gives_its_parts_compressed_or_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", features=rows(60, 1))
    np.savez_compressed(tmp_path / "validation.npz", features=rows(10, 2))
    np.savez_compressed(tmp_path / "evaluation.npz", features=rows(20, 3), label=np.arange(20) % 4)
    data = opened(tmp_path, metric="top1")
    np.testing.assert_array_equal(features(data.calibrate), rows(60, 1))
    np.testing.assert_array_equal(features(data.validate), rows(10, 2))
    assert data.evaluate is not None and len(data.evaluate) == 20


def test_a_limit_is_spread_evenly(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", features=rows(100))
    spec = {"calibrate": {"path": str(path), "samples": 4}}
    data = open_data(DataSpec.model_validate(spec), INPUT)
    np.testing.assert_array_equal(features(data.calibrate), rows(100)[[0, 25, 50, 75]])


def test_metric_and_harness_may_stand_under_evaluate() -> None:
    spec = DataSpec.model_validate({"evaluate": {"path": "e.npz", "metric": "top1", "samples": 3}})
    assert spec.metric == "top1"
    assert spec.evaluate is not None and spec.evaluate.samples == 3
    with pytest.raises(ValueError, match="given twice"):
        DataSpec.model_validate({"metric": "top5", "evaluate": {"path": "e.npz", "metric": "top1"}})


def test_npy_goes_to_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", rows(10))
    np.testing.assert_array_equal(features(opened(tmp_path / "d.npy").calibrate), rows(10)[::5])


def test_large_arrays_are_mapped_not_read(tmp_path: Path) -> None:
    from edgeopt.data.npz import read_npz

    arrays = read_npz(save(tmp_path / "d.npz", features=rows(50), label=np.arange(50)))
    assert isinstance(arrays["features"], np.memmap)
    np.testing.assert_array_equal(arrays["features"], rows(50))
    np.testing.assert_array_equal(arrays["label"], np.arange(50))


def test_compressed_arrays_above_the_limit_are_unpacked_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeopt.data.npz.IN_MEMORY", 100)
    np.savez_compressed(tmp_path / "d.npz", features=np.asfortranarray(rows(50)))
    np.testing.assert_array_equal(features(opened(tmp_path / "d.npz").calibrate), rows(50)[::5])


# ---- errors, each with its sentence


def test_a_wrong_input_name_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(save(tmp_path / "d.npz", feature=rows(10)))
    assert "the data hold no array for the model's input 'features'; they hold 'feature'" in str(caught.value)
    assert "nearest: feature" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_wrong_shape_is_shown_beside_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the shape \[5\] and the input 'features' is \[batch, 3\]"):
        opened(save(tmp_path / "d.npz", features=np.zeros((10, 5), np.float32)))


def test_axes_in_another_order_are_recognized(tmp_path: Path) -> None:
    image = [TensorSpec("image", "float32", ("batch", 3, 8, 9))]
    with pytest.raises(DataError, match="the axes are in another order"):
        opened(save(tmp_path / "d.npz", image=np.zeros((10, 8, 9, 3), np.float32)), image)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_nan_and_inf_name_the_sample(tmp_path: Path, value: float, kind: str) -> None:
    values = rows(10)
    values[7, 1] = value
    with pytest.raises(DataError, match=f"sample 7 has {kind} in 'features'"):
        opened(save(tmp_path / "d.npz", features=values))


def test_an_empty_data_set_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", features=rows(0))
    with pytest.raises(DataError, match="the data set to calibrate on is empty"):
        opened(tmp_path)


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_out_of_range_names_sample_and_classes(tmp_path: Path, label: int) -> None:
    labels = np.zeros(10, int)
    labels[6] = label
    with pytest.raises(DataError, match=f"label {label} of sample 6 is out of range: the model has 4 cl"):
        opened(save(tmp_path / "d.npz", features=rows(10), label=labels), metric="top1")


def test_labels_that_are_no_classes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no class index"):
        opened(save(tmp_path / "d.npz", features=rows(10), label=np.full(10, 0.5)), metric="top1")


def test_missing_labels_are_an_error_where_the_metric_needs_them(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", features=rows(10))
    with pytest.raises(DataError, match="the metric top1 needs labels, and the data have none"):
        opened(path, metric="top1")
    assert opened(path).calibrate is not None


def test_samples_in_both_parts_are_counted_in_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", features=rows(60))
    np.savez(tmp_path / "evaluation.npz", features=np.concatenate([rows(60)[[3, 9, 12]], rows(17, 5)]))
    notes = opened(tmp_path).notes
    assert any(
        note.startswith("warning: 2 of the 20 evaluation samples are also in the calib") for note in notes
    )
    assert any(
        note.startswith("warning: 1 of the 20 evaluation samples is also in the valid") for note in notes
    )


def test_arrays_of_different_lengths_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the arrays differ in their number of samples"):
        opened(save(tmp_path / "d.npz", features=rows(10), label=np.zeros(9)))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(2), np.zeros(3)]
    np.savez(tmp_path / "d.npz", features=ragged)
    with pytest.raises(DataError, match="it holds Python objects"):
        opened(tmp_path / "d.npz")


def test_a_file_that_is_missing_broken_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        opened(tmp_path / "none.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot read the arrays"):
        opened(tmp_path / "broken.npz")
    (tmp_path / "d.txt").write_text("1 2 3")
    with pytest.raises(DataError, match="no kind of data that edgeopt reads"):
        opened(tmp_path / "d.txt")
    with pytest.raises(DataError, match=r"the folder holds no calibration\.npz"):
        opened(tmp_path)


# ---- types and binding


def test_safe_conversions_are_made_and_noted(tmp_path: Path) -> None:
    data = opened(save(tmp_path / "d.npz", features=rows(10).astype(np.float64)))
    assert "'features' is converted from float64 to float32" in data.notes
    assert data.calibrate is not None and next(data.calibrate.feeds())["features"].dtype == np.float32
    ids = [TensorSpec("ids", "int32", ("batch", 3))]
    data = opened(save(tmp_path / "i.npz", ids=np.arange(30).reshape(10, 3)), ids)
    assert data.calibrate is not None and next(data.calibrate.feeds())["ids"].dtype == np.int32
    with pytest.raises(DataError, match="do not fit into the int32"):
        opened(save(tmp_path / "j.npz", ids=np.full((10, 3), 2**40)), ids)


def test_integers_become_floats_only_by_preprocessing(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", image=np.full((10, 4, 4, 3), 255, np.uint8))
    image = [TensorSpec("image", "float32", ("batch", 3, 4, 4))]
    nhwc = [TensorSpec("image", "float32", ("batch", 4, 4, 3))]
    with pytest.raises(DataError, match="declare the preprocessing"):
        opened(path, nhwc)
    data = opened(path, image, preprocess={"mean": [0.5], "std": [0.5]})
    assert data.calibrate is not None
    call = next(data.calibrate.feeds(2))
    np.testing.assert_allclose(call["image"], np.ones((2, 3, 4, 4)), rtol=1e-6)


def test_a_fixed_batch_of_one_gets_one_sample_a_call(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", features=rows(20))
    data = opened(path, [TensorSpec("features", "float32", (1, 3))])
    assert data.calibrate is not None
    assert [feeds["features"].shape for feeds in data.calibrate.feeds(8)] == [(1, 3)] * 4
    with pytest.raises(DataError, match="takes exactly 8 samples a call"):
        opened(path, [TensorSpec("features", "float32", (8, 3))])


def test_a_model_without_a_batch_axis_takes_a_row_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", features=rows(20))
    data = opened(path, [TensorSpec("features", "float32", (3,))])
    assert data.calibrate is not None
    assert [feeds["features"].shape for feeds in data.calibrate.feeds(8)] == [(3,)] * 4


def test_two_inputs_are_bound_by_name_and_further_arrays_left_to_the_metric(tmp_path: Path) -> None:
    inputs = [TensorSpec("ids", "int64", ("b", "t")), TensorSpec("mask", "int64", ("b", "t"))]
    ids = np.arange(40).reshape(10, 4)
    data = opened(save(tmp_path / "d.npz", mask=ids + 1, ids=ids, text=ids), inputs)
    assert data.calibrate is not None
    call = next(data.calibrate.feeds(2))
    np.testing.assert_array_equal(call["ids"] + 1, call["mask"])
    assert any("text: no input of the model" in note for note in data.notes)


# ---- code


def sequences() -> list[dict[str, Any]]:
    return [{"ids": np.arange(length), "label": length} for length in (3, 3, 4, 4, 3)]


def generated() -> Any:
    return ((row, index % 4) for index, row in enumerate(rows(30)))


def breaking() -> Any:
    yield from rows(3)
    raise RuntimeError("the disk is gone")


def endless_objects() -> list[Any]:
    return [object()] * 10


def test_sequences_of_varying_length_share_calls_where_shapes_are_equal() -> None:
    spec = {"calibrate": f"{__name__}:sequences"}
    data = open_data(DataSpec.model_validate(spec), [TensorSpec("ids", "int64", ("b", "t"))])
    assert data.calibrate is not None
    assert [feeds["ids"].shape for feeds in data.calibrate.feeds(8)] == [(2, 3), (2, 4), (1, 3)]
    assert data.calibrate.labels is not None and data.calibrate.labels.tolist() == [3, 3, 4, 4, 3]


def test_a_generator_is_split_and_read_again() -> None:
    data = opened(f"{__name__}:generated", metric="top1")
    for _ in range(2):
        np.testing.assert_array_equal(features(data.calibrate), rows(30)[::5])
    assert data.calibrate is not None and data.calibrate.labels is not None
    assert data.calibrate.labels.tolist() == [0, 1, 2, 3, 0, 1]


def test_no_code_refuses_functions() -> None:
    with pytest.raises(UserError, match="--no-code refuses it"):
        open_data(DataSpec(path=f"{__name__}:generated"), INPUT, code=False)


def test_what_a_function_may_return() -> None:
    with pytest.raises(DataError, match="sample 0 is a object"):
        opened(f"{__name__}:endless_objects")
    with pytest.raises(DataError, match="failed at sample 3: RuntimeError: the disk is gone"):
        opened(f"{__name__}:breaking")
    with pytest.raises(UserError, match="has no 'generate'") as caught:
        opened(f"{__name__}:generate")
    assert "generated" in caught.value.nearest


# ---- images


def photograph(path: Path, value: int, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


IMAGE = [TensorSpec("image", "float32", ("batch", 3, 4, 4))]


def test_a_labels_file_may_say_the_parts(tmp_path: Path) -> None:
    lines = ["file,label,split"]
    for index in range(6):
        photograph(tmp_path / "images" / f"{index}.png", index * 10)
        lines.append(f"{index}.png,{index % 4},{'calib' if index < 2 else 'eval'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = opened(tmp_path, IMAGE, "top1", preprocess={"crop": 4, "scale": 1})
    assert data.calibrate is not None and data.evaluate is not None
    values = [feeds["image"].mean() for feeds in data.calibrate.feeds()]
    assert values == [0, 10]
    assert len(data.evaluate) == 4


def test_a_folder_a_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for index in range(5):
            photograph(tmp_path / name / f"{index}.png", index)
    data = opened(tmp_path, IMAGE, preprocess={"resize": [4, 4]})
    assert data.calibrate is not None and data.calibrate.labels is not None
    assert data.calibrate.labels.tolist() == [0, 1]


def test_errors_of_a_labels_file_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\nnone.png,1\n")
    with pytest.raises(DataError, match=r"labels\.csv:2"):
        opened(tmp_path, IMAGE)
    (tmp_path / "labels.csv").write_text("image,class\n")
    with pytest.raises(DataError, match="needs the columns file and label"):
        opened(tmp_path, IMAGE)


def test_the_digest_depends_on_samples_and_preprocessing(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (10, 4, 4, 3)).astype(np.uint8)
    path = save(tmp_path / "d.npz", image=image)
    first = opened(path, IMAGE, preprocess={"scale": 1}).calibrate
    same = opened(path, IMAGE, preprocess={"scale": 1}).calibrate
    scaled = opened(path, IMAGE, preprocess={}).calibrate
    image[0, 0, 0, 0] ^= 1
    changed = opened(save(tmp_path / "e.npz", image=image), IMAGE, preprocess={"scale": 1}).calibrate
    assert first is not None and same is not None and scaled is not None and changed is not None
    assert first.digest == same.digest
    assert len({first.digest, scaled.digest, changed.digest}) == 3
