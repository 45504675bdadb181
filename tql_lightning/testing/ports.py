"""Chooses a port before the processes that meet there listen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")  # what the system takes for those that name no port
FIRST = 10_000


def quiet_port() -> int:
    """Returns a free port outside the ephemeral range, so that the system does not give it to another program."""
    end = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32_768
    candidates = range(FIRST, end) if end > FIRST + 1000 else range(FIRST, 65_536)
    for port in random.SystemRandom().sample(candidates, 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("all of a hundred ports are in use")
