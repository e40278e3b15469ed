"""The agent: what runs on a board, and nothing else does.

This file alone is sent to the board's Python through the connection itself, so it needs no copy on the
board's disk. It speaks frames on stdin and stdout and opens no port. It runs on Python 3.6 and needs the
standard library; numpy and a runtime (onnxruntime, ai_edge_litert or tflite_runtime) only to run models.

What it leaves behind is nothing: it ends when stdin closes or stays silent, and the last agent of a user
deletes the folder that the files lie in. After a lost connection a small process keeps the folder for a
moment, so that whoever comes back need not send the files again, deletes it and ends. What a power cut
leaves is deleted by the next run.

A frame is ``>2sIIQ`` (magic, CRC-32, length of the header, length of the body), a header in JSON and a body
of bytes. A request has ``id`` and ``op``; the answer has the same ``id``, or an ``error``.
"""

import ctypes
import fcntl
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import threading
import time
import zlib
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

PROTOCOL = 1
READY = b"\n\x01edgeopt-agent %d\n" % PROTOCOL
"""Written once on stdout before the first frame; whatever a login shell prints comes before it."""

FOLDER = ".edgeopt-board"
"""The folder under the user's home; it exists only while agents run."""

CAP = 2 << 30
"""Bytes of files that the folder holds at most, those of this session aside."""

MARGIN = 8 << 20
"""Bytes of the disk that stay free."""

SHA = re.compile("[0-9a-f]{64}")
HEAD = struct.Struct(">2sIIQ")
MAGIC = b"EO"
MARK = 0x4544
"""What no process, group or user is: getpriority of it marks a place for an emulator."""
ROOT = os.environ.get("EDGEOPT_BOARD_ROOT", "")
"""The root that /proc and /sys are read under; other than "" only where a board is made up."""

START = os.environ.get("EDGEOPT_START", sys.executable).split("\n")
"""How a process of this Python is started: by itself, or through the loader of a userland that was sent."""

CLEANER = """
import fcntl, os, shutil, sys, time
folder, grace = sys.argv[1], float(sys.argv[2])
if os.read(0, 1):  # until the agent is gone: with a word if it has cleaned up itself
    sys.exit()
end = time.monotonic() + grace
while time.monotonic() < end and os.path.exists(folder):
    time.sleep(0.2)
try:
    path = os.path.join(folder, "lock")
    lock = os.open(path, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.fstat(lock).st_ino == os.stat(path).st_ino:
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder) or os.path.exists(path):  # a new agent's lock
                break
            time.sleep(0.1)  # what deletes the userland was at work in it too
except OSError:
    pass  # gone, or another agent is at work and will delete it
"""


class Refusal(Exception):
    """A request that cannot be met.

    Args:
        kind: What went wrong, as a word.
        message: One plain sentence.
        details: Figures that belong to it.
    """

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details


class Broken(Exception):
    """The stream holds something that is no frame."""


# ---- frames


def pack(header: Dict[str, Any], pieces: Tuple[Any, ...] = ()) -> List[Any]:
    """Returns a frame as a list of buffers to be written one after another."""
    text = json.dumps(header).encode()
    views = [memoryview(piece).cast("B") if len(piece) else memoryview(b"") for piece in pieces]
    check = zlib.crc32(text)
    for view in views:
        check = zlib.crc32(view, check)
    return [HEAD.pack(MAGIC, check, len(text), sum(len(view) for view in views)) + text] + list(views)


def unpack(read: Callable[[int], bytes]) -> Tuple[Dict[str, Any], bytearray]:
    """Reads one frame.

    Args:
        read: Returns at most so many bytes, and none only at the end of the stream.

    Raises:
        EOFError: The stream ends.
        Broken: It holds something else.
    """
    magic, check, header, body = HEAD.unpack(bytes(_exactly(read, HEAD.size)))
    if magic != MAGIC or header > 1 << 26 or body > 1 << 40:
        raise Broken("the stream holds something that is no frame")
    text, data = _exactly(read, header), _exactly(read, body)
    if zlib.crc32(data, zlib.crc32(text)) != check:
        raise Broken("a frame arrived damaged")
    return json.loads(bytes(text).decode()), data


def _exactly(read: Callable[[int], bytes], size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        piece = read(min(size - len(data), 1 << 16))
        if not piece:
            raise EOFError("the stream ends")
        data += piece
    return data


def describe(arrays: List[Any]) -> List[Dict[str, Any]]:
    """Describes arrays for a frame's header; their bytes are its body, little-endian, C order."""
    return [
        {"dtype": str(array.dtype), "shape": list(array.shape), "bytes": array.nbytes} for array in arrays
    ]


def arrays_of(described: List[Dict[str, Any]], body: Any) -> List[Any]:
    """Cuts a frame's body into the arrays that its header describes."""
    import numpy

    found, start = [], 0
    view = memoryview(body)
    for entry in described:
        piece = view[start : start + entry["bytes"]]
        found.append(numpy.frombuffer(piece, numpy.dtype(entry["dtype"])).reshape(entry["shape"]))
        start += entry["bytes"]
    return found


# ---- the folder


class Store:
    """The folder that the files lie in while agents run, shared by the agents of one user.

    Every agent holds a shared lock; who can take it exclusively is the last one and deletes everything.

    Args:
        folder: Another place than the user's home, then the system's folder for temporary files.

    Raises:
        Refusal: None of these can be written.
    """

    def __init__(self, folder: Optional[str] = None) -> None:
        home = os.path.join(os.path.expanduser("~"), FOLDER)
        spare = os.path.join(os.environ.get("TMPDIR") or "/tmp", "%s-%d" % (FOLDER[1:], os.getuid()))
        failure = None  # type: Optional[OSError]
        for path in [os.path.expanduser(folder)] if folder else [home, spare]:
            try:
                self._claim(os.path.abspath(path))
                return
            except OSError as error:
                failure = error
        raise Refusal("folder", "no folder on the board can be written: %s" % failure)

    def _claim(self, path: str) -> None:
        for _ in range(200):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
            info = os.lstat(path)
            if not os.path.isdir(path) or os.path.islink(path) or info.st_uid != os.getuid():
                raise PermissionError("%s is not this user's own folder" % path)
            try:
                lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
            except FileNotFoundError:  # another agent has just deleted the folder
                continue
            try:
                alone = _lock(lock, fcntl.LOCK_EX)
                if alone and self._same(path, lock):
                    shutil.rmtree(os.path.join(path, "runs"), ignore_errors=True)
                if _lock(lock, fcntl.LOCK_SH) and self._same(path, lock):
                    self.folder, self.lock, self.alone = path, lock, alone
                    self.blobs, self.runs = os.path.join(path, "blobs"), os.path.join(path, "runs")
                    os.makedirs(self.blobs, exist_ok=True)
                    os.makedirs(self.runs, exist_ok=True)
                    return
            except OSError:
                os.close(lock)
                raise
            os.close(lock)
            time.sleep(0.05)
        raise PermissionError("%s is locked by another process" % path)

    @staticmethod
    def _same(path: str, lock: int) -> bool:
        try:
            return os.stat(os.path.join(path, "lock")).st_ino == os.fstat(lock).st_ino
        except OSError:
            return False

    def blob(self, sha: str) -> str:
        """The path of a file by the digest of its content."""
        if not SHA.fullmatch(sha):
            raise Refusal("request", "a digest is 64 hexadecimal digits")
        return os.path.join(self.blobs, sha)

    def free(self) -> int:
        """Bytes that this user may still write."""
        info = os.statvfs(self.folder)
        return info.f_bavail * info.f_frsize

    def make_room(self, size: int, keep: List[str]) -> None:
        """Deletes the files used longest ago that are above the cap or in the way.

        Raises:
            Refusal: There is too little space even so.
        """
        entries = []
        for name in os.listdir(self.blobs):
            if name[:64] not in keep:
                try:
                    info = os.stat(os.path.join(self.blobs, name))
                except OSError:
                    continue
                entries.append((info.st_mtime, info.st_size, name))
        total = sum(entry[1] for entry in entries)
        for _, held, name in sorted(entries):
            if total <= CAP and self.free() >= size + MARGIN:
                break
            os.unlink(os.path.join(self.blobs, name))
            total -= held
        if self.free() < size + MARGIN:
            raise Refusal(
                "disk",
                "the board has %d MB of disk free in %s, and %d MB are needed"
                % (self.free() >> 20, self.folder, (size + MARGIN) >> 20),
                free=self.free(),
                needed=size + MARGIN,
                folder=self.folder,
            )

    def remove(self) -> None:
        """Deletes the folder, where no other agent uses it."""
        try:
            if _lock(self.lock, fcntl.LOCK_EX) and self._same(self.folder, self.lock):
                for _ in range(50):
                    shutil.rmtree(self.folder, ignore_errors=True)
                    lock = os.path.join(self.folder, "lock")
                    if not os.path.exists(self.folder) or os.path.exists(lock):  # a new agent's
                        return
                    time.sleep(0.1)  # what deletes the userland was at work in it too
        except OSError:
            return


def _lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ---- what the board is and does


def read_text(path: str) -> str:
    """A file's text without surrounding space and NULs; "" where it cannot be read."""
    try:
        with open(ROOT + path, "rb") as file:
            return file.read().decode("utf-8", "replace").strip("\0 \n\t")
    except OSError:
        return ""


def names_in(path: str) -> List[str]:
    """A folder's entries, sorted; none where it cannot be read."""
    try:
        return sorted(os.listdir(ROOT + path), key=lambda name: (len(name), name))
    except OSError:
        return []


def status(key: str, path: str = "/proc/self/status") -> Optional[int]:
    """A figure of /proc in bytes, such as VmHWM of this process."""
    text = read_text(path) if path != "/proc/self/status" else _own_status()
    for line in text.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _own_status() -> str:
    try:
        with open("/proc/self/status") as file:
            return file.read()
    except OSError:
        return ""


def state(full: bool = False) -> Dict[str, Any]:
    """Temperature in degrees Celsius, clocks in Hz, governors, and what holds the clock down.

    Args:
        full: Ask the Raspberry Pi's firmware too, which starts a process.
    """
    found = {}  # type: Dict[str, Any]
    temperatures = []
    for zone in names_in("/sys/class/thermal"):
        text = read_text("/sys/class/thermal/%s/temp" % zone) if zone.startswith("thermal_zone") else ""
        if re.fullmatch("-?[0-9]+", text):
            value = int(text) / 1000.0
            if 0 < value < 150:
                temperatures.append(value)
    if temperatures:
        found["temperature"] = max(temperatures)
    clocks, limits, tops = [], [], []  # type: List[int], List[int], List[int]
    governors = []
    base = "/sys/devices/system/cpu/cpufreq"
    for policy in names_in(base):
        values = [read_text("%s/%s/%s" % (base, policy, name)) for name in _CLOCKS]
        for text, group in zip(values, (clocks, limits, tops)):
            if text.isdigit():
                group.append(int(text) * 1000)
        if values[3]:
            governors.append(values[3])
    for name, seen in (("clock", clocks), ("clock_limit", limits), ("clock_maximum", tops)):
        if seen:
            found[name] = seen
    if governors:
        found["governor"] = sorted(set(governors))
    cooling, told = [], False
    for device in names_in("/sys/class/thermal"):
        if device.startswith("cooling_device"):
            kind = read_text("/sys/class/thermal/%s/type" % device)
            active = read_text("/sys/class/thermal/%s/cur_state" % device)
            if active.isdigit() and re.search("cpufreq|processor|cpu", kind, re.I):
                told = True
                cooling += [kind] * (int(active) > 0)
    firmware = read_text("/sys/devices/platform/soc/soc:firmware/get_throttled")
    if not firmware and full:
        firmware = _firmware()
    spoken = re.fullmatch("(0x)?[0-9a-fA-F]+", firmware) is not None
    bits = int(firmware, 16) & 0xF if spoken else 0
    reasons = [word for bit, word in enumerate(_THROTTLED) if bits >> bit & 1]
    if told or spoken:  # else nothing on this board says whether it is held down
        found["throttled"] = reasons + ["the kernel cools the processor"] * bool(cooling)
    return found


_CLOCKS = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq", "scaling_governor")
_THROTTLED = ("too little voltage", "the clock is capped", "throttled", "the soft temperature limit")


def _firmware() -> str:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return ""
    try:
        told = subprocess.check_output([tool, "get_throttled"], stderr=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.decode("ascii", "replace").strip().rpartition("=")[2]


def probe() -> Dict[str, Any]:
    """What a device profile is written from: processor, caches, memory, runtimes."""
    cpus = []
    for name in names_in("/sys/devices/system/cpu"):
        if not re.fullmatch("cpu[0-9]+", name):
            continue
        base = "/sys/devices/system/cpu/" + name
        caches = []
        for index in names_in(base + "/cache"):
            entry = [read_text("%s/cache/%s/%s" % (base, index, key)) for key in ("level", "type", "size")]
            if all(entry):
                caches.append(entry)
        clock = read_text(base + "/cpufreq/cpuinfo_max_freq")
        cpus.append(
            {"cpu": int(name[3:]), "clock": int(clock) * 1000 if clock.isdigit() else None, "caches": caches}
        )
    return {
        "machine": os.environ.get("EDGEOPT_BOARD_MACHINE") or platform.machine(),
        "model": model(),
        "compatible": read_text("/proc/device-tree/compatible").split("\0"),
        "cpuinfo": read_text("/proc/cpuinfo"),
        "cpus": cpus,
        "memory": status("MemTotal", "/proc/meminfo"),
        "copy": copy_speed(),
        "runtimes": {name: version_of(name) for name in RUNTIMES if importlib.util.find_spec(name)},
    }


def model() -> str:
    """What the board calls itself; "" where it does not."""
    for path in ("/proc/device-tree/model", "/sys/devices/virtual/dmi/id/product_name"):
        text = read_text(path)
        if text:
            return text
    return ""


def copy_speed(seconds: float = 1.0) -> float:
    """Bytes read plus written a second by one core that copies memory: the best of several copies."""
    free = status("MemAvailable", "/proc/meminfo") or 0
    size = (64 if free > 512 << 20 else 16) << 20  # larger than any cache of a small board
    source, sink = bytearray(size), memoryview(bytearray(size))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        sink[:] = source
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


# ---- runtimes

RUNTIMES = ("onnxruntime", "ai_edge_litert", "tflite_runtime", "tensorflow", "numpy")
FAMILIES = {
    "onnxruntime": ("onnxruntime",),
    "tflite": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite"),
}


def version_of(name: str) -> str:
    """The version of an installed package, without importing it where that can be."""
    try:
        metadata = importlib.import_module("importlib.metadata")
    except ImportError:  # Python 3.6 and 3.7
        try:
            return str(importlib.import_module(name).__version__)
        except (ImportError, AttributeError):
            return ""
    for package in (name, name.replace("_", "-"), name + "-gpu"):
        try:
            return str(metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return ""


def load_runtime(family: str) -> Any:
    """Imports the runtime that a model file needs.

    Raises:
        Refusal: The board has none.
    """
    failures = []
    for name in FAMILIES[family]:
        try:
            return importlib.import_module(name)
        except ImportError as failure:
            if importlib.util.find_spec(name.split(".")[0]):
                failures.append(str(failure))
        except Exception as failure:  # a broken runtime may raise anything at import
            failures.append(str(failure))
    raise Refusal(
        "runtime-missing",
        failures[0] if failures else "not installed",
        family=family,
        broken=bool(failures),
        python=sys.executable,
        version=list(sys.version_info[:2]),
        managed=os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")),
    )


class OnnxModel:
    """A model in onnxruntime."""

    def __init__(self, path: str, threads: int) -> None:
        runtime = load_runtime("onnxruntime")
        if hasattr(runtime, "disable_telemetry_events"):
            runtime.disable_telemetry_events()  # it is somebody else's machine
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [self._spec(item) for item in self.session.get_inputs()]
        self.outputs = [self._spec(item) for item in self.session.get_outputs()]
        self.names = [spec["name"] for spec in self.inputs]
        self.runtime = "onnxruntime %s" % runtime.__version__

    @staticmethod
    def _spec(item: Any) -> Dict[str, Any]:
        shape = [size if isinstance(size, (int, str)) else "?" for size in item.shape or ()]
        return {"name": item.name, "type": item.type, "shape": shape}

    def run(self, arrays: List[Any]) -> List[Any]:
        """Runs one call, inputs and outputs in the model's order."""
        found = self.session.run(None, dict(zip(self.names, arrays)))
        return list(found)


class TfliteModel:
    """A model in LiteRT or tflite-runtime."""

    def __init__(self, path: str, threads: int) -> None:
        module = load_runtime("tflite")
        self.interpreter = module.Interpreter(model_path=path, num_threads=threads)
        self.interpreter.allocate_tensors()
        self.inputs = [self._spec(item) for item in self.interpreter.get_input_details()]
        self.outputs = [self._spec(item) for item in self.interpreter.get_output_details()]
        package = module.__name__.split(".")[0]
        known = {"ai_edge_litert": "LiteRT", "tflite_runtime": "tflite-runtime"}
        self.runtime = ("%s %s" % (known.get(package, package), version_of(package))).strip()

    @staticmethod
    def _spec(item: Any) -> Dict[str, Any]:
        import numpy

        return {
            "name": item["name"],
            "index": int(item["index"]),
            "shape": [int(size) for size in item["shape"]],
            "type": numpy.dtype(item["dtype"]).name,
        }

    def run(self, arrays: List[Any]) -> List[Any]:
        """Runs one call, inputs and outputs in the file's order."""
        for spec, array in zip(self.inputs, arrays):
            self.interpreter.set_tensor(spec["index"], array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(spec["index"]) for spec in self.outputs]


# ---- the agent


class Agent:
    """Answers requests until the connection ends.

    Args:
        stdin: Requests.
        stdout: Answers.
        silence: Seconds without a byte after which the other side counts as gone.
    """

    def __init__(self, stdin: Any, stdout: Any, silence: float = 60.0) -> None:
        self.stdin, self.stdout, self.silence = stdin, stdout, silence
        self.grace = 0.0
        self.heard = time.monotonic()
        self.writing = threading.Lock()
        self.idle = threading.Event()  # not set while instructions are counted: the watch waits for it
        self.idle.set()
        self.ending = threading.RLock()  # a signal may arrive in the midst of a clean end
        self.requests = queue.Queue(8)  # type: queue.Queue[Tuple[Dict[str, Any], bytearray]]
        self.store = None  # type: Optional[Store]
        self.cleaner = None  # type: Optional[subprocess.Popen[bytes]]
        self.models = {}  # type: Dict[int, Any]
        self.folders = {}  # type: Dict[int, str]
        self.fed = {}  # type: Dict[int, Tuple[Any, List[Any]]]
        self.kept = []  # type: List[str]
        self.verified = set()  # type: set[str]
        self.environment = dict(os.environ)
        self.count = 0

    def serve(self) -> None:
        """Answers until ``bye``, then deletes everything."""
        self.stdout.write(READY)
        self.stdout.flush()
        for work in (self._listen, self._watch):
            threading.Thread(target=work, daemon=True).start()
        while True:
            header, body = self.requests.get()
            if header["op"] == "bye":
                with self.ending:
                    self.models.clear()
                    if self.store is not None:
                        self.store.remove()
                    self.store = None
                    self._dismiss_cleaner()
                    self._answer({"id": header["id"]})
                return
            try:
                found, arrays = getattr(self, "do_" + header["op"])(header, body)
                answer = dict(found, id=header["id"])
            except Refusal as refusal:
                error = {"kind": refusal.kind, "message": str(refusal), "details": refusal.details}
                answer, arrays = {"id": header["id"], "error": error}, []
            except Exception as failure:  # a runtime may raise anything; the other side tells the user
                kind = "memory" if isinstance(failure, MemoryError) else "runtime"
                error = {"kind": kind, "message": _sentence(failure)}
                answer, arrays = {"id": header["id"], "error": error}, []
            self._answer(answer, arrays)

    def _answer(self, header: Dict[str, Any], arrays: Any = ()) -> None:
        if arrays:
            import numpy

            arrays = [numpy.ascontiguousarray(array).reshape(numpy.shape(array)) for array in arrays]
            header = dict(header, arrays=describe(arrays))
        pieces = tuple(array.reshape(-1).view("uint8") if array.size else b"" for array in arrays)
        try:
            with self.writing:
                for piece in pack(header, pieces):
                    self.stdout.write(piece)
                self.stdout.flush()
        except OSError:
            self.vanish()

    def _listen(self) -> None:
        def read(size: int) -> bytes:
            data = self.stdin.read1(size)  # type: bytes
            self.heard = time.monotonic()
            return data

        try:
            while True:
                header, body = unpack(read)
                if header["op"] == "ping":
                    self._answer({"id": 0, "pong": True})
                else:
                    self.requests.put((header, body))
        except (EOFError, Broken, OSError, ValueError):
            self.vanish()

    def _watch(self) -> None:
        while True:
            time.sleep(min(5.0, self.silence / 4))
            self.idle.wait()
            if time.monotonic() - self.heard > self.silence:
                self.vanish()

    def vanish(self, *_: Any) -> NoReturn:
        """Ends at once; the folder is kept for a moment, for whoever comes back."""
        self.ending.acquire()  # never released: a clean end under way is finished first
        store = self.store
        if store is None:
            os._exit(0)
        for folder in list(self.folders.values()):
            shutil.rmtree(folder, ignore_errors=True)
        if self.cleaner is not None and self.cleaner.poll() is None:
            os._exit(0)  # which it hears
        try:
            if os.fork() == 0:
                self._become_cleaner(store.folder)
        except OSError:
            store.remove()
        os._exit(0)

    def _post_cleaner(self, folder: str) -> None:
        """Starts a small process that deletes the folder if this one is killed and nobody comes back."""
        try:
            self.cleaner = subprocess.Popen(
                self._cleaning(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,
            )
        except OSError:
            pass  # then only a killed agent leaves files, and only until somebody comes back

    def _dismiss_cleaner(self) -> None:
        if self.cleaner is None or self.cleaner.stdin is None:
            return
        try:
            self.cleaner.stdin.write(b"x")
            self.cleaner.stdin.close()
        except OSError:
            pass  # it is gone already
        try:
            self.cleaner.wait(5)
        except subprocess.TimeoutExpired:
            self.cleaner.kill()
        self.cleaner = None

    def _cleaning(self, folder: str) -> List[str]:
        # Without -B it would write bytecode into the userland, and make anew what was deleted meanwhile.
        return START + ["-B", "-S", "-E", "-c", CLEANER, folder, str(self.grace)]

    def _become_cleaner(self, folder: str) -> None:
        """Turns this process into a small one that is not a part of the connection."""
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            os.closerange(3, 256)  # the lock among them
            command = self._cleaning(folder)
            os.execve(command[0], command, self.environment)
        finally:
            os._exit(1)

    # requests

    def do_hello(self, header: Dict[str, Any], body: Any) -> Any:
        """Says who is there and opens the folder."""
        self.grace, self.silence = header.get("grace", 0.0), header.get("silence", self.silence)
        with self.ending:
            self.store = Store(header.get("folder"))
        if self.grace > 0 and self.cleaner is None:
            self._post_cleaner(self.store.folder)
        # Runtimes write caches and records of their own; these go where they will be deleted.
        for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
            os.environ[name] = self.store.runs
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "python": sys.executable,
            "version": list(sys.version_info[:3]),
            "machine": platform.machine(),
            "system": platform.system(),
            "name": platform.node(),
            "model": model(),
            "time": time.time(),
            "folder": self.store.folder,
            "alone": self.store.alone,
            "disk": self.store.free(),
            "memory": status("MemAvailable", "/proc/meminfo"),
        }, []

    def _folder(self) -> Store:
        if self.store is None:
            raise Refusal("request", "the first request is hello")
        return self.store

    def do_put(self, header: Dict[str, Any], body: Any) -> Any:
        """How much of a file is there already; makes room for the rest."""
        store, sha = self._folder(), header["sha"]
        path = store.blob(sha)
        if sha not in self.kept:
            self.kept.append(sha)
        if os.path.exists(path):
            if sha in self.verified or _digest(path) == sha:
                os.utime(path)
                self.verified.add(sha)
                return {"have": header["size"], "done": True}, []
            os.unlink(path)
        part = path + ".part"
        have = os.path.getsize(part) if os.path.exists(part) else 0
        if have > header["size"]:
            os.unlink(part)
            have = 0
        store.make_room(header["size"] - have, self.kept)
        return {"have": have, "done": False}, []

    def do_chunk(self, header: Dict[str, Any], body: Any) -> Any:
        """Writes a piece of a file."""
        part = self._folder().blob(header["sha"]) + ".part"
        try:
            with open(part, "r+b" if os.path.exists(part) else "w+b") as file:
                file.seek(header["offset"])
                file.write(body)
        except OSError as failure:
            raise Refusal("disk", "the board cannot write the file: %s" % failure.strerror) from failure
        return {}, []

    def do_done(self, header: Dict[str, Any], body: Any) -> Any:
        """Checks a file and gives it its name."""
        path = self._folder().blob(header["sha"])
        if _digest(path + ".part") != header["sha"]:
            os.unlink(path + ".part")
            raise Refusal("checksum", "the file arrived damaged")
        os.rename(path + ".part", path)
        self.verified.add(header["sha"])
        return {}, []

    def do_import(self, header: Dict[str, Any], body: Any) -> Any:
        """Loads the runtime's code, so that its memory can be told from the model's."""
        import numpy

        load_runtime(header["runtime"])
        return {"numpy": numpy.__version__}, []

    def do_open(self, header: Dict[str, Any], body: Any) -> Any:
        """Opens a model whose files are all there."""
        store = self._folder()
        load_runtime(header["runtime"])
        try:
            import numpy  # noqa: F401
        except ImportError as failure:
            raise Refusal(
                "runtime-missing", str(failure), family="numpy", python=sys.executable, broken=False
            ) from failure
        total = sum(os.path.getsize(store.blob(sha)) for sha in header["files"].values())
        free = status("MemAvailable", "/proc/meminfo")
        if free is not None and free < total:
            raise Refusal(
                "memory",
                "the board has %d MB of memory free, and the model's files alone are %d MB"
                % (free >> 20, total >> 20),
                free=free,
                needed=total,
            )
        self.count += 1
        folder = os.path.join(store.runs, "%d-%d" % (os.getpid(), self.count))
        for name, sha in header["files"].items():
            path = os.path.normpath(os.path.join(folder, name))
            if not path.startswith(folder + os.sep):
                raise Refusal("request", "the name %r leaves the folder" % name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                os.link(store.blob(sha), path)
            except OSError:  # some file systems have no hard links
                os.symlink(store.blob(sha), path)
        self.folders[self.count] = folder
        kind = OnnxModel if header["runtime"] == "onnxruntime" else TfliteModel
        start = time.perf_counter()
        try:
            opened = kind(os.path.join(folder, header["main"]), header["threads"])  # type: Any
        except Exception as failure:  # each runtime raises classes of its own
            if isinstance(failure, MemoryError):
                raise
            have = next(filter(None, map(version_of, _packages(header["runtime"]))), "")
            raise Refusal("open", _sentence(failure), runtime=header["runtime"], version=have) from failure
        load = time.perf_counter() - start
        self.models[self.count] = opened
        return {
            "session": self.count,
            "inputs": opened.inputs,
            "outputs": opened.outputs,
            "runtime": opened.runtime,
            "load": load,
        }, []

    def do_run(self, header: Dict[str, Any], body: Any) -> Any:
        """Runs one call; says how long it took here."""
        arrays = arrays_of(header.get("arrays", []), body)
        start = time.perf_counter()
        found = self.models[header["session"]].run(arrays)
        seconds = time.perf_counter() - start
        if any(array.dtype.kind in "OUS" for array in found):
            raise Refusal("runtime", "the model gives text, which does not cross the wire")
        return {"seconds": seconds}, found

    def do_feed(self, header: Dict[str, Any], body: Any) -> Any:
        """Keeps the inputs of a call that is to be timed."""
        self.count += 1
        self.fed[self.count] = (self.models[header["session"]], arrays_of(header.get("arrays", []), body))
        return {"fed": self.count}, []

    def do_block(self, header: Dict[str, Any], body: Any) -> Any:
        """Times a block of calls, after one that is not timed: the processor may have been asleep."""
        opened, arrays = self.fed[header["fed"]]
        for _ in range(header["untimed"]):
            opened.run(arrays)
        times = []
        clock = time.perf_counter
        for _ in range(header["calls"]):
            start = clock()
            opened.run(arrays)
            times.append(clock() - start)
        return {"times": times, "state": state()}, []

    def do_count(self, header: Dict[str, Any], body: Any) -> Any:
        """Makes calls between marks that an emulator sees; anywhere else the marks do nothing.

        A mark is a system call that fails: getpriority of a kind that does not exist. Nothing lies between
        those of the first ``empty`` pairs. The two calls before let the runtime, and then the emulator's
        caches, warm up. Meanwhile this process does as little else as it can.
        """
        arrays = arrays_of(header.get("arrays", []), body)
        run, mark = self.models[header["session"]].run, ctypes.CDLL(None).getpriority
        first, calls = header["first"] + 2 * header["empty"], header["calls"]
        self.idle.clear()
        try:
            run(arrays)
            gc.collect()
            gc.disable()
            mark(MARK, 0)
            run(arrays)
            for number in range(header["first"], first):
                mark(MARK, number)
            for number in range(first, first + 2 * calls, 2):
                mark(MARK, number)
                run(arrays)
                mark(MARK, number + 1)
        finally:
            gc.enable()
            self.idle.set()
        return {}, []

    def do_state(self, header: Dict[str, Any], body: Any) -> Any:
        """Temperature, clocks and governor now."""
        return {"state": state(full=True)}, []

    def do_memory(self, header: Dict[str, Any], body: Any) -> Any:
        """Resident memory of this process, now and at its peak."""
        return {"now": status("VmRSS"), "peak": status("VmHWM")}, []

    def do_probe(self, header: Dict[str, Any], body: Any) -> Any:
        """What a device profile is written from."""
        return {"probe": probe()}, []

    def do_close(self, header: Dict[str, Any], body: Any) -> Any:
        """Frees a model and deletes its folder."""
        opened = self.models.pop(header["session"], None)
        self.fed = {key: value for key, value in self.fed.items() if value[0] is not opened}
        shutil.rmtree(self.folders.pop(header["session"], ""), ignore_errors=True)
        return {}, []


def _packages(family: str) -> List[str]:
    return [name.split(".")[0] for name in FAMILIES[family]]


def _sentence(failure: BaseException) -> str:
    """The first line of what a library says, without the paths and signatures that it puts before."""
    line = (str(failure).strip().splitlines() or [""])[0] or type(failure).__name__
    return line if len(line) <= 300 else line[:100] + " ... " + line[-200:]


def _digest(path: str) -> str:
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                found.update(piece)
    except OSError:
        return ""
    return found.hexdigest()


def main() -> None:
    """Serves on this process's stdin and stdout; whatever a library prints goes to stderr."""
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    agent = Agent(sys.stdin.buffer, stdout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, agent.vanish)
    agent.serve()
    os._exit(0)


if __name__ == "__main__":
    main()
