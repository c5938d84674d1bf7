"""cluster.yaml as it can be tried without a cloud and without GPUs, and each value that is another there.

    python -m tests.sweep.cluster.derived KEY HEAD_ADDRESS WORKER_ADDRESS...    prints what is replaced

Ray's local provider takes machines that are there; it knows no node types, so theirs go with `node_config`. uv is on the
machines' image, so its download is there in full and is not used.
"""

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SECTIONS = ("provider", "auth", "available_node_types", "head_node_type")
"""Replaced or left out whole: machines, how they are reached, what each kind of them is."""
CUDA_EXTRA = {
    "constraints/cuda-py312.txt": f"constraints/cpu-py{PYTHON.replace('.', '')}.txt --excludes constraints/cpu-excludes.txt",
    ".[cuda,cluster]": ".[cpu,cluster]",
    # The CPU build of torch that is here is for the Python that is here.
    "--python 3.12": f"--python {PYTHON}",
}
"""Within setup commands: the CUDA extra, its pins and its Python."""


def derived(config: Mapping[str, Any], key: Path, head: str, workers: Sequence[str]) -> dict[str, Any]:
    """`config` for machines at these addresses, which admit the owner of the SSH key."""
    result = copy.deepcopy(dict(config))
    for section in SECTIONS:
        del result[section]
    result["provider"] = {"type": "local", "head_ip": head, "worker_ips": list(workers)}
    result["auth"] = {"ssh_user": "ubuntu", "ssh_private_key": str(key)}
    result["setup_commands"] = [_without_cuda(command) for command in config["setup_commands"]]
    return result


def _without_cuda(command: str) -> str:
    for old, new in CUDA_EXTRA.items():
        command = command.replace(old, new)
    return command


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, old and new value of all that differs; None stands for what is not there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{path}[{index}]")
    elif before != after:
        yield path, before, after


def main(key: str, head: str, *workers: str) -> None:
    before = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for path, old, new in differences(before, derived(before, Path(key), head, workers)):
        print(f"{path}\n  - {old}\n  + {new}")


if __name__ == "__main__":
    main(*sys.argv[1:])
