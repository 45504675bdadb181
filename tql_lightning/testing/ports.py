"""A port for processes that find each other by its number, which has to be chosen before one of them listens."""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")  # what the system takes for those that name no port
FIRST = 10_000


def quiet_port() -> int:
    """A free port that stays free until it is listened at: the system gives it to nobody who does not ask for it."""
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
