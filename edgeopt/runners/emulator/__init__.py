"""``emulator``: artifacts run as ARM code on a machine that is not one, through QEMU's user mode.

``edgeopt emulator setup`` fetches a small ARM userland once; a device profile becomes a *board*, a folder
that shows guests the processor of that device. Outputs and accuracy are those of the ARM kernels of each
runtime, and instructions are counted by class; no latency comes from here.
"""

from edgeopt.runners.emulator.runner import Emulator

__all__ = ["Emulator"]
