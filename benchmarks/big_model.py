"""How much memory and time simplifying a model of many GB takes.

    python -m benchmarks.big_model [--gigabytes 6] [--folder DIR]

Writes a model of products with distinct pseudo-random weights in external data, copies its data file once
as the measure of the disk, and runs ``edgeopt optimize`` on it in a process of its own. Prints the peak of
that process's anonymous memory (RssAnon: what cannot be dropped; pages of mapped files can), its seconds,
and those of the plain copy. Needs about two and a half times the model's size on disk, and removes it again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.large_model import layers_of, write


def synced(path: Path) -> None:
    """Waits until a file lies on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder by default")
    arguments = parser.parse_args()
    layers = layers_of(arguments.gigabytes)
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-big-", dir=arguments.folder))
    try:
        model = write(folder, layers)
        size = (folder / "large.data").stat().st_size
        start = time.perf_counter()
        shutil.copyfile(folder / "large.data", folder / "copy.data")
        synced(folder / "copy.data")
        copied = time.perf_counter() - start
        (folder / "copy.data").unlink()
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.anonymous_memory", "optimize"]
        command += [str(model), "-o", str(folder / "out.onnx")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        written = max(folder.glob("out.onnx*"), key=lambda path: path.stat().st_size)
        synced(written)
        taken = time.perf_counter() - start
        code, peak = map(int, done.stdout.split()[-3:-1])
        if code or written.stat().st_size < size:
            raise SystemExit(f"optimize ended with {code}: {done.stderr}")
        print(
            f"{size / 1e9:.2f} GB in {layers} weights: anonymous memory {peak / 1e6:.0f} MB at most, "
            f"{taken:.1f} s; a plain copy of the data {copied:.1f} s"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
