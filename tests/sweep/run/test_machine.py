from pathlib import Path

import pytest

from sweep.run.machine import memory_in_use


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    proc = tmp_path / "meminfo"
    proc.write_text("MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:   12582912 kB\n")
    return proc, tmp_path


def test_memory_is_the_machines_where_no_container_has_a_limit(files: tuple[Path, Path]) -> None:
    proc, group = files
    assert memory_in_use(proc, group) == (4.0, 16.0)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text(f"{2 << 30}\n")
    assert memory_in_use(proc, group) == (4.0, 16.0)


def test_memory_is_the_containers_without_what_the_kernel_drops_at_need(files: tuple[Path, Path]) -> None:
    proc, group = files
    (group / "memory.max").write_text(f"{8 << 30}\n")
    (group / "memory.current").write_text(f"{7 << 30}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {3 << 30}\nactive_file 1\n")
    assert memory_in_use(proc, group) == (4.0, 8.0)
    (group / "memory.max").write_text(f"{64 << 30}\n")
    assert memory_in_use(proc, group) == (4.0, 16.0)
