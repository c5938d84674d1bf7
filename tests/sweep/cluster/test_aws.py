"""`ray up` of cluster.yaml on an AWS in this process: what is asked of EC2 for each node type, and by which rights.

No command that would reach a machine is run; the addresses that the mock gives out are nobody's.
"""

import fnmatch
import json
import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import pytest
import yaml
from moto import mock_aws
from moto.ec2.models.instance_types import InstanceTypeBackend
from typer.testing import CliRunner

from sweep import cli
from sweep.cluster import end

ROOT = Path(__file__).parents[3]
IAM = ROOT / "docs/iam"
REGION = "us-west-2"
Call = tuple[str, str, dict[str, Any]]

pytest.importorskip("ray.autoscaler._private.aws.node_provider")


class Runner:
    """Stands in for `subprocess`: takes note of what would be run over SSH, and runs nothing."""

    DEVNULL, STDOUT, PIPE = subprocess.DEVNULL, subprocess.STDOUT, subprocess.PIPE
    CalledProcessError = subprocess.CalledProcessError

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.head_config = ""
        """What the head gets for its ~/ray_bootstrap_config.yaml."""

    def check_call(self, command: list[str], *_: Any, **__: Any) -> None:
        self.commands.append(command)
        for part in command:
            if Path(part).name.startswith("ray-bootstrap-"):
                self.head_config = Path(part).read_text()

    def check_output(self, command: list[str], *_: Any, **__: Any) -> bytes:
        self.commands.append(command)
        return b""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Call]]:
    """What is asked of AWS from here on: service, operation, parameters."""
    from ray.autoscaler._private.aws import utils

    for name, value in {
        **{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": REGION},
        **{"MOTO_EC2_LOAD_DEFAULT_AMIS": "false", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.chdir(ROOT)
    # Ray asks for all of them, and the mock knows hundreds.
    types = (ROOT / "cluster.yaml").read_text()
    offered = [one for one in InstanceTypeBackend.instance_types if f"InstanceType: {one['InstanceType']}\n" in types]
    monkeypatch.setattr(InstanceTypeBackend, "instance_types", offered)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    made: list[Call] = []
    real = botocore.client.BaseClient._make_api_call

    def noted(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        made.append((self.meta.service_model.service_name, operation, parameters))
        return real(self, operation, parameters)

    with mock_aws():
        monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", noted)
        for cache in (utils.resource_cache, utils.client_cache):
            cache.cache_clear()
        yield made
        for cache in (utils.resource_cache, utils.client_cache):
            cache.cache_clear()


@pytest.fixture
def config(calls: list[Call]) -> dict[str, Any]:
    """cluster.yaml, filled in with what the account has."""
    ec2, iam = boto3.client("ec2", region_name=REGION), boto3.client("iam")
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.1.0/24")["Subnet"]["SubnetId"]
    ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
    group = ec2.create_security_group(GroupName="blindsweep", Description="Ray", VpcId=vpc)["GroupId"]
    image = ec2.register_image(Name="base")["ImageId"]
    for name in ("blindsweep-head", "blindsweep-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=(IAM / "trust.json").read_text())
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    text = (ROOT / "cluster.yaml").read_text()
    for placeholder, real in (("ami-" + "0" * 17, image), ("sg-" + "0" * 17, group), ("subnet-" + "0" * 17, subnet)):
        assert placeholder in text
        text = text.replace(placeholder, real)
    calls.clear()
    filled_in: dict[str, Any] = yaml.safe_load(text)
    return filled_in


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.commands import _bootstrap_config

    return _bootstrap_config(config, no_config_cache=True)


def up(config: dict[str, Any]) -> tuple[dict[str, Any], Runner]:
    """What `ray up` does, with nothing reaching a machine."""
    from ray.autoscaler._private.commands import get_or_create_head_node

    ready, runner = bootstrapped(config), Runner()
    get_or_create_head_node(ready, "cluster.yaml", False, False, True, None, _runner=runner)  # type: ignore[arg-type]
    return ready, runner


def started(calls: list[Call]) -> list[dict[str, Any]]:
    return [parameters for _, operation, parameters in calls if operation == "RunInstances"]


def provider_of(ready: dict[str, Any]) -> Any:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    return AWSNodeProvider(ready["provider"], ready["cluster_name"])


def start_worker(ready: dict[str, Any], name: str) -> Any:
    provider = provider_of(ready)
    tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-launch-config": "hash", "ray-node-name": "worker"}
    return provider, provider.create_node(ready["available_node_types"][name]["node_config"], tags, 1)


def assert_closed(request: dict[str, Any], profile: str) -> None:
    assert request["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert all(disk["Ebs"]["Encrypted"] for disk in request["BlockDeviceMappings"])
    assert request["IamInstanceProfile"] == {"Name": profile}
    (group,) = request["SecurityGroupIds"]
    assert group.startswith("sg-") and not group.endswith("0" * 17)
    assert (request["MinCount"], request["MaxCount"]) == (1, 1)


def test_the_head_is_started_on_demand_and_then_set_up(config: dict[str, Any], calls: list[Call]) -> None:
    _, runner = up(config)
    (request,) = started(calls)
    assert request["InstanceType"] == "m7i.4xlarge" and "InstanceMarketOptions" not in request
    assert request["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert_closed(request, "blindsweep-head")
    groups = boto3.client("ec2", region_name=REGION).describe_security_groups()["SecurityGroups"]
    assert not [group for group in groups if "ray-autoscaler" in group["GroupName"]], "Ray made a group open to the world"
    said = [" ".join(command) for command in runner.commands]
    assert "uptime" in said[0], "the first thing over SSH"
    # In this order: the packages bring the Ray that makes the token, and Ray starts with it.
    places = [
        next(i for i, command in enumerate(said) if part in command) for part in ("uv pip install", "get-auth-token", "--head")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(("name", "is_spot"), [("gpu_spot", True), ("gpu_on_demand", False)])
def test_workers_are_started_as_the_file_says(config: dict[str, Any], calls: list[Call], name: str, is_spot: bool) -> None:
    ready = bootstrapped(config)
    calls.clear()
    _, nodes = start_worker(ready, name)
    (request,) = started(calls)
    assert request["InstanceType"] == "g6e.12xlarge"
    assert_closed(request, "blindsweep-worker")
    (instance,) = nodes.values()
    assert (request.get("InstanceMarketOptions", {}).get("MarketType") == "spot") is is_spot
    assert (instance.instance_lifecycle == "spot") is is_spot
    if is_spot:
        options = request["InstanceMarketOptions"]["SpotOptions"]
        assert options == {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}


# --- rights -----------------------------------------------------------------------------------------


def policy(name: str) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = json.loads((IAM / f"{name}.json").read_text())["Statement"]
    return statements


def actions(name: str) -> set[str]:
    return {
        action
        for statement in policy(name)
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }


def needed(calls: list[Call]) -> set[str]:
    return {f"{service}:{operation}" for service, operation, _ in calls}


def key_for(name: str, allowed: set[str]) -> dict[str, str]:
    """An access key of a new user who may do just that, whatever it is done to."""
    iam = boto3.client("iam")
    iam.create_user(UserName=name)
    statement = {"Effect": "Allow", "Action": sorted(allowed), "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=document)
    key: dict[str, str] = iam.create_access_key(UserName=name)["AccessKey"]
    return key


def become(key: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask AWS with this key from now on, here and in child processes."""
    from ray.autoscaler._private.aws import utils

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for cache in (utils.resource_cache, utils.client_cache):
        cache.cache_clear()


def life_of_a_worker(ready: dict[str, Any]) -> None:
    """What the autoscaler on the head does with EC2."""
    bootstrapped(ready)
    provider, nodes = start_worker(ready, "gpu_spot")
    (node,) = nodes
    provider.non_terminated_nodes({})
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    provider.is_running(node)
    provider.internal_ip(node)
    provider.terminate_nodes([node])


@pytest.mark.slow
def test_the_head_may_do_what_its_autoscaler_does_and_no_more(
    config: dict[str, Any], calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, _ = up(config)
    calls.clear()
    life_of_a_worker(ready)
    asked = needed(calls)
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:DescribeInstances"} <= asked
    allowed = actions("head")
    assert asked - allowed == set()
    # To be started with a role and tags needs rights of their own, which no call names.
    assert {action for action in allowed if action.startswith(("ec2:", "iam:"))} == asked | {"iam:PassRole", "ec2:CreateTags"}


@pytest.mark.slow
def test_the_mock_itself_lets_the_head_do_it_and_a_worker_not(
    config: dict[str, Any], calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto judges actions, and no resources or conditions."""
    from moto.core import set_initial_no_auth_action_count

    ready, _ = up(config)
    keys = {name: key_for(name, actions(name)) for name in ("head", "worker")}

    @set_initial_no_auth_action_count(0)
    def as_(name: str) -> None:
        become(keys[name], monkeypatch)
        life_of_a_worker(ready)

    as_("head")
    with pytest.raises(Exception, match=r"user/worker is not authorized to perform: ec2:"):
        as_("worker")


@pytest.mark.parametrize("name", ["head", "worker"])
def test_rights_are_narrow(name: str) -> None:
    for statement in policy(name):
        listed = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert not any("*" in action for action in listed)
        resources = [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
        if any(action.startswith("s3:") for action in listed):
            assert all(fnmatch.fnmatch(resource, "arn:aws:s3:::BUCKET*") for resource in resources)
        # EC2 knows no resources for what only looks.
        if "*" in resources:
            assert all(action.startswith("ec2:Describe") for action in listed)
    store = [statement for statement in policy(name) if "s3:" in str(statement["Action"])]
    assert store == policy("worker")
    assert actions("worker") <= actions("head")


def test_the_rights_are_of_the_cluster_and_the_role_that_the_file_names() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    statements = {statement["Sid"]: statement for statement in policy("head")}
    tag = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": config["cluster_name"]}}
    assert statements["ChangeThisCluster"]["Condition"] == tag
    profile = config["metadata"]["worker_profile"]["Name"]
    assert statements["HandWorkersTheirRole"]["Resource"] == f"arn:aws:iam::*:role/{profile}"


# --- the end, from the head -------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """Stand-ins for what would end Ray and switch off this machine, alone on its PATH; gives what is called of them.

    `ray down` is the real one, in a process of its own, unless `tmp_path / "down"` says what it is.
    """
    notes, down, ray = tmp_path / "called", tmp_path / "down", Path(sys.executable).with_name("ray")
    stand_ins = {
        # The real `ray stop` ends every Ray of this machine.
        "ray": f'echo "ray $1" >> {notes}; [ "$1" = stop ] && exit; [ -e {down} ] && . {down}; exec {ray} "$@"',
        "sudo": f'echo "sudo $@" >> {notes}',
    }
    (tmp_path / "bin").mkdir()
    for name, script in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(end, "PAUSE_S", 0.0)
    return lambda: notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def cluster(
    config: dict[str, Any], called: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """This machine as the head of a cluster with two workers. `ray down` reaches the mock over loopback."""
    from moto.server import ThreadedMotoServer

    ready, runner = up(config)
    (tmp_path / end.CONFIG_FILE).write_text(runner.head_config)
    for name in ("gpu_spot", "gpu_on_demand"):
        start_worker(ready, name)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    yield
    server.stop()


def states() -> dict[str, list[str]]:
    """What became of all machines, by their kind."""
    found: dict[str, list[str]] = defaultdict(list)
    for reservation in boto3.client("ec2", region_name=REGION).describe_instances()["Reservations"]:
        for machine in reservation["Instances"]:
            (kind,) = [tag["Value"] for tag in machine["Tags"] if tag["Key"] == "ray-node-type"]
            found[kind].append(machine["State"]["Name"])
    return dict(found)


def end_with_rights_to(allowed: set[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`blindsweep cluster end` on the head by a user who may do just that."""
    from moto.core import set_initial_no_auth_action_count

    with monkeypatch.context() as as_user:
        become(key_for("tried", allowed), as_user)
        return set_initial_no_auth_action_count(0)(lambda: CliRunner().invoke(cli.app, ["cluster", "end"]))()


def test_the_end_of_a_cluster_ends_its_workers_and_then_switches_the_head_off(
    cluster: None, called: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states() == {"head": ["running"], "worker": ["running", "running"]}
    done = end_with_rights_to(actions("head"), monkeypatch)
    assert done.exit_code == 0, done.output
    assert states() == {"head": ["running"], "worker": ["terminated", "terminated"]}
    # Ray first: its autoscaler could start others.
    assert called() == ["ray stop", "ray down", "sudo shutdown -h now"]


@pytest.mark.slow
def test_a_head_that_may_not_end_its_workers_stays_on(
    cluster: None, called: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end, "ATTEMPTS", 2)
    done = end_with_rights_to(actions("head") - {"ec2:TerminateInstances"}, monkeypatch)
    assert done.exit_code == 1
    (error,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert "the workers could not be ended (" in error and "TerminateInstances" in error, error
    assert error.endswith("so that the head stays on; end both from your own machine: ray down -y cluster.yaml")
    assert states() == {"head": ["running"], "worker": ["running", "running"]}
    assert called() == ["ray stop", "ray down", "ray down"]


def test_a_head_whose_workers_cannot_be_ended_stays_on(called: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / end.CONFIG_FILE).touch()
    (tmp_path / "down").write_text("echo 'An error occurred'; echo 'no rights'; exit 1")
    done = CliRunner().invoke(cli.app, ["cluster", "end"])
    assert done.exit_code == 1
    assert done.output.count("no rights; once more in 0 s") == end.ATTEMPTS - 1
    (error,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert error == (
        "Error: the workers could not be ended (no rights), so that the head stays on; "
        "end both from your own machine: ray down -y cluster.yaml"
    )
    assert called() == ["ray stop", *["ray down"] * end.ATTEMPTS]


def test_workers_that_are_ended_at_the_second_attempt_are_enough(called: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / end.CONFIG_FILE).touch()
    (tmp_path / "down").write_text(f"[ -e {tmp_path}/tried ] && exit 0; touch {tmp_path}/tried; exit 7")
    done = CliRunner().invoke(cli.app, ["cluster", "end"])
    assert done.exit_code == 0, done.output
    assert "ray down ended with 7; once more in 0 s" in done.output
    assert called() == ["ray stop", "ray down", "ray down", "sudo shutdown -h now"]


def test_what_is_no_head_is_not_switched_off(called: Callable[[], list[str]]) -> None:
    done = CliRunner().invoke(cli.app, ["cluster", "end"])
    assert done.exit_code == 1 and "this is not the head of a cluster; to end one from your own machine" in done.output
    assert called() == []
