"""`blindsweep cluster check` against an AWS on loopback: each thing that it looks at, right and wrong."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from typer.testing import CliRunner

from sweep import cli
from sweep.cluster.account import QUOTAS, Prices
from sweep.cluster.check import check_cluster, check_store
from sweep.cluster.findings import Finding
from sweep.plan.throughputs import read_table

ROOT = Path(__file__).parents[3]
REGION = "us-west-2"
ME = "203.0.113.7/32"
TRUST = {"Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
Config = dict[str, Any]
SESSION = boto3.session.Session("key", "secret")


class Aws:
    """An account that has what cluster.yaml wants, and what of it a test spoils."""

    def __init__(self) -> None:
        self.ec2 = SESSION.client("ec2", region_name=REGION)
        self.iam = SESSION.client("iam", region_name=REGION)
        vpc = self.ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
        self.subnet = self.ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.1.0/24")["Subnet"]["SubnetId"]
        self.public(True)
        self.group = self.ec2.create_security_group(GroupName="blindsweep", Description="Ray", VpcId=vpc)["GroupId"]
        self.admit_ssh(ME)
        self.ec2.authorize_security_group_ingress(
            GroupId=self.group, IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": self.group}]}]
        )
        self.image = self.ec2.register_image(Name=f"base-{uuid.uuid4().hex[:6]}")["ImageId"]
        self.profiles: dict[str, str] = {}
        self.quotas: dict[str, float] = {}
        for kind in ("head", "worker"):
            name = self.profiles[kind] = f"{kind}-{uuid.uuid4().hex[:6]}"
            self.iam.create_instance_profile(InstanceProfileName=name)
            self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST))
            self.iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)

    def public(self, value: bool) -> None:
        self.ec2.modify_subnet_attribute(SubnetId=self.subnet, MapPublicIpOnLaunch={"Value": value})

    def admit_ssh(self, cidr: str) -> None:
        rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": cidr}]}
        self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[rule])

    def config(self) -> Config:
        """cluster.yaml, filled in."""
        config: Config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        for name, node_type in config["available_node_types"].items():
            profile = self.profiles["head" if name == "head" else "worker"]
            node_type["node_config"] |= {
                "ImageId": self.image,
                "SecurityGroupIds": [self.group],
                "SubnetIds": [self.subnet],
                "IamInstanceProfile": {"Name": profile},
            }
        del config["metadata"]
        return config


@pytest.fixture(scope="module")
def mocked() -> Iterator[None]:
    """AWS in this process, from which no request goes out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        with mock_aws():
            yield


@pytest.fixture
def aws(mocked: None, monkeypatch: pytest.MonkeyPatch) -> Aws:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    # A session reads the description of each service anew, of EC2 for a third of a second.
    monkeypatch.setattr(boto3.session, "Session", lambda: SESSION)
    return account(monkeypatch)


def account(monkeypatch: pytest.MonkeyPatch) -> Aws:
    # moto has no quotas of EC2.
    from moto.servicequotas.models import ServiceQuotasBackend

    def quota(_: Any, service_code: str, quota_code: str) -> dict[str, Any]:
        assert service_code == "ec2" and quota_code in QUOTAS.values()
        return {"QuotaCode": quota_code, "Value": quotas[quota_code]}

    quotas = dict.fromkeys(QUOTAS.values(), 384.0)
    monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", quota)
    there = Aws()
    there.quotas = quotas
    return there


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Finding]]]:
    """Check a configuration beside the files that it copies."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints", "pipelines", "sweep", "analysis"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def check(config: Config, store: str | None = None, **prices: float) -> list[Finding]:
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return list(check_cluster(Path("cluster.yaml"), store, Prices(read_table(), **prices)))

    yield check


def of(findings: list[Finding], what: str) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.why) for finding in findings if finding.what == what]


def problems(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.why for finding in findings if finding.verdict == "problem"}


def test_all_is_well(aws: Aws, look: Callable[..., list[Finding]]) -> None:
    findings = look(aws.config(), price=2.0, spot_price=1.0)
    assert {finding.what for finding in findings if finding.verdict == "ok"} == {
        *("file", "ids", "files", "token", "account", "image", "subnet", "security group", "profile", "machines"),
        *("quota of standard on-demand vCPUs", "quota of G spot vCPUs", "quota of G on-demand vCPUs", "price"),
    }
    assert [finding.what for finding in findings if finding.verdict != "ok"] == ["store"]
    # 8 spot machines and 2 on demand of four GPUs each.
    price = "at most $48.00 an hour for GPUs (gpu_spot 8 × 4 × $1, gpu_on_demand 2 × 4 × $2)"
    assert of(findings, "price")[0][1].startswith(price)
    assert of(findings, "machines")[0][1] == "at most 1 × m7i.4xlarge, 8 × g6e.12xlarge spot, 2 × g6e.12xlarge"


def test_the_shipped_file_is_all_right_but_for_the_ids(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    findings = list(check_cluster(Path("cluster.yaml"), None, Prices(read_table())))
    assert of(findings, "file") == [("ok", "cluster.yaml is as Ray wants it")]
    assert [verdict for what in ("files", "token") for verdict, _ in of(findings, what)] == ["ok", "ok"]
    assert of(findings, "ids")[0][0] == "problem"
    for value in ("metadata.image is ami-00000000000000000", "metadata.security_groups is sg-", "metadata.subnets is subnet-"):
        assert value in of(findings, "ids")[0][1]


def with_token_to_copy(config: Config) -> None:
    config["file_mounts"]["/home/ubuntu/.ray/auth_token"] = "~/.ray/auth_token"


def without_token(config: Config) -> None:
    config["cluster_synced_files"] = []


def misspelt(config: Config) -> None:
    config["idle_timeout_minuts"] = config.pop("idle_timeout_minutes")


@pytest.mark.parametrize(
    ("spoil", "what", "says"),
    [
        (misspelt, "file", "idle_timeout_minuts"),
        (lambda config: config["file_mounts"].update({"/home/ubuntu/notes": "notes.txt"}), "files", "notes.txt"),
        (with_token_to_copy, "token", "ray get-auth-token --generate"),
        (without_token, "token", "no node gets one"),
    ],
)
def test_problems_of_the_file(
    aws: Aws, look: Callable[..., list[Finding]], spoil: Callable[[Config], Any], what: str, says: str
) -> None:
    config = aws.config()
    spoil(config)
    found = problems(look(config))
    assert set(found) == {what} and says in found[what]


def test_a_token_of_ones_own_that_is_there(aws: Aws, look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    config = aws.config()
    with_token_to_copy(config)
    (tmp_path / "home/.ray").mkdir(parents=True)
    (tmp_path / "home/.ray/auth_token").write_text("secret")
    assert of(look(config), "token") == [("ok", "yours, copied to every node")]


def test_the_folder_that_ray_up_is_run_in(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    look(aws.config())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = problems(list(check_cluster(Path("../cluster.yaml"), None, Prices(read_table()))))
    assert set(found) == {"files"} and found["files"].endswith(f"cd {tmp_path}")


def node_config(config: Config, name: str) -> Config:
    return config["available_node_types"][name]["node_config"]


@pytest.mark.parametrize(
    ("spoil", "what", "says"),
    [
        (
            lambda aws, config: node_config(config, "gpu_spot").update(ImageId="ami-0123456789abcdef0"),
            "image",
            "ami-0123456789abcdef0",
        ),
        (
            lambda aws, config: node_config(config, "head").update(SubnetIds=["subnet-0123456789abcdef0"]),
            "network",
            "InvalidSubnetID",
        ),
        (lambda aws, config: aws.public(False), "subnet", "no public addresses"),
        (lambda aws, config: aws.admit_ssh("0.0.0.0/0"), "security group", "0.0.0.0/0, the whole internet"),
        (lambda aws, config: node_config(config, "head").update(IamInstanceProfile={"Name": "nobody"}), "profiles", "nobody"),
        (lambda aws, config: node_config(config, "head").pop("IamInstanceProfile"), "profile", "full access"),
        (lambda aws, config: node_config(config, "gpu_spot").update(InstanceType="g99.large"), "machines", "g99.large"),
        (lambda aws, config: config["available_node_types"]["gpu_spot"]["resources"].update(GPU=8), "machines", "8 GPUs"),
        (
            lambda aws, config: aws.quotas.update({"L-3819A6DF": 96.0}),
            "quota of G spot vCPUs",
            "96, and the file may start 384",
        ),
        (
            lambda aws, config: aws.quotas.update({"L-1216C47A": 0.0}),
            "quota of standard on-demand vCPUs",
            "0, and the file may start 16",
        ),
    ],
)
def test_problems_of_the_account(
    aws: Aws, look: Callable[..., list[Finding]], spoil: Callable[[Aws, Config], Any], what: str, says: str
) -> None:
    config = aws.config()
    assert problems(look(config)) == {}
    spoil(aws, config)
    found = problems(look(config))
    assert set(found) == {what} and says in found[what]


def test_a_group_that_admits_nobody_or_not_its_own(aws: Aws, look: Callable[..., list[Finding]]) -> None:
    rules = aws.ec2.describe_security_groups(GroupIds=[aws.group])["SecurityGroups"][0]["IpPermissions"]
    ssh = [rule for rule in rules if rule.get("FromPort") == 22]
    within = [rule for rule in rules if rule["IpProtocol"] == "-1"]
    aws.ec2.revoke_security_group_ingress(GroupId=aws.group, IpPermissions=within)
    assert "nodes cannot reach each other" in problems(look(aws.config()))["security group"]
    aws.ec2.revoke_security_group_ingress(GroupId=aws.group, IpPermissions=ssh)
    assert "admits SSH from nowhere" in problems(look(aws.config()))["security group"]


def test_a_profile_without_a_role(aws: Aws, look: Callable[..., list[Finding]]) -> None:
    name = aws.profiles["worker"]
    aws.iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
    assert problems(look(aws.config())) == {"profile": f"{name} has no role: aws iam add-role-to-instance-profile"}


def test_what_cannot_be_asked_is_no_problem(
    aws: Aws, look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.servicequotas.exceptions import NoSuchResource
    from moto.servicequotas.models import ServiceQuotasBackend

    def refuse(*_: Any, **__: Any) -> None:
        raise NoSuchResource

    monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", refuse)
    findings = look(aws.config())
    assert problems(findings) == {}
    quotas = [finding for finding in findings if finding.what.startswith("quota")]
    assert {finding.verdict for finding in quotas} == {"not checked"} and len(quotas) == 3


def test_prices_that_are_not_known(aws: Aws, look: Callable[..., list[Finding]]) -> None:
    findings = of(look(aws.config(), price=2.0), "price")
    assert findings[0] == ("not checked", "of an L40S for gpu_spot is not known: --spot-price DOLLARS_A_GPU_HOUR")
    assert findings[1][1].startswith("at most $16.00 an hour for GPUs (gpu_on_demand 2 × 4 × $2)")


def test_nobody_without_credentials(aws: Aws, look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    config = aws.config()
    monkeypatch.setattr(boto3.session, "Session", type(SESSION))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    findings = look(config)
    assert "aws configure" in problems(findings)["account"]
    assert ("not checked", "AWS does not know who asks") in of(findings, "machines, network, profiles, quotas, price")


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("s3://no-such-bucket-1234/studies", "no-such-bucket-1234"),
        ("studies", "of one machine"),
        ("nosuch://a/b", "nosuch://a/b"),
    ],
)
def test_stores_that_will_not_do(s3_server: str, store: str, says: str) -> None:
    found = check_store(store)
    assert found.verdict == "problem" and says in found.why


def test_the_command_has_a_line_each_and_ends_with_1_on_a_problem(
    bucket: str, s3_client: Any, look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a server, with the settings that any AWS client takes."""
    aws = account(monkeypatch)
    look(aws.config())
    arguments = ["cluster", "check", "cluster.yaml", "--store", f"{bucket}/studies", "--price", "2", "--spot-price", "1"]
    shown = CliRunner().invoke(cli.app, arguments)
    assert shown.exit_code == 0, shown.output
    assert len(shown.stdout.splitlines()) == 16 and shown.stdout.count("ok   ") == 16
    assert s3_client.list_objects_v2(Bucket=bucket.removeprefix("s3://"))["KeyCount"] == 0, "nothing is left in the store"
    aws.public(False)
    shown = CliRunner().invoke(cli.app, arguments)
    assert shown.exit_code == 1
    assert shown.stdout.splitlines()[-1].startswith("problem      subnet ")
    refused = CliRunner().invoke(cli.app, ["cluster", "check", "nothing.yaml"])
    assert refused.exit_code == 1 and "nothing.yaml is not there; give the cluster's file" in refused.stderr
