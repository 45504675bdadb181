"""Acts with a policy that `tql export` wrote, on NumPy observations and without Lightning.

    from tql_lightning import Policy
    policy = Policy.load("exported")
    action = policy.act(observation)

`tql_lightning.export.policy_folder` describes the folder. Loading executes no code from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_lightning.export.hub import download, save_folder, upload
from tql_lightning.export.policy_folder import FILES, PolicyError, read_metadata
from tql_lightning.trust.text import shown

if TYPE_CHECKING:
    from tql_lightning.nn.scaled_policy import ScaledPolicy

Floats = NDArray[np.float32]
Act = Callable[[Floats, Floats], Floats]

MAX_ARCHITECTURE_VALUES = 1_000  # numbers and names that describe a network
_UNFIT = (  # raised by torch and the networks for a stranger's weights and arguments
    *(OSError, RuntimeError, MemoryError, ArithmeticError, LookupError),
    *(TypeError, ValueError, AttributeError, AssertionError),
)


class Policy:
    """Policy on NumPy observations with actions in the environment's units, made by `Policy.load`.

    Attributes:
        metadata: Content of metadata.json.
        folder: Folder that the policy was loaded from.

    Examples:
        >>> policy = Policy.load("policy", seed=0)  # what `tql export CHECKPOINT --output policy` wrote
        >>> policy.act(np.zeros(3)).shape
        (1,)
    """

    def __init__(
        self, metadata: Mapping[str, Any], act: Act, act_deterministic: Act, folder: Path, seed: int = 0
    ) -> None:
        self.metadata, self.folder = metadata, folder
        self._act, self._act_deterministic = act, act_deterministic
        self._rng = np.random.default_rng(seed)

    @classmethod
    def load(cls, path: Path | str, seed: int = 0) -> Policy:
        """Loads an exported policy.

        Args:
            path: Folder that `tql export` wrote.
            seed: Seed of the noise that `act` draws.

        Raises:
            PolicyError: the folder is none of `tql export`, a file is missing, damaged or changed, or a package is
                missing.
        """
        folder = Path(path)
        metadata = read_metadata(folder)
        try:
            acts = _onnx(folder) if metadata["format"] == "onnx" else _torch(folder, metadata)
        except ModuleNotFoundError as error:
            raise PolicyError(f'policy {path}: {error}; pip install "tql-lightning[export]"') from error
        return cls(metadata, *acts, folder, seed)

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        seed: int = 0,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> Policy:
        """Loads an exported policy from a folder, or from the Hugging Face Hub if there is no such folder.

        Only the files of an exported policy are downloaded, and they pass the checks of `load`: a stranger's policy
        executes no code.

        Args:
            name: Folder, or "user/repository" of the Hub.
            seed: Seed of the noise that `act` draws.
            revision: Branch, tag or commit of the repository; None for its main branch.
            token: Access token of the Hub; None for the one of `hf auth login`, if any.
            local_files_only: Whether to take what was downloaded before, and to ask no server.

        Raises:
            PolicyError: See `load`; or the Hub has no such policy.
        """
        if Path(name).exists():
            return cls.load(name, seed)
        return cls.load(download(str(name), revision, token, local_files_only), seed)

    def save_pretrained(self, folder: Path | str) -> None:
        """Copies the policy's files into a folder, with a page (README.md) that describes it.

        Raises:
            PolicyError: a file has changed or gone since the policy was loaded.
        """
        save_folder(self.folder, Path(folder), Path(folder).name)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the policy to the Hugging Face Hub and returns the address of its page.

        Args:
            repo_id: "user/repository"; made if it does not exist.
            private: Whether a new repository is private.
            token: Access token with the right to write; None for the one of `hf auth login`.

        Raises:
            PolicyError: a file has changed or gone since the policy was loaded, or huggingface_hub is missing.
        """
        return upload(self.folder, repo_id, private, token)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise of one observation."""
        return tuple(self.metadata["noise_shape"])

    def act(
        self, observations: ArrayLike, *, noise: ArrayLike | None = None, deterministic: bool = False
    ) -> NDArray[np.float32]:
        """Chooses actions for one observation or a batch.

        A policy that was trained with action chunks of h steps (``action_chunk`` of the metadata, above 1) returns h
        actions, to be taken in order before the next call.

        Args:
            observations: Finite observations (n_s,) or (B, n_s).
            noise: Standard normal noise (*noise_shape) or (B, *noise_shape); None to draw it from the policy's own
                generator, seeded on loading.
            deterministic: Whether to act with zero noise.

        Returns:
            Actions (n_a,) or (B, n_a) float32 within the environment's bounds; (h, n_a) or (B, h, n_a) if h is above 1.

        Raises:
            PolicyError: observations or noise have another shape or are not finite; or actions are not finite, because
                observations are far from those in training; or the folder's network cannot act.
        """
        given = _numbers("observations", observations)
        batch = np.ascontiguousarray(np.atleast_2d(given))
        size = int(self.metadata["observation_dim"])
        if given.ndim not in (1, 2) or batch.shape[1] != size or not len(batch):
            raise PolicyError(f"observations: expected shape ({size},) or (B, {size}), found {given.shape}")
        if not np.isfinite(batch).all():
            raise PolicyError("observations: expected finite numbers, found NaN or infinity")
        if deterministic and noise is not None:
            raise PolicyError("deterministic: expected no noise, since it acts with zero noise, found some")
        drawn = self._noise(noise, given.ndim == 1, len(batch), deterministic)
        try:
            actions = (self._act_deterministic if deterministic else self._act)(batch, drawn)
        except Exception as error:  # torch's and onnxruntime's have no common class
            raise PolicyError(f"policy {self.folder}: cannot act ({shown(str(error))}); export again") from error
        wanted = (len(batch), self.metadata["action_chunk"] * self.metadata["action_dim"])
        if actions.shape != wanted or actions.dtype != np.float32:
            found = f"{actions.shape} of {actions.dtype}"
            raise PolicyError(f"policy {self.folder}: expected actions {wanted}, found {found}; export again")
        if not np.isfinite(actions).all():
            found = f"numbers up to {np.abs(batch).max():.3g}"
            raise PolicyError(f"observations: expected some like those in training, found {found}")
        if self.metadata["action_chunk"] > 1:
            actions = actions.reshape(len(batch), self.metadata["action_chunk"], -1)
        return actions[0] if given.ndim == 1 else actions

    def _noise(self, noise: ArrayLike | None, single: bool, rows: int, deterministic: bool) -> Floats:
        shape = (rows, *self.noise_shape)
        if deterministic:
            return np.zeros(shape, dtype=np.float32)
        if noise is None:
            return self._rng.standard_normal(shape, dtype=np.float32)
        given = _numbers("noise", noise)
        given = given[None] if single else given
        if given.shape != shape or not np.isfinite(given).all():
            found = given.shape[1:] if single else given.shape
            raise PolicyError(
                f"noise: expected finite numbers of shape {shape[1:] if single else shape}, found shape {found}"
            )
        return np.ascontiguousarray(given)


def _numbers(name: str, given: ArrayLike) -> Floats:
    """Converts to float32; numbers that are too large become infinite.

    Raises:
        PolicyError: ``given`` is not an array of real numbers.
    """
    if isinstance(given, Mapping):
        raise PolicyError(
            f"{name}: expected an array of columns, found {type(given).__name__}; make its columns as in training with "
            "tql_lightning.data.flatten.flatten(env.observation_space, observation)"
        )
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths; tensors with gradients
        raise PolicyError(f"{name}: expected real numbers, found {type(given).__name__} ({error})") from error
    if array.dtype.kind not in "biuf":
        raise PolicyError(f"{name}: expected real numbers, found dtype {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _onnx(folder: Path) -> tuple[Act, Act]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more do not speed up a small network, and idle threads spin
    sessions = []
    for name in FILES["onnx"]:
        try:
            sessions.append(onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"]))
        except Exception as error:  # onnxruntime's own exceptions have no common class
            first = str(error).splitlines()[0]
            raise PolicyError(f"policy {folder}: onnxruntime cannot read {name} ({first}); export again") from error

    def act(observations: Floats, noise: Floats) -> Floats:
        actions: Floats = sessions[0].run(["actions"], {"observations": observations, "noise": noise})[0]
        return actions

    def act_deterministic(observations: Floats, _: Floats) -> Floats:
        actions: Floats = sessions[1].run(["actions"], {"observations": observations})[0]
        return actions

    return act, act_deterministic


def _torch(folder: Path, metadata: Mapping[str, Any]) -> tuple[Act, Act]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from tql_lightning.trust.building import building_no_more_than

    file = folder / FILES["torch"][0]
    try:
        weights = load_file(file)
        _check_architecture(metadata["architecture"], file.stat().st_size)
        with building_no_more_than(weights.values()), torch.device("meta"):  # allocates no memory, whatever the sizes
            expected = {name: tuple(each.shape) for name, each in build(metadata).state_dict().items()}
        if expected != {name: tuple(each.shape) for name, each in weights.items()}:
            raise ValueError("other names or shapes")
        network = build(metadata)
        if list(network.extraction.noise_shape(network.policy)) != metadata["noise_shape"]:
            raise ValueError("another noise_shape")
        network.load_state_dict(weights)
    except (SafetensorError, *_UNFIT) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PolicyError(f"policy {folder}: weights and architecture do not fit ({first}); export again") from error
    network.eval()
    deterministic = network.with_zero_noise()

    @torch.inference_mode()
    def act(observations: Floats, noise: Floats) -> Floats:
        actions: Floats = network(torch.from_numpy(observations), torch.from_numpy(noise)).numpy()
        return actions

    @torch.inference_mode()
    def act_deterministic(observations: Floats, _: Floats) -> Floats:
        noise = torch.zeros(len(observations), network.policy.action_dim)
        actions: Floats = deterministic(torch.from_numpy(observations), noise).numpy()
        return actions

    return act, act_deterministic


def _check_architecture(architecture: object, file_size: int) -> None:
    """Rejects layer sizes that exceed the size of the weights' file, before building the network.

    Raises:
        ValueError: a number, or the sum of a list's numbers, is larger; or there are too many numbers.
    """
    left = [architecture]
    for _ in range(MAX_ARCHITECTURE_VALUES):
        if not left:
            return
        part = left.pop()
        if isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part
            part = sum(each for each in part if isinstance(each, int | float))
        if isinstance(part, int | float) and not -file_size <= part <= file_size:
            raise ValueError(f"{shown(part)} in a network with {file_size} bytes of weights")
        if len(left) > MAX_ARCHITECTURE_VALUES:
            break
    raise ValueError(f"more than {MAX_ARCHITECTURE_VALUES:,} numbers of a network")


def build(metadata: Mapping[str, Any]) -> ScaledPolicy:
    """Builds the network that the metadata describe, with new weights.

    Args:
        metadata: Content of metadata.json; ``architecture`` is {"policy": arguments of `FlowPolicy`, "critic": null or
            {"class": "TransformerCritic" or "MLPCritic", "arguments": ...}}.

    Raises:
        KeyError, TypeError, ValueError: the arguments do not fit the networks.
    """
    from tql_lightning.nn.critic import Critic, MLPCritic, TransformerCritic
    from tql_lightning.nn.policy import FlowPolicy
    from tql_lightning.nn.scaled_policy import ScaledPolicy

    chunk = metadata["action_chunk"]
    sizes = metadata["observation_dim"], chunk * metadata["action_dim"]
    architecture = metadata["architecture"]
    critic: Critic | None = None
    if architecture["critic"] is not None:
        known = {kind.__name__: kind for kind in (TransformerCritic, MLPCritic)}
        critic = known[architecture["critic"]["class"]](*sizes, **architecture["critic"]["arguments"])
    policy = FlowPolicy(*sizes, **architecture["policy"])
    low, high = metadata["action_low"] * chunk, metadata["action_high"] * chunk
    return ScaledPolicy(policy, critic, metadata["extraction"], low, high)
