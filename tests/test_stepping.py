"""What a pass that fails leaves the user with."""

from __future__ import annotations

import pytest

from edgeopt.errors import PassError
from edgeopt.stepping import named


def test_an_unforeseen_error_names_the_pass_unless_its_traceback_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("EDGEOPT_DEBUG", raising=False)
    with (
        pytest.raises(PassError, match="the pass 'fold-batch-norm' failed: KeyError: 'x'"),
        named("fold-batch-norm"),
    ):
        raise KeyError("x")
    monkeypatch.setenv("EDGEOPT_DEBUG", "1")
    with pytest.raises(KeyError), named("fold-batch-norm"):
        raise KeyError("x")
