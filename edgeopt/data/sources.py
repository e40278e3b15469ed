"""Where samples come from: files of arrays, folders of images, a user's function.

A source hands out raw samples, one mapping of names to arrays each, with ``label`` among them where it
has labels. Nothing is unpickled, and nothing is read before it is needed.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import user_code
from edgeopt.data.npz import read_npz
from edgeopt.errors import DataError, EdgeoptError

Sample = Mapping[str, Any]
"""One raw sample: arrays by name, and ``label`` where there is one."""

LABEL = "label"
UNNAMED = ""
"""The name of an array whose source does not name it: it goes to the model's only input."""

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Source(ABC):
    """Raw samples in a fixed order.

    Attributes:
        where: The file, folder or function, for messages.
        images: Samples are uint8 images that want preprocessing.
    """

    where: str
    images: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Streams the samples of these indices, which ascend."""

    def part(self, index: int) -> str | None:
        """The part that the source itself assigns a sample to, or ``None``."""
        return None

    @property
    def split(self) -> bool:
        """Whether the source itself assigns its samples to parts."""
        return False

    def labels(self, indices: Sequence[int]) -> list[Any]:
        """The labels of these samples, without the rest of them where that is possible."""
        return [sample.get(LABEL) for sample in self.rows(indices)]

    def digest(self, sample: Sample, index: int) -> bytes:
        """A digest of one sample's inputs, its label aside."""
        return digest({name: value for name, value in sample.items() if name != LABEL})


class ArraySource(Source):
    """Arrays with samples along the first axis."""

    def __init__(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        self.where = where
        self.arrays = dict(arrays)
        if not set(self.arrays) - {LABEL}:
            what = "no arrays but labels" if self.arrays else "no arrays"
            raise DataError(f"the file holds {what}", where=where)
        for name, array in self.arrays.items():
            if array.ndim == 0:
                raise DataError(f"the array {name!r} has no axis of samples", where=where)
            if array.dtype.kind not in "biuf" and name != LABEL:
                raise DataError(f"the array {name!r} is of {array.dtype}, which is no number", where=where)
        counts = {name: len(array) for name, array in self.arrays.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError("the arrays differ in their number of samples", where=f"{where}: {listed}")
        self._length = next(iter(counts.values()))

    def __len__(self) -> int:
        return self._length

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Streams rows; an array's memory is touched only where it is read."""
        for index in indices:
            yield {name: np.array(array[index]) for name, array in self.arrays.items()}

    def labels(self, indices: Sequence[int]) -> list[Any]:
        """Reads the labels alone."""
        found = self.arrays.get(LABEL)
        return [None if found is None else found[index] for index in indices]


class ImageSource(Source):
    """A folder of images: a ``labels.csv`` (columns file, label and perhaps split), or a folder a class.

    Images lie beside the labels file or in its folder ``images``; they are decoded when read, to RGB.
    """

    images = True

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        listing = folder / "labels.csv"
        self.files: list[Path] = []
        self.values: list[Any] = []
        self.parts: list[str | None] = []
        if listing.is_file():
            self._read(listing)
        else:
            classes = sorted(path for path in folder.iterdir() if path.is_dir())
            for number, path in enumerate(classes):
                found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
                self.files += found
                self.values += [number] * len(found)
                self.parts += [None] * len(found)
            if not self.files:  # a flat folder: images without labels
                self.files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
                self.values = [None] * len(self.files)
                self.parts = [None] * len(self.files)

    def _read(self, listing: Path) -> None:
        folder = listing.parent
        with listing.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            if "file" not in columns or "label" not in columns:
                raise DataError(
                    "a labels file needs the columns file and label",
                    where=f"{listing}:1: {', '.join(columns)}",
                )
            for line, row in enumerate(reader, 2):
                path = folder / row["file"]
                if not path.is_file():
                    path = folder / "images" / row["file"]
                if not path.is_file():
                    raise DataError(f"there is no image {row['file']!r}", where=f"{listing}:{line}")
                try:
                    value = float(row["label"])
                except ValueError:
                    raise DataError(
                        f"the label {row['label']!r} is no number", where=f"{listing}:{line}"
                    ) from None
                self.files.append(path)
                self.values.append(int(value) if value.is_integer() else value)
                self.parts.append(part_name(row["split"], f"{listing}:{line}") if row.get("split") else None)

    @property
    def split(self) -> bool:
        """Whether the labels file has a column split."""
        return any(part is not None for part in self.parts)

    def part(self, index: int) -> str | None:
        """The part in the column split."""
        return self.parts[index]

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Decodes one image after another: uint8 [height, width, 3]."""
        from PIL import Image, UnidentifiedImageError

        for index in indices:
            try:
                with Image.open(self.files[index]) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (UnidentifiedImageError, OSError) as failure:
                raise DataError(f"cannot decode an image: {failure}", where=str(self.files[index])) from None
            sample: dict[str, Any] = {UNNAMED: pixels}
            if self.values[index] is not None:
                sample[LABEL] = self.values[index]
            yield sample

    def labels(self, indices: Sequence[int]) -> list[Any]:
        """The labels from the listing."""
        return [self.values[index] for index in indices]

    def digest(self, sample: Sample, index: int) -> bytes:
        """A digest of the file's bytes."""
        return hashlib.blake2b(self.files[index].read_bytes(), digest_size=16).digest()


class FunctionSource(Source):
    """What a user's function returns, called without arguments.

    It returns a mapping of arrays, samples first, as an ``.npz`` holds them (see ``open_function``), or
    an iterable of samples: a mapping of arrays, perhaps with ``label``; a pair (input, label); or one
    array, for a model with one input. A generator is called anew for every reading, so that it need
    not fit into memory; it must give the same samples each time.
    """

    def __init__(self, function: Any, first: Iterable[Any], where: str) -> None:
        self.where = where
        self._function = function
        self._items: Sequence[Any] | None = None
        if isinstance(first, Sequence) or hasattr(first, "__getitem__"):
            self._items = first  # type: ignore[assignment]  # duck-typed sequences, as torch's data sets are
            self._length = len(self._items)  # type: ignore[arg-type]
        else:
            self._length = sum(1 for _ in _guarded(lambda: first, where))

    def __len__(self) -> int:
        return self._length

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Streams the samples; a generator runs from its beginning."""
        if self._items is not None:
            for index in indices:
                yield as_sample(self._items[index], self.where, index)
            return
        wanted = iter(indices)
        target = next(wanted, None)
        for index, item in enumerate(_guarded(self._function, self.where)):
            if target is None:
                return
            if index == target:
                yield as_sample(item, self.where, index)
                target = next(wanted, None)
        if target is not None:
            raise DataError(
                f"the function gave {self._length} samples at first and fewer when called again",
                where=self.where,
            )


def _guarded(function: Callable[[], Iterable[Any]], where: str) -> Iterator[Any]:
    """Iterates over what a user's function returns, and says so where it fails.

    Raises:
        DataError: It fails.
    """
    count = 0
    try:
        for item in function():
            yield item
            count += 1
    except (EdgeoptError, GeneratorExit):
        raise
    except Exception as failure:
        raise DataError(f"{where} failed at sample {count}: {type(failure).__name__}: {failure}") from failure


def as_sample(item: Any, where: str, index: int) -> Sample:
    """Turns what a function yields into a sample."""
    if isinstance(item, Mapping):
        return item
    if isinstance(item, tuple) and len(item) == 2:
        return {UNNAMED: np.asarray(item[0]), LABEL: item[1]}
    try:
        array = np.asarray(item)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"sample {index} is a {type(item).__name__}",
            where=where,
            hint="yield a mapping of arrays, a pair (input, label) or one array",
        )
    return {UNNAMED: array}


def open_function(name: str, *, base: Path | None, code: bool) -> Source:
    """Calls a user's function and opens what it returns.

    Raises:
        UserError: It cannot be imported, or ``code`` is False.
        DataError: It fails, or returns nothing that holds samples.
    """
    function = user_code.load(name, base=base, allowed=code)
    if not callable(function):
        raise DataError(f"{name!r} is no function")
    try:
        found = function()
    except Exception as failure:
        raise DataError(f"{name} failed: {type(failure).__name__}: {failure}") from failure
    if isinstance(found, Mapping):
        return ArraySource({key: np.asarray(value) for key, value in found.items()}, name)
    if isinstance(found, np.ndarray):
        return ArraySource({UNNAMED: found}, name)
    if not isinstance(found, Iterable) and not hasattr(found, "__getitem__"):
        raise DataError(f"{name} returned a {type(found).__name__}, which holds no samples")
    return FunctionSource(function, found, name)


def open_path(path: Path) -> Source:
    """Opens an ``.npz`` or ``.npy`` file or a folder of images.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    if path.is_dir():
        return ImageSource(path)
    if not path.exists():
        raise DataError(f"there is no file or folder {str(path)!r}")
    try:
        if path.suffix == ".npy":
            return ArraySource({UNNAMED: np.load(path, mmap_mode="r", allow_pickle=False)}, str(path))
        if path.suffix == ".npz":
            return ArraySource(read_npz(path), str(path))
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as failure:
        reason = "it holds Python objects" if "allow_pickle" in str(failure) else str(failure)
        raise DataError(f"cannot read the arrays: {reason}", where=str(path)) from None
    raise DataError(
        f"{path.name!r} is no kind of data that edgeopt reads",
        where=str(path),
        hint=".npz, .npy, a folder of images, or package.module:function",
    )


def part_name(text: str, where: str) -> str:
    """Reads the name of a part, such as ``calib``, ``val`` or ``test``."""
    for part, prefixes in {
        "calibrate": ("calib", "train"),
        "validate": ("val",),
        "evaluate": ("eval", "test"),
    }.items():
        if text.strip().lower().startswith(prefixes):
            return part
    raise DataError(
        f"{text!r} is no part of the data", where=where, hint="calibration, validation or evaluation"
    )


def digest(value: Any) -> bytes:
    """A digest of arrays, numbers and text, nested in mappings and sequences.

    Raises:
        DataError: A value of another kind.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(state, value)
    return state.digest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value):
            state.update(f"{name}\0".encode())
            _feed(state, value[name])
    elif isinstance(value, (str, bytes, bool, int, float)) or value is None:
        state.update(f"{type(value).__name__}:{value!r}\0".encode())
    elif isinstance(value, (list, tuple)):
        state.update(f"[{len(value)}\0".encode())
        for item in value:
            _feed(state, item)
    else:
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise DataError(f"a sample holds a {type(value).__name__}, which is no array, number or text")
        state.update(f"{array.dtype.str}{array.shape}\0".encode())
        state.update(np.ascontiguousarray(array).tobytes())
