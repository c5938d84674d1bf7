"""Processes by a name that means one among all machines: whether another is gone, where that can be known."""

import os
from pathlib import Path


def name_of_process(pid: int) -> str:
    """A process's name among all machines, until they are started again: machine, namespace of ids, id, start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # From the third field on: the second is the command's name, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {pid} {fields[19]}" if fields[0] not in "ZX" else ""
    except OSError:
        return ""


def is_gone(process: str) -> bool:
    """Whether it was a process of this machine and has ended; False for another machine's, which cannot be known."""
    names, own = process.split(" "), name_of_process(os.getpid()).split(" ")
    return len(names) == 4 and names[:2] == own[:2] and name_of_process(int(names[2])) != process
