"""A node of two is lost in each part of a study: the run goes on by itself, and every byte is that of an undisturbed run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from two_nodes import STAGES, never, once_during, run, two_nodes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_node_is_lost_during_generator_pool_and_cells(tmp_path: Path) -> None:
    with two_nodes() as nodes:
        undisturbed = run(tmp_path / "undisturbed", nodes, never)
        disturbed = run(tmp_path / "disturbed", nodes, once_during(*STAGES))
    assert undisturbed.code == 0, undisturbed.output
    assert disturbed.code == 0, disturbed.output
    assert disturbed.num_kills == len(STAGES)
    assert disturbed.artifacts == undisturbed.artifacts
    assert not disturbed.said("failed", "retry")
    assert "Traceback" not in disturbed.output and "raylet" not in disturbed.output
    assert any("the machine that it ran on was lost; goes on (loss 1)" in line for line in disturbed.said("lost"))
