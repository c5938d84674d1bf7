"""What the AWS account has of that which a cluster's file names: image, network, rights, quotas; and what an hour may cost.

AWS is asked with the credentials of whoever asks, at the addresses that boto3's own settings name. Nothing is changed there.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.terminal import with_article
from sweep.cluster.findings import Finding, short
from sweep.plan.throughputs import CostTable

OPEN_TO_ALL = ("0.0.0.0/0", "::/0")
SSH_PORT = 22
QUOTAS: Mapping[tuple[str, bool], str] = {
    ("G", False): "L-DB2E81BA",
    ("G", True): "L-3819A6DF",
    ("P", False): "L-417A185B",
    ("P", True): "L-7212CCBC",
    ("standard", False): "L-1216C47A",
    ("standard", True): "L-34B43A08",
}
"""Family of instance types, whether spot → the code that EC2's quota of its vCPUs has in the Service Quotas."""
FAMILIES = {"G": "gv", "P": "p", "standard": "acdhimrtz"}
"""Family → the letters that its instance types begin with; 'G' counts the VT ones with it."""


@dataclass(frozen=True)
class Prices:
    """Dollars for an hour of one GPU where the table's do not count: on demand, and on the spot market."""

    table: CostTable
    price: float | None = None
    spot_price: float | None = None


@dataclass(frozen=True)
class Account:
    """AWS as this machine's settings reach it, in the region of the cluster's file."""

    region: str
    session: Any

    def ask(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        return getattr(self._client(service), operation)(**arguments)

    @functools.cache  # noqa: B019 - there is one, for the time of a command
    def _client(self, service: str) -> Any:
        from botocore.config import Config

        patience = Config(connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 2})
        return self.session.client(service, region_name=self.region, config=patience)


def check_account(config: dict[str, Any], prices: Prices) -> Iterator[Finding]:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        yield Finding("account", "problem", "boto3 is missing, which `ray up` needs, too: pip install -e '.[cluster]'")
        return
    account = Account(config["provider"].get("region", ""), boto3.session.Session())
    try:
        who = account.ask("sts", "get_caller_identity")
    except (BotoCoreError, ClientError) as error:
        yield Finding("account", "problem", f"{short(error)}; give AWS credentials: aws configure")
        yield Finding("machines, network, profiles, quotas, price", "not checked", "AWS does not know who asks")
        return
    yield Finding("account", "ok", f"{who['Account']} in {account.region}, as {who['Arn']}")

    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("image", lambda: _of_images(account, config)),
        ("network", lambda: _of_network(account, config)),
        ("profiles", lambda: _of_profiles(account, config)),
        ("machines", lambda: _of_machines(account, config, prices)),
    ]
    for what, check in checks:
        try:
            yield from check()
        except (BotoCoreError, ClientError) as error:
            code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
            is_answer = code.startswith("Invalid") or code in ("NoSuchEntity", "ValidationError")
            yield Finding(what, "problem" if is_answer else "not checked", short(error))


def node_types(config: Mapping[str, Any]) -> dict[str, Any]:
    """The node types of a cluster's file by name."""
    return dict(config.get("available_node_types") or {})


def _named(config: Mapping[str, Any], key: str) -> list[str]:
    """All values that the node types give `key`, each once; of a list its items."""
    found: dict[str, None] = {}
    for node_type in node_types(config).values():
        value = node_type["node_config"].get(key, [])
        found.update(dict.fromkeys(value if isinstance(value, list) else [value]))
    return list(found)


def _of_images(account: Account, config: dict[str, Any]) -> Iterator[Finding]:
    images = {
        image["ImageId"]: image for image in account.ask("ec2", "describe_images", ImageIds=_named(config, "ImageId"))["Images"]
    }
    for name in _named(config, "ImageId"):
        if name not in images:
            yield Finding(
                "image", "problem", f"{name} is not to be had in {account.region}; an image's id is another in each region"
            )
        else:
            yield Finding("image", "ok", f"{name}, {images[name].get('Name', 'without a name')}")


def _of_network(account: Account, config: dict[str, Any]) -> Iterator[Finding]:
    subnets = account.ask("ec2", "describe_subnets", SubnetIds=_named(config, "SubnetIds"))["Subnets"]
    private = [subnet["SubnetId"] for subnet in subnets if not subnet["MapPublicIpOnLaunch"]]
    if private and not config["provider"].get("use_internal_ips"):
        yield Finding("subnet", "problem", f"{', '.join(private)} gives its instances no public addresses, and SSH needs them")
    else:
        yield Finding("subnet", "ok", ", ".join(f"{subnet['SubnetId']} in {subnet['AvailabilityZone']}" for subnet in subnets))
    groups = account.ask("ec2", "describe_security_groups", GroupIds=_named(config, "SecurityGroupIds"))["SecurityGroups"]
    networks = {subnet["VpcId"] for subnet in subnets}
    for group in groups:
        yield _of_group(group, networks)


def _of_group(group: Mapping[str, Any], networks: set[str]) -> Finding:
    name, rules = group["GroupId"], group["IpPermissions"]
    sources = {
        cidr
        for rule in rules
        if rule["IpProtocol"] == "-1" or rule.get("FromPort", 0) <= SSH_PORT <= rule.get("ToPort", -1)
        for cidr in [
            *(entry["CidrIp"] for entry in rule.get("IpRanges", [])),
            *(entry["CidrIpv6"] for entry in rule.get("Ipv6Ranges", [])),
        ]
    }
    within = any(
        rule["IpProtocol"] == "-1" and name in [pair["GroupId"] for pair in rule.get("UserIdGroupPairs", [])] for rule in rules
    )
    if group["VpcId"] not in networks or len(networks) > 1:
        return Finding(
            "security group", "problem", f"{name} is of {group['VpcId']}, the subnets of {', '.join(sorted(networks))}"
        )
    if wide := sorted(sources.intersection(OPEN_TO_ALL)):
        return Finding(
            "security group", "problem", f"{name} admits SSH from {wide[0]}, the whole internet; admit your address only"
        )
    if not sources:
        return Finding("security group", "problem", f"{name} admits SSH from nowhere; admit your address on port {SSH_PORT}")
    if not within:
        return Finding(
            "security group", "problem", f"{name} does not admit its own members, so that nodes cannot reach each other"
        )
    return Finding(
        "security group", "ok", f"{name} admits SSH from {', '.join(sorted(sources))}, and its members to each other"
    )


def _of_profiles(account: Account, config: dict[str, Any]) -> Iterator[Finding]:
    profiles = [node_type["node_config"].get("IamInstanceProfile") for node_type in node_types(config).values()]
    names = dict.fromkeys(
        (profile.get("Name") or profile["Arn"].rsplit("/", 1)[-1]) if profile else None for profile in profiles
    )
    for name in names:
        if name is None:
            yield Finding("profile", "problem", "a node type has none, so that Ray gives its head full access to EC2 and S3")
            continue
        roles = account.ask("iam", "get_instance_profile", InstanceProfileName=name)["InstanceProfile"]["Roles"]
        if roles:
            yield Finding("profile", "ok", f"{name} with the role {roles[0]['RoleName']}")
        else:
            yield Finding("profile", "problem", f"{name} has no role: aws iam add-role-to-instance-profile")


@dataclass(frozen=True)
class Kind:
    """A node type: how many of it there may be, and what each has."""

    name: str
    instance_type: str
    is_spot: bool
    most: int
    vcpus: int
    gpu: str | None
    num_gpus: int

    @property
    def family(self) -> str | None:
        letters = re.match("[a-z]*", self.instance_type)
        start = letters[0] if letters else ""
        return next((family for family, firsts in FAMILIES.items() if start[:1] and start[0] in firsts), None)


def _of_machines(account: Account, config: dict[str, Any], prices: Prices) -> Iterator[Finding]:
    head = config.get("head_node_type")
    wanted = _named(config, "InstanceType")
    described = {
        found["InstanceType"]: found
        for found in account.ask("ec2", "describe_instance_types", InstanceTypes=wanted)["InstanceTypes"]
    }
    kinds = []
    for name, node_type in node_types(config).items():
        there = described[node_type["node_config"]["InstanceType"]]
        gpus = there.get("GpuInfo", {}).get("Gpus", [])
        num_gpus = sum(gpu["Count"] for gpu in gpus)
        kinds.append(
            Kind(
                name,
                there["InstanceType"],
                node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot",
                1 if name == head else min(node_type.get("max_workers", config.get("max_workers", 0)), config["max_workers"]),
                there["VCpuInfo"]["DefaultVCpus"],
                gpus[0]["Name"] if gpus else None,
                num_gpus,
            )
        )
        promised = node_type.get("resources", {})
        for resource, most in (("CPU", there["VCpuInfo"]["DefaultVCpus"]), ("GPU", num_gpus)):
            if promised.get(resource, 0) > most:
                yield Finding(
                    "machines",
                    "problem",
                    f"{name} promises {promised[resource]} {resource}s and {with_article(there['InstanceType'])} has {most}",
                )
    listing = ", ".join(f"{kind.most} × {kind.instance_type}{' spot' if kind.is_spot else ''}" for kind in kinds)
    yield Finding("machines", "ok", f"at most {listing}")
    yield from _of_quotas(account, kinds)
    yield from _of_price([kind for kind in kinds if kind.name != head], prices)


def _of_quotas(account: Account, kinds: Sequence[Kind]) -> Iterator[Finding]:
    from botocore.exceptions import BotoCoreError, ClientError

    needed: dict[tuple[str, bool], int] = {}
    for kind in kinds:
        if kind.family is None:
            yield Finding("quota", "not checked", f"which quota counts {with_article(kind.instance_type)} is not known here")
        else:
            key = (kind.family, kind.is_spot)
            needed[key] = needed.get(key, 0) + kind.most * kind.vcpus
    for (family, is_spot), vcpus in needed.items():
        what = f"quota of {family} {'spot' if is_spot else 'on-demand'} vCPUs"
        code = QUOTAS[family, is_spot]
        try:
            answer = account.ask("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode=code)
        except (BotoCoreError, ClientError) as error:
            yield Finding(what, "not checked", f"{short(error)}; the file may start {vcpus}")
            continue
        quota = answer["Quota"]["Value"]
        if quota < vcpus:
            yield Finding(
                what, "problem", f"{quota:g}, and the file may start {vcpus}: ask for more ({code}), or lower max_workers"
            )
        else:
            yield Finding(what, "ok", f"{quota:g}, and the file may start {vcpus}")


def _of_price(kinds: Sequence[Kind], prices: Prices) -> Iterator[Finding]:
    most, parts = 0.0, []
    for kind in kinds:
        if not kind.num_gpus or kind.gpu is None:
            yield Finding("price", "not checked", f"{kind.name} has no GPU, and the table has prices of GPUs only")
            continue
        gpu = prices.table.gpu(
            prices.table.gpu_of_nodes([kind.gpu.replace(" ", "-")]), price=prices.price, spot_price=prices.spot_price
        )
        price, option = (gpu.spot_price, "--spot-price") if kind.is_spot else (gpu.price, "--price")
        if price is None:
            unknown = f"of {with_article(kind.gpu)} for {kind.name} is not known: {option} DOLLARS_A_GPU_HOUR"
            yield Finding("price", "not checked", unknown)
            continue
        most += kind.most * kind.num_gpus * price
        parts.append(f"{kind.name} {kind.most} × {kind.num_gpus} × ${price:g}")
    if parts:
        yield Finding(
            "price",
            "ok",
            f"at most ${most:,.2f} an hour for GPUs ({', '.join(parts)}); the head, disks and traffic are not in it",
        )
