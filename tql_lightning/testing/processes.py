"""A contract's run by two processes: ``python -m tql_lightning.testing.processes MODULE CONTRACT FOLDER``."""

from __future__ import annotations

import importlib
import os
import sys
from operator import attrgetter
from pathlib import Path

import torch

from tql_lightning.testing.contract import AlgorithmContract
from tql_lightning.testing.ports import quiet_port


def main(module: str, name: str, folder: Path) -> int:
    """Trains in two processes, of which the first writes the state to ``two.pt``; returns the exit code."""
    contract: type[AlgorithmContract] = attrgetter(name)(importlib.import_module(module))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(quiet_port()), "NODE_RANK": "0"}
    child = os.fork()  # before any gradient: torch's threads do not live on in a child
    os.environ["LOCAL_RANK"] = "0" if child else "1"
    torch.set_num_threads(1)
    state = contract().train_in_float64(folder, 2)
    if not child:
        return 0
    torch.save(state, folder / "two.pt")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
