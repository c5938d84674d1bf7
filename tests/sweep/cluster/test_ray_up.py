"""`ray up` for real: machines in namespaces, cluster.yaml but for what `derived` lists, and one that is lost."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.sweep.cluster.derived import CUDA_EXTRA, ROOT, SECTIONS, derived, differences
from tests.sweep.cluster.machines import HEAD, LAPTOP, UV, WORKERS, Machines, machines, missing

CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())
S3_PORT = 5000
AWS = {
    "AWS_ENDPOINT_URL": f"http://{LAPTOP}:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
# The autoscaler that `ray up` takes by default starts no machine of the local provider: it does not see the head among the
# provider's machines, which only the older one enters there. On AWS the default is used.
LAUNCHER = {"RAY_UP_enable_autoscaler_v2": "0"}
STUDY = "demo -p seeds=0 -p starting_sizes=0 -p training_sizes=60 -p pool_size=120"
RUN = f"blindsweep run {STUDY} --address auto --store s3://studies/blindsweep"


def test_nothing_differs_but_provider_auth_node_types_and_the_cuda_extra(tmp_path: Path) -> None:
    for path, old, new in differences(CONFIG, derived(CONFIG, tmp_path / "key", HEAD, WORKERS)):
        print(f"{path}: {old} -> {new}")
        if path.partition(".")[0] in SECTIONS:
            continue
        assert path.startswith("setup_commands["), path
        for cuda, cpu in CUDA_EXTRA.items():
            old = old.replace(cuda, cpu)
        assert old == new
    written = yaml.safe_load(yaml.safe_dump(derived(CONFIG, tmp_path / "key", HEAD, WORKERS)))
    assert set(written) == set(CONFIG) - {"available_node_types", "head_node_type"}


def pip_settings() -> dict[str, list[str]]:
    """pip's settings by name, each a list of words: [install] overrides [global], and the environment both."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = {}
    for place in ("global.", "install.", ":env:."):
        for line in done.stdout.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(place):
                settings[name.removeprefix(place)] = str(ast.literal_eval(value)).split()
    return settings


def uv_settings() -> str:
    """This machine's settings of pip in uv's words, without its network."""
    pip = pip_settings()
    lines = ["offline = true", 'python-downloads = "never"', 'index-strategy = "unsafe-best-match"']
    lines.append(f"find-links = {[place for place in pip.get('find-links', []) if Path(place).exists()]}")
    for index in pip.get("extra-index-url", []):
        lines.append(f'[[index]]\nurl = "{index}"')
    for index in pip.get("index-url", []):
        lines.append(f'[[index]]\nurl = "{index}"\ndefault = true')
    return "\n".join(lines) + "\n"


def missing_packages(settings: Path) -> str | None:
    """Why a node could not install its packages from uv's cache, or None."""
    install = derived(CONFIG, Path("key"), HEAD, WORKERS)["setup_commands"][-1]
    arguments = shlex.split(install.partition("uv pip install")[2])
    arguments[arguments.index(".venv/bin/python")] = sys.executable
    command = [str(UV), "--config-file", str(settings), "pip", "install", "--dry-run", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        return None
    fill = " ".join(["uv pip install --target /tmp/unused", *arguments[2:]])
    return f"uv's cache lacks packages of the nodes; fill it once by: {fill} ({' '.join(done.stderr.split())[:300]})"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("machines")
    settings = folder / "uv.toml"
    settings.write_text(uv_settings())
    if reason := missing_packages(settings):
        pytest.skip(reason)
    with machines(folder) as there:
        for address in (HEAD, WORKERS[0]):
            there.boot(address, environment=AWS, uv_settings=settings.read_text())
        yield there
        # Gigabytes, which pytest would keep for three runs.
        there.stop()
        for node in folder.glob("node*"):
            shutil.rmtree(node)


@pytest.fixture(scope="module")
def checkout(cluster: Machines) -> Path:
    """A repository with the derived file in place of cluster.yaml."""
    folder = cluster.folder / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints", "pipelines", "sweep", "analysis"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    config = derived(CONFIG, cluster.key, HEAD, WORKERS[:1])
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def s3(cluster: Machines) -> Iterator[str]:
    """A bucket on the laptop, which the nodes reach as they would reach AWS."""
    command = [sys.executable, "-m", "moto.server", "-H", LAPTOP, "-p", str(S3_PORT)]
    server = cluster.start_command(command, output=cluster.folder / "s3.log")
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='studies')"
    deadline = time.monotonic() + 60
    while (done := cluster.run([sys.executable, "-c", make], timeout=60, environment=AWS)).returncode != 0:
        assert time.monotonic() < deadline, done.stdout
        time.sleep(1)
    yield "s3://studies/blindsweep"
    server.kill()


def ray(cluster: Machines, checkout: Path, command: str, timeout: float) -> str:
    """`ray COMMAND` as docs/cluster.md has it, from the laptop; what it printed. It must end well."""
    started = time.monotonic()
    done = cluster.run(f"ray {command}", timeout=timeout, cwd=checkout, environment=LAUNCHER)
    print(f"$ ray {command}\n{done.stdout}\n({time.monotonic() - started:.0f} s, {done.returncode})", flush=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def in_work(cluster: Machines, address: str) -> list[str]:
    """Ray's names of what runs on a machine and is of a step."""
    pids = cluster.check(f"ip netns pids node{address.rpartition('.')[2]}").split()
    names = cluster.check(f"cat {' '.join(f'/proc/{pid}/comm' for pid in pids)} 2>/dev/null || true").splitlines()
    return [name for name in names if name.startswith(("ray::RayTrain", "ray::Map", "VLLM", "ray::_Stage"))]


def until(is_so: Callable[[], bool], what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline, f"within {timeout} s not: {what}"
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_outlives_a_machine_of_its_cluster(cluster: Machines, checkout: Path, s3: str) -> None:
    def num_machines() -> int:
        done = cluster.run("ray exec cluster.yaml 'ray status'", timeout=120, cwd=checkout, environment=LAUNCHER)
        active = re.search(r"^ (\d+) local.cluster.node", done.stdout, re.MULTILINE)
        return int(active[1]) if active else 0

    ray(cluster, checkout, "up -y cluster.yaml", 900)
    assert not [*(cluster.folder / "laptop/home").rglob("auth_token")], "the head makes the token, not the user"
    until(lambda: num_machines() == 2, "a worker of the cluster", 900)

    log = cluster.folder / "run.log"
    run = cluster.start_command(f"ray exec cluster.yaml {shlex.quote(RUN)}", cwd=checkout, environment=LAUNCHER, output=log)
    until(lambda: bool(in_work(cluster, WORKERS[0])) or run.poll() is not None, "work on the worker", 900)
    assert run.poll() is None, log.read_text()
    time.sleep(5)
    print(f"killed under {in_work(cluster, WORKERS[0])}", flush=True)
    cluster.kill(WORKERS[0])
    run.wait(timeout=1200)
    said = log.read_text()
    print(said)
    assert run.returncode == 0, said[-4000:]
    assert re.search(r"demo: (\d+) artifacts, 0 were there, \1 built", said)

    # The same command finds all of it, in a terminal of the head, and takes the cluster down with it.
    started = time.monotonic()
    ray(cluster, checkout, f"exec --tmux cluster.yaml {shlex.quote(f'{RUN}; blindsweep cluster end')}", 120)
    until(lambda: not cluster.is_up(HEAD), "the head is off", 900)
    said = cluster.last_terminal(HEAD)
    print(f"{said}\n(the head was off after {time.monotonic() - started:.0f} s)", flush=True)
    assert re.search(r"demo: (\d+) artifacts, \1 were there, 0 built", said)
    assert "No nodes remaining" in said
    ray(cluster, checkout, "down -y cluster.yaml", 600)
