"""On which addresses the processes of a session listen, from Linux's /proc."""

import os
import re
from pathlib import Path

Seen = set[tuple[str, str]]
"""(address, process) of sockets."""


def listeners(session: int) -> Seen:
    """(address, process) of each TCP socket on which a process of the session listens."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            name = (folder / "comm").read_text().strip()
            links = {os.readlink(link) for link in (folder / "fd").iterdir()}
        except OSError:
            continue
        found |= {(inodes[link], name) for link in links & inodes.keys()}
    return found


def is_loopback(address: str) -> bool:
    """Whether it is 127.0.0.1 or ::1, alone or as the kernel writes them in IPv6."""
    return bool(re.fullmatch(r"0100007F|0{16}FFFF00000100007F|0{24}01000000", address))


def check(seen: Seen) -> None:
    """Raise AssertionError unless Ray's daemon was seen, and nothing that can be reached from elsewhere."""
    assert any(is_loopback(address) and "raylet" in name for address, name in seen), "Ray's own were found"
    assert {name for address, name in seen if not is_loopback(address)} == set()
