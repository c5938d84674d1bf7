"""Machines of a cluster on this one: each a process tree, a network address and an sshd of its own, in namespaces.

All of them hang from one process, the laptop, whose network has nothing but the bridge between them: nothing reaches beyond
it, and its end is everything's end. Nothing of this machine is changed: what a node has of its own (home, /tmp, /run, users) is
mounted in its namespace. The file system is otherwise this machine's. Of an image from which nodes start, each has uv with a
copy of this machine's cache of packages, and the Python that runs here as if uv had brought it; uv is told to stay offline.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

LAPTOP = "10.90.0.1"
HEAD = "10.90.0.2"
WORKERS = ("10.90.0.3", "10.90.0.4")
TOOLS = ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "rsync", "tmux", "/usr/sbin/sshd")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
UV = Path(sys.executable).with_name("uv")
MANAGED = Path(f"/home/ubuntu/.local/share/uv/python/cpython-{sys.version.split()[0]}-linux-x86_64-gnu")

# The first process ends then, and all others with it. What the terminal shows that this is called in is kept.
SHUTDOWN = "#!/bin/sh\ntmux capture-pane -pJ -S - > /mnt/terminal\ntouch /mnt/off\n"
NODE = """
set -e
mount --make-rprivate /
mount --bind {folder} /mnt
cd /mnt
for file in passwd group shadow; do mount --bind $file /etc/$file; done
mount --bind home /home
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o size=2g tmpfs /dev/shm
mkdir /run/sshd /run/python
mount --bind {python} /run/python
mount -t tmpfs -o mode=755 tmpfs /root
mkdir -p {python}
mount --bind /run/python {python}
mount --bind /run/python {managed}
mount --bind bin /usr/local/sbin
ip link set lo up
ip address add {address}/24 dev eth0
ip link set eth0 up
# It leads nowhere, but Ray takes for its own the address that it would reach the internet from.
ip route add default via {laptop}
hostname {name}
/usr/sbin/sshd -f /mnt/sshd_config -E /mnt/sshd.log
mount --bind tmp /tmp
cd /
until [ -e /mnt/off ]; do sleep 1; done
"""
SSHD = """
HostKey /mnt/host_key
PidFile none
PermitRootLogin yes
StrictModes no
AuthorizedKeysFile /mnt/key.pub
UsePAM no
Subsystem sftp internal-sftp
SetEnv {environment}
"""


def missing() -> str | None:
    """Why no such machines can be had here, or None."""
    if os.geteuid() != 0:
        return "namespaces and mounts need root"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"{', '.join(lacking)} missing (Debian: openssh-server, iproute2, rsync, tmux)"
    if not UV.exists():
        return f"no uv at {UV}"
    probe = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


class Machines:
    """The laptop and the nodes; `folder` holds all that they write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.laptop: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.disks: dict[str, Path] = {}

    def start(self) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        for name in ("laptop/home", "laptop/tmp"):
            (self.folder / name).mkdir(parents=True)
        setup = f"""
            set -e
            mount --make-rprivate /
            mount -t tmpfs tmpfs /run
            ip link set lo up
            ip link add bridge0 type bridge
            ip address add {LAPTOP}/24 dev bridge0
            ip link set bridge0 up
            touch {self.folder}/laptop/ready
            while true; do sleep 1; done
        """
        isolate = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", setup]
        self.laptop = subprocess.Popen(isolate)
        wait_for(self.folder / "laptop/ready")

    @property
    def _enter(self) -> list[str]:
        assert self.laptop is not None
        children = Path(f"/proc/{self.laptop.pid}/task/{self.laptop.pid}/children").read_text().split()
        return ["nsenter", "--target", children[0], "--net", "--mount", "--pid"]

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command on the laptop, with its output, standard error included."""
        with self.start_command(command, environment=environment, cwd=cwd) as process:
            try:
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
                raise AssertionError(f"{command} did not end within {timeout} s:\n{out}") from None
        return subprocess.CompletedProcess(command, process.returncode, out)

    def start_command(
        self,
        command: Sequence[str] | str,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        output: Path | None = None,
    ) -> subprocess.Popen[str]:
        """The same without waiting for it. What nobody reads goes to a file: a full pipe would hold it up."""
        arguments = ["bash", "-c", command] if isinstance(command, str) else list(command)
        home = {
            "HOME": str(self.folder / "laptop/home"),
            "TMPDIR": str(self.folder / "laptop/tmp"),
            "RAY_TMPDIR": str(self.folder / "laptop/tmp"),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "TERM": "dumb",
        }
        return subprocess.Popen(
            [*self._enter, f"--wd={cwd or self.folder}", *arguments],
            env={**home, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def check(self, command: Sequence[str] | str, *, timeout: float = 30) -> str:
        done = self.run(command, timeout=timeout)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def boot(self, address: str, *, environment: Mapping[str, str] | None = None, uv_settings: str = "") -> None:
        """Start a machine from the image, with an empty disk, at an address that no machine has now."""
        name = f"node{address.rpartition('.')[2]}"
        folder = self.disks[address] = self.folder / f"{name}-{sum(key == address for key in self.nodes)}-{time.monotonic_ns()}"
        for sub in ("home/ubuntu/.local/bin", "home/ubuntu/.config/uv", "home/ubuntu/.local/share/uv/python", "tmp", "bin"):
            (folder / sub).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        # uid 0, so that uv can link the packages from its cache: the kernel lets nobody else link another's files.
        (folder / "passwd").write_text(
            "ubuntu:x:0:0::/home/ubuntu:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
        )
        (folder / "group").write_text("ubuntu:x:0:\nnogroup:x:65534:\ntty:x:5:\n")
        (folder / "shadow").write_text("ubuntu:*:19000::::::\nsshd:*:19000::::::\n")
        (folder / "bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (folder / "bin/shutdown").write_text(SHUTDOWN)
        for tool in (folder / "bin").iterdir():
            tool.chmod(0o755)
        home = folder / "home/ubuntu"
        # As Ubuntu's own: it reads the ones of the user, too.
        (home / ".bashrc").write_text("export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n")
        shutil.copy(UV, home / ".local/bin/uv")
        (home / ".config/uv/uv.toml").write_text(uv_settings)
        python = home / MANAGED.relative_to("/home/ubuntu")
        python.mkdir()
        cache = subprocess.run([UV, "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()
        (home / ".cache").mkdir()
        subprocess.run(["cp", "-al", cache, str(home / ".cache/uv")], check=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")], check=True)
        shutil.copy(f"{self.key}.pub", folder)
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in (environment or {"BLINDSWEEP_NODE": name}).items())
        (folder / "sshd_config").write_text(SSHD.format(environment=settings))
        self.check(
            f"""
            ip netns add {name}
            ip link add {name} type veth peer name eth0 netns {name}
            ip link set {name} master bridge0 up
            """
        )
        script = NODE.format(folder=folder, address=address, name=name, python=sys.base_prefix, managed=MANAGED, laptop=LAPTOP)
        isolate = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self.nodes[address] = subprocess.Popen(
            [*self._enter, "ip", "netns", "exec", name, *isolate, "bash", "-c", script],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
        )
        ssh = f"ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i {self.key} ubuntu@{address} true"
        deadline = time.monotonic() + 20
        while (done := self.run(ssh, timeout=20)).returncode != 0:
            assert time.monotonic() < deadline, done.stdout
            time.sleep(0.2)

    def is_up(self, address: str) -> bool:
        return self.nodes[address].poll() is None

    def last_terminal(self, address: str) -> str:
        """What the terminal (tmux) showed in which a machine was switched off."""
        return (self.disks[address] / "terminal").read_text()

    def kill(self, address: str) -> None:
        """A machine that is gone from one moment to the next: its cable first, so that not even its kernel says goodbye."""
        name = f"node{address.rpartition('.')[2]}"
        self.check(
            f"ip link set {name} down; ip netns pids {name} | xargs kill -9; ip link delete {name}; ip netns delete {name}"
        )
        self.nodes.pop(address).wait(timeout=20)

    def stop(self) -> None:
        if self.laptop is not None:
            self.laptop.kill()
            self.laptop.wait(timeout=20)
        for node in self.nodes.values():
            node.wait(timeout=20)


@contextlib.contextmanager
def machines(folder: Path) -> Iterator[Machines]:
    cluster = Machines(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_for(path: Path, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
