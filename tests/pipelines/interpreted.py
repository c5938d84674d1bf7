"""With TRITON_INTERPRET=1 Triton runs kernels on a CPU, in every type but bfloat16."""

import importlib.util
import os

import pytest

needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton and TRITON_INTERPRET=1",
)
