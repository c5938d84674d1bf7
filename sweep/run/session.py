"""Ray for the time of a run: a Ray of our own on this machine, or a cluster that is joined; and what a run may use of it."""

import contextlib
import functools
import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.object_store import SHARED
from pipelines.workers.telemetry import OFF, turn_off
from pipelines.workers.watchdog import STALL_AFTER, stall_after
from sweep.graph.queue import Capacity, check_resources
from sweep.graph.step import Step
from sweep.run.ends import deaf_to_notices, kill_descendants
from sweep.run.failures import one_line
from sweep.run.machine import live_nodes, local_resources

ACCELERATOR_TYPE = "accelerator_type:"
"""A node with GPUs has a resource of this name and their type's."""
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train's own, a process a finetuning: at a notice it tears the workers down, which ours let commit and end."""
IMPORTED_FIRST = "RAY_preload_python_modules"
"""Ray's setting for modules that its workers import as they start. It puts the driver's folders first on their path, where a
user may have an `analysis`: `sweep` keeps ours. A runtime environment's hook does the same where Ray is joined; in a Ray of our
own it would cost processes that are started and not used."""
WITHOUT_CLUSTER = (
    "start a cluster (ray up cluster.yaml) and run this on its head node, or leave --address out to use this machine"
)


@dataclass(frozen=True)
class RayOptions:
    """Where to run: `address` None starts a Ray of our own on this machine."""

    address: str | None = None
    max_cpus: float | None = None
    max_gpus: float | None = None
    max_failures: int = 1
    debug: bool = False
    seeds_at_once: int | None = None


MOST_FOLDER = 107 - len("/ray/session_2026-12-01_10-36-57_581790_4194304/sockets/plasma_store")
"""Bytes of a folder for temporary files in which the names of Ray's sockets have no more than Linux takes."""
SHORT_FOLDER = "/tmp"


def _set_environment(*, debug: bool, is_local: bool) -> None:
    """Settings that must stand before Ray is imported; local workers inherit them."""
    turn_off()
    if is_local:
        _set_folder()
    defaults = {
        # What a worker raised, and how it died, is in the failure that the run shows.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "" if debug else ".",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    if is_local and "ray" not in sys.modules:
        # Ray would go on with the token that it has read.
        defaults |= {
            # Its services listen on loopback only, as Ray has it on macOS.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # And they let in nobody without this run's token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _set_folder() -> None:
    """Have Ray's own files in a folder that is not too long for its sockets, as a job's TMPDIR on a cluster may be."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    if not name or len(os.fsencode(os.environ[name])) <= MOST_FOLDER:
        return
    why = f"{name}={os.environ[name]} is longer than {MOST_FOLDER} bytes, too long for the names of Ray's sockets"
    if name == "RAY_TMPDIR":
        raise UserError(f"{why}; set a shorter one")
    os.environ["RAY_TMPDIR"] = SHORT_FOLDER
    print(f"Warning: {why}: its own files are in {SHORT_FOLDER}, or where RAY_TMPDIR says", file=sys.stderr, flush=True)


@contextlib.contextmanager
def ray_session(options: RayOptions, steps: Sequence[Step]) -> Iterator[Capacity]:
    """Start or join Ray, and leave it again; gives what `steps` may use of it.

    Raises UserError if there is no cluster to join, or a step could never run: without an address, before
    Ray is even started.
    """
    stall_after()
    if options.address is None:
        capacity = local_capacity(options)
        check_resources(steps, capacity)
    _set_environment(debug=options.debug, is_local=options.address is None)
    import logging

    import ray

    if options.address is None:
        start = functools.partial(_start, capacity, _logs(options))
    else:
        start = functools.partial(_join, options.address, _logs(options))
    try:
        with deaf_to_notices():
            _keeping_handler_of_sigterm(start)
        for name in ("ray.tune", "ray.train", "ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.INFO if options.debug else logging.CRITICAL)
        if options.address is not None:
            capacity = cluster_capacity(options)
            check_resources(steps, capacity)
        yield capacity
    except KeyboardInterrupt:
        if options.address is None:
            # At once: a signal to the whole process group has ended Ray's control store, and Ray would wait for it.
            kill_descendants()
        else:
            ray.shutdown()
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _keeping_handler_of_sigterm(start: Callable[[], None]) -> None:
    """Call `start`, which puts a handler of Ray's in the place of what this process does on SIGTERM: `sys.exit(SIGTERM)`."""
    if threading.current_thread() is not threading.main_thread():
        start()
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        start()
    except SystemExit as error:
        if error.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def accelerator_types(options: RayOptions) -> set[str]:
    """Ray's names for the GPUs of this machine, or of the cluster's nodes that are up. Joins it and leaves it again.

    Raises UserError if there is no cluster to join.
    """
    if options.address is None and not local_capacity(options).gpus:
        return set()
    _set_environment(debug=options.debug, is_local=options.address is None)
    import ray

    if options.address is None:
        from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

        name = NvidiaGPUAcceleratorManager.get_current_node_accelerator_type()
        return {name} if name else set()

    _join(options.address, _logs(options))
    try:
        nodes = [node["Resources"] for node in live_nodes()]
    finally:
        ray.shutdown()
    return {
        name.removeprefix(ACCELERATOR_TYPE)
        for resources in nodes
        if resources.get("GPU", 0) > 0
        for name in resources
        if name.startswith(ACCELERATOR_TYPE)
    }


def _logs(options: RayOptions) -> dict[str, Any]:
    import logging

    return {
        "log_to_driver": options.debug,
        "logging_level": logging.INFO if options.debug else logging.ERROR,
        "configure_logging": True,
    }


def _start(capacity: Capacity, logs: Mapping[str, Any]) -> None:
    import ray

    os.environ.setdefault(PREEMPTION_WATCHER, "0")
    os.environ.setdefault(IMPORTED_FIRST, "sweep")
    if not capacity.gpus:
        # DeepSpeed looks for an accelerator when it is first imported, in whichever worker that is.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Drivers and controllers take no CPU, so that a small machine has more processes than Ray expects and warns of.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(16, int(capacity.cpus))))
    # "local", or a cluster named in the environment or left behind by a killed run would be joined. Ray's dashboard is
    # for people; only *stopped* trials need it (to give their placement groups back), and a step is never stopped here.
    ray.init(
        address="local",
        num_cpus=int(capacity.cpus),
        num_gpus=int(capacity.gpus),
        include_dashboard=False,
        **logs,
    )


@contextlib.contextmanager
def joined(address: str, modules: Sequence[Any] = ()) -> Iterator[None]:
    """A cluster that is joined for a while, whose workers have these modules beside the product's lower floors.

    Raises UserError if there is none.
    """
    _set_environment(debug=False, is_local=False)
    import ray

    _join(address, _logs(RayOptions(address)), modules)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, logs: Mapping[str, Any], modules: Sequence[Any] = ()) -> None:
    """Join a cluster, with this checkout's code for its workers. Raises UserError if there is none."""
    import ray

    import pipelines
    import sweep

    _check_address(address)
    # No keys: Ray prints runtime environments. The nodes have a role, or credentials of their own.
    shared = {name: os.environ[name] for name in SHARED if name in os.environ}
    settings = {"RAY_TRAIN_V2_ENABLED": "1", PREEMPTION_WATCHER: "0", STALL_AFTER: str(stall_after())}
    variables = {name: os.environ.get(name, off) for name, off in OFF.items()} | settings | shared
    # Folders: a user's package of the same name may have put its own on the package's path, behind ours.
    folders = [module.__path__[0] for module in (pipelines, sweep, *modules)]
    environment = {"py_modules": folders, "env_vars": variables, "worker_process_setup_hook": "sweep.own_packages.keep_ours"}
    try:
        ray.init(address=address, runtime_env=environment, **logs)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address {address}: {one_line(error)}; {WITHOUT_CLUSTER}") from error


def _check_address(address: str) -> None:
    """Ray itself would try for six minutes to reach a host that does not answer."""
    if "://" in address:
        raise UserError(
            f"--address {address}: a run belongs on the cluster; start it on the head node (ray attach) with --address auto"
        )
    host, separator, port = _found(address).rpartition(":")
    if separator:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UserError(f"--address {address}: no Ray answers there ({error}); {WITHOUT_CLUSTER}") from error


def _found(address: str) -> str:
    """The host and port that `auto` stands for: maybe a run's own Ray, which lets nobody else in. As it is, where none runs."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return (canonicalize_bootstrap_address(address) if address == "auto" else None) or address
    except ConnectionError:
        return address


def local_capacity(options: RayOptions) -> Capacity:
    """The CPUs and GPUs that a Ray of our own on this machine is given."""
    there = local_resources()
    cpus = there["CPU"] if options.max_cpus is None else max(1, int(options.max_cpus))
    gpus = there["GPU"] if options.max_gpus is None else min(int(options.max_gpus), there["GPU"])
    return Capacity(cpus, gpus, ({"CPU": cpus, "GPU": gpus},), there=there)


def cluster_capacity(options: RayOptions) -> Capacity:
    """The resources that the joined cluster has, or may grow to: by its autoscaler's file, or if the options say so."""
    nodes = tuple(node["Resources"] for node in live_nodes())
    there = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    grown = _autoscaler()
    if grown is not None:
        nodes = tuple(type_.resources for type_ in grown.types for _ in range(type_.most))
        there = {name: max(there[name], grown.most(name)) for name in there}
    cpus = there["CPU"] if options.max_cpus is None else options.max_cpus
    gpus = there["GPU"] if options.max_gpus is None else options.max_gpus
    if cpus > there["CPU"] or gpus > there["GPU"]:
        # Machines that are not there yet bring CPUs as well; Ray's autoscaler knows how many.
        nodes = ()
        cpus = math.inf if options.max_cpus is None else cpus
    return Capacity(cpus, gpus, nodes, "the cluster", there)


@dataclass(frozen=True)
class _NodeType:
    """One of an autoscaler's kinds of machine, of which there may be `most`."""

    resources: Mapping[str, float]
    most: int
    is_head: bool


@dataclass(frozen=True)
class _Autoscaler:
    """What Ray's autoscaler may start: machines of `types`, `max_workers` of them beside the head."""

    types: Sequence[_NodeType]
    max_workers: int

    def most(self, name: str) -> float:
        """The most that there can be of a resource, with the machines that have the most of it."""
        amounts = [type_.resources.get(name, 0) for type_ in self.types if not type_.is_head for _ in range(type_.most)]
        head = sum(type_.resources.get(name, 0) for type_ in self.types if type_.is_head)
        return head + sum(sorted(amounts, reverse=True)[: self.max_workers])


def _autoscaler() -> _Autoscaler | None:
    """The joined cluster's autoscaler, None if it has none on this machine: Ray itself does not pass on its limits."""
    import ray
    import yaml

    address = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    option = "--autoscaling-config="
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            files = [word.removeprefix(option) for word in words if word.startswith(option)]
            if address in words and files:
                return _read_autoscaler(yaml.safe_load(Path(files[0]).expanduser().read_text()))
    return None


def _read_autoscaler(config: Mapping[str, Any]) -> _Autoscaler | None:
    """None if the file does not say what its machines have, as with Ray's local provider: then those that are there count."""
    if not all(type_.get("resources") for type_ in config["available_node_types"].values()):
        return None
    max_workers, head = config["max_workers"], config["head_node_type"]
    types = []
    for name, type_ in config["available_node_types"].items():
        most = 1 if name == head else min(type_.get("max_workers", max_workers), max_workers)
        types.append(_NodeType(type_.get("resources", {}), most, name == head))
    return _Autoscaler(types, max_workers)
