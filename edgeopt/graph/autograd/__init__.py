"""Running a model under torch with gradients, from any cut to any cut, parameters by name.

    outputs = run(model, {"x": array}, parameters={"conv.weight": tensor})
    loss = (outputs["y"] - wanted).square().mean()
    loss.backward()

Forward results are those of ``graph.execute`` within rounding. torch is imported at the first run.
"""

from __future__ import annotations

from edgeopt.graph.autograd.operators import table
from edgeopt.graph.autograd.running import Segment, run, to_numpy, unsupported

__all__ = ["Segment", "run", "table", "to_numpy", "unsupported"]
