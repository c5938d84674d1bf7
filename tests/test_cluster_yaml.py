"""cluster.yaml against Ray's own schema, and against what the schema does not look at: who can get in."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.workers.telemetry import OFF

ROOT = Path(__file__).parents[1]
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
TOKEN_FILE = ".ray/auth_token"


def load() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def ray_start(config: dict[str, Any], section: str) -> str:
    """The one command of a section that starts Ray."""
    (command,) = [line for line in config[section] if re.search(r"\bray start\b", line)]
    return command


def all_commands(config: dict[str, Any]) -> list[str]:
    return [command for section, value in config.items() if section.endswith("_commands") for command in value]


def faults(config: dict[str, Any]) -> list[str]:
    """Faults of a configuration that Ray's schema accepts."""
    found = []
    head = ray_start(config, "head_start_ray_commands")
    if re.findall(r"--dashboard-host[= ](\S+)", head) not in (["127.0.0.1"], ["localhost"]):
        found.append("the dashboard does not listen on loopback")
    # With the first alone, Ray reports that it is disabled.
    if "--disable-usage-stats" not in head or f"RAY_USAGE_STATS_REPORT_URL={OFF['RAY_USAGE_STATS_REPORT_URL']} " not in head:
        found.append("the head reports to Ray's makers")
    for section in START_COMMANDS:
        if not re.search(r"\bRAY_AUTH_MODE=token\b", ray_start(config, section)):
            found.append(f"{section}: no token authentication")
    if not any("export RAY_AUTH_MODE=token" in command for command in config["initialization_commands"]):
        found.append("drivers on the head do not use the token")
    if not any("get-auth-token --generate > /dev/null" in command for command in config["head_setup_commands"]):
        found.append("the head does not make the token, or shows it")
    if not any(file.endswith(TOKEN_FILE) for file in config["cluster_synced_files"]):
        found.append("the workers do not get the token")
    # A file of the user's that is missing is noticed when the head is running, and costs money.
    if any(local.startswith("~") for local in config["file_mounts"].values()):
        found.append("a file that the repository does not have is copied")
    if any("RAY_AUTH_TOKEN=" in command for command in all_commands(config)):
        found.append("the token itself stands in the file")
    # Ray's default for an absent section is a nightly build.
    if not config.get("setup_commands") or "nightly" in str(config) or "ray-wheels" in str(config):
        found.append("nodes do not install pinned packages")
    if not any("--constraints constraints/" in command for command in config.get("setup_commands", [])):
        found.append("setup does not use the pins")
    if "security_group" in config["provider"]:
        found.append("provider.security_group only adds to a group that is open to SSH from everywhere")
    if "0.0.0.0/0" in str(config) or "::/0" in str(config):
        found.append("a rule admits the whole internet")
    for name, node_type in config["available_node_types"].items():
        # Without a group of its own a node gets Ray's, which admits SSH from 0.0.0.0/0.
        if not node_type["node_config"].get("SecurityGroupIds"):
            found.append(f"{name}: no security group")
        if node_type.get("min_workers", 0) > node_type.get("max_workers", 0) and name != config["head_node_type"]:
            found.append(f"{name}: min_workers is above max_workers")
    workers = {
        name: node_type for name, node_type in config["available_node_types"].items() if name != config["head_node_type"]
    }
    spot = [
        name
        for name, node_type in workers.items()
        if node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        and node_type["resources"].get("GPU", 0) > 0
        and node_type["max_workers"] > 0
    ]
    if not spot:
        found.append("no GPU workers on spot instances")
    if "InstanceMarketOptions" in config["available_node_types"][config["head_node_type"]]["node_config"]:
        found.append("the head can be taken away")
    if sum(node_type["max_workers"] for node_type in workers.values()) > config["max_workers"]:
        found.append("the node types' limits add up to more than the cluster's")
    return found


def test_ray_accepts_it() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(copy.deepcopy(load()))
    util.validate_config(prepared)
    # What Ray fills in must not bring back what is left out here.
    assert faults(prepared) == []
    assert set(prepared["available_node_types"]) == set(load()["available_node_types"])


def test_ray_refuses_a_typo() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    jsonschema = pytest.importorskip("jsonschema")
    config = load()
    config["idle_timeout_minuts"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        util.validate_config(util.prepare_config(config))


def test_it_is_closed_and_pinned() -> None:
    assert faults(load()) == []


def edited(old: str, new: str) -> dict[str, Any]:
    text = (ROOT / "cluster.yaml").read_text()
    assert old in text
    return yaml.safe_load(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard"),
        ("--dashboard-host=127.0.0.1", "", "dashboard"),
        ("        RAY_AUTH_MODE=token\n", "        RAY_AUTH_MODE=disabled\n", "no token authentication"),
        ("'export RAY_AUTH_MODE=token'", "''", "drivers"),
        (" RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9", "", "makers"),
        ("cluster_synced_files: [~/.ray/auth_token]", "cluster_synced_files: []", "workers do not get the token"),
        ("get-auth-token --generate", "get-auth-token", "does not make the token"),
        (" --generate > /dev/null", " --generate", "shows it"),
        ("file_mounts:\n", "file_mounts:\n    /home/ubuntu/.ray/auth_token: ~/.ray/auth_token\n", "repository does not have"),
        ("setup_commands:\n    - test", "unused_commands:\n    - test", "pinned"),
        ("--constraints constraints/cuda-py312.txt", "", "pins"),
        ("SecurityGroupIds: *security_groups", "EbsOptimized: true", "no security group"),
        ("MarketType: spot", "MarketType: capacity-block", "spot"),
        ("min_workers: 0", "min_workers: 20", "min_workers"),
        ("max_workers: 10", "max_workers: 5", "add up"),
    ],
)
def test_each_fault_is_seen(old: str, new: str, fault: str) -> None:
    assert any(fault in found for found in faults(edited(old, new)))


def test_what_it_copies_and_pins_is_there() -> None:
    config = load()
    for local in config["file_mounts"].values():
        assert (ROOT / local).exists(), f"{local} is not in the repository"
    install = next(command for command in config["setup_commands"] if "--constraints" in command)
    (constraints,) = re.findall(r"--constraints (\S+)", install)
    (python,) = re.findall(r"--python (3\.\d+)", " ".join(config["setup_commands"]))
    assert (ROOT / constraints).exists()
    assert constraints.endswith(f"py{python.replace('.', '')}.txt")
