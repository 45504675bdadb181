"""Too little memory ends in a message that says what it was for, and what to lower."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from tests.toy import fit, toy_model
from tql_lightning.cli.main import main
from tql_lightning.training.out_of_memory import TooLittleMemoryError, is_out_of_memory, remedies_for

# For so many numbers there is no address space, so that also a system that promises more memory than it has refuses.
HUGE = 10**15
WIDE = 10_000_000  # squared


def test_an_update_that_memory_does_not_suffice_for_names_its_sizes(tmp_path: Path) -> None:
    model, before = toy_model(), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 600_000_000, before[1]))
    try:
        with pytest.raises(TooLittleMemoryError) as raised:
            fit(tmp_path, model, 1, data={"batch_size": 1_000_000}, updates_per_step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    message = str(raised.value)
    assert message.startswith("cpu is out of memory with batch 1,000,000 (of this process), 5 tokens, hidden size 16, ")
    assert "DefaultCPUAllocator" in message
    assert "--data.batch_size, --model.critic.hidden_dim" in message
    assert "cuda_graphs" not in message
    assert "more devices" not in message


def test_only_what_applies_is_advised() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    recorded = "\n".join(remedies_for(gpu, cuda_graphs=True))
    for remedy in (
        "more devices",
        "--data.storage=cpu",
        "--model.execution.cuda_graphs=false",
        "bf16-mixed",
        "chunked",
    ):
        assert remedy in recorded
    assert "cuda_graphs" not in "\n".join(remedies_for(gpu))
    plain = "\n".join(remedies_for(cpu, attends=False))
    for remedy in ("devices", "storage", "cuda_graphs", "chunked", "num_layers", "token"):
        assert remedy not in plain
    assert "--model.critic.hidden_dims" in plain


@pytest.mark.usefixtures("command_folder")
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (f"--data.batch_size={HUGE}", f"tql: cpu is out of memory with batch {HUGE:,} (of this process), 5 tokens"),
        (f"--model.critic.hidden_dim={WIDE}", "tql: memory does not suffice"),
    ],
)
def test_the_command_says_so_without_a_traceback(
    setting: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset", "--trainer.logger=false"]
    assert main(["fit", *arguments, setting]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "can't allocate memory" in message
    assert "lower --data.batch_size" in message
    assert "Traceback" not in message


def test_other_errors_are_left_alone() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
