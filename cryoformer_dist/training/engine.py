"""Gradients across workers: the one seam between the loop and DeepSpeed or plain torch."""

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from cryoformer_dist.config.schema import TrainingConfig
from cryoformer_dist.errors import BackendUnavailableError, CheckpointError
from cryoformer_dist.ranks import rank_and_world, sum_over_ranks
from cryoformer_dist.runs.checkpoint import read_tensors

_WHOLE = "torch.pt"
_CHECKPOINT_TAG = "engine"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Word:
    """What ranks tell one another at a step: it travels with the gradients where it can, not as a message of its own.

    Attributes
    ----------
    say
        Norm of this rank's gradients, all of which are known then, to a few numbers on the device.
    hear
        Their sums over ranks to whether the step is to change nothing: at 1, on the device, weights and optimiser stay
        as they are, whatever the gradients.
    """

    say: Callable[[Tensor], Tensor]
    hear: Callable[[Tensor], Tensor]


class Engine(Protocol):
    """A network under an optimiser, the same on every rank."""

    rank: int
    world: int
    device: torch.device

    def forward(self, *arguments: Any) -> Any:
        """Call the module."""

    def step(self, loss: Tensor, learning_rate_factor: float, word: Word | None = None) -> None:
        """Backward, average gradients over ranks, and update with every peak rate times the factor.

        Parameters
        ----------
        loss
            Of this rank.
        learning_rate_factor
            Share of the peak rates.
        word
            Said before gradients are averaged and heard before the update.
        """

    def save(self, folder: Path) -> list[Path]:
        """Write weights and optimiser state below a folder that is there; every rank calls it, again if one failed.

        Returns the files that this rank wrote.
        """

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""


def parameter_groups(module: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Optimiser groups: the hash table, everything else, and each encoder, each with its peak rate.

    What takes part in a stage and what does not are never in one group.
    """
    rates = config.learning_rates
    # A row of a table is visited as often at any batch, and an encoder has not been measured.
    shared = math.sqrt(config.batch_ratio)
    groups: dict[str, dict[str, Any]] = {
        # Table entries that a step does not touch must not move: no decay, and an epsilon far below their gradients.
        "hash_grid": {"lr": rates.hash_grid * shared, "weight_decay": 0.0, "eps": 1e-15},
        "network": {"lr": rates.network * shared, "weight_decay": config.weight_decay},
    }
    encoder = {"lr": rates.encoder, "weight_decay": config.weight_decay}
    for name, parameter in module.named_parameters():
        encoders = [part for part in name.split(".") if part.endswith("_encoder")]
        kind = "hash_grid" if "grid.table" in name else encoders[0] if encoders else "network"
        groups.setdefault(kind, dict(encoder)).setdefault("params", []).append(parameter)
    return [group for group in groups.values() if "params" in group]


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(module, config), betas=(0.9, 0.99), fused=True)


def _stop_if(optimizer: torch.optim.Optimizer, stopped: Tensor | None) -> None:
    """Have a fused optimiser look, on the device, at whether it is to do nothing: torch's own way to skip a step."""
    if stopped is not None:
        optimizer.found_inf = stopped  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _Rates:
    """What the configuration wants of each group. A checkpoint brings along those of the run that wrote it."""

    peak: list[float]
    weight_decay: list[float]

    @staticmethod
    def of(optimizer: torch.optim.Optimizer) -> "_Rates":
        groups = optimizer.param_groups
        return _Rates([group["lr"] for group in groups], [group["weight_decay"] for group in groups])

    def set(self, optimizer: Any, factor: float, taking_part: Collection[int] | None = None) -> None:
        """Every group's rate, zero for groups that take no part (by number; ``None``: all do)."""
        for number, group in enumerate(optimizer.param_groups):
            resting = taking_part is not None and number not in taking_part
            group["lr"] = 0.0 if resting else self.peak[number] * factor
            group["weight_decay"] = self.weight_decay[number]


def learning_rate_factor(training: TrainingConfig, stage_step: int, progress: float) -> float:
    """Linear warm-up over equally many particles at any batch, then half a cosine down to the final share."""
    warmup = min(1.0, (stage_step + 1) / max(training.warmup_steps / training.batch_ratio, 1))
    floor = training.final_learning_rate
    return warmup * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def _save_whole(folder: Path, module: nn.Module, optimizer: Any) -> list[Path]:
    """State that every rank holds whole: any engine may go on with it, on any number of ranks."""
    # Not those above it: where storage is away, they would be made in its place.
    folder.mkdir(exist_ok=True)
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / _WHOLE)
    return [folder / _WHOLE]


def _load_whole(folder: Path, module: nn.Module, optimizer: Any, device: torch.device) -> None:
    path = folder / _WHOLE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; the run was trained with a training.zero_stage above 0: resume with that"
        )
    state = read_tensors(path, device)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])


class TorchEngine:
    """Plain torch: the reference, and the engine of a machine without DeepSpeed.

    Parameters
    ----------
    module
        To train; already on its device.
    config
        Rates and clipping.
    device
        Where batches go.
    """

    def __init__(self, module: nn.Module, config: TrainingConfig, device: torch.device) -> None:
        self.rank, self.world = rank_and_world()
        self.device = device
        self._module = module
        self._optimizer = _optimizer(module, config)
        self._rates = _Rates.of(self._optimizer)
        self._clipping = config.gradient_clipping

    def forward(self, *arguments: Any) -> Any:
        """Call the module."""
        return self._module(*arguments)

    def step(self, loss: Tensor, learning_rate_factor: float, word: Word | None = None) -> None:
        """See `Engine`."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        heard = self._average_gradients(loss.new_empty(0) if word is None else word.say(self._norm()))
        if self._clipping:
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), self._clipping)
        self._rates.set(self._optimizer, learning_rate_factor)
        _stop_if(self._optimizer, None if word is None else word.hear(heard))
        self._optimizer.step()

    def _norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self._module.parameters() if parameter.grad is not None]
        return torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()

    def _average_gradients(self, said: Tensor) -> Tensor:
        """Gradients become their means over ranks; what ranks say beside them is summed and returned."""
        if self.world == 1:
            return said
        # A part that takes no part in the stage has none, on every rank: zeros would let weight decay act on it.
        gradients = [parameter.grad for parameter in self._module.parameters() if parameter.grad is not None]
        # One message a step: each costs a round trip, whatever its size.
        together = torch.cat([*(gradient.reshape(-1) for gradient in gradients), said])
        torch.distributed.all_reduce(together)
        *parts, heard = together.split([*(each.numel() for each in gradients), len(said)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient) / self.world)
        return heard

    def save(self, folder: Path) -> list[Path]:
        """See `Engine`."""
        return _save_whole(folder, self._module, self._optimizer) if self.rank == 0 else []

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        _load_whole(folder, self._module, self._optimizer, self.device)


class DeepSpeedEngine:
    """DeepSpeed data parallelism, ZeRO stage 0 to 2.

    Parameters
    ----------
    module
        To train; already on its device.
    config
        Rates, clipping and ZeRO stage.
    device
        Where batches go.
    particles_per_rank
        Batch of one rank.

    Raises
    ------
    BackendUnavailableError
        If DeepSpeed cannot be imported: install it, or set ``training.engine: torch``.
    """

    def __init__(
        self, module: nn.Module, config: TrainingConfig, device: torch.device, particles_per_rank: int
    ) -> None:
        deepspeed = _import_deepspeed(device)
        settings = {
            "train_micro_batch_size_per_gpu": particles_per_rank,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.gradient_clipping,
            "steps_per_print": 10**9,
            # All gradients at once. It takes a bucket's memory at every backward pass, by default 2 GB.
            "zero_optimization": {
                "stage": config.zero_stage,
                "reduce_bucket_size": sum(parameter.numel() for parameter in module.parameters()),
            },
            # It would wait for the GPU twice a step, for a figure that nobody reads.
            "timers": {"throughput": {"enabled": False}},
            # A client optimiser is ours to choose; ZeRO only asks to be told so.
            "zero_allow_untested_optimizer": True,
        }
        optimizer = _optimizer(module, config)
        self._optimizer, self._rates = optimizer, _Rates.of(optimizer)
        self._sharded = config.zero_stage > 0
        # Group to the norms of its gradients in this step: sharded, DeepSpeed keeps none of them whole.
        self._taking_part: dict[int, list[Tensor]] = {}
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_hook(partial(self._takes_part, number))
        self._engine, *_ = deepspeed.initialize(
            args=_placed_on(device), model=module, optimizer=optimizer, config=settings
        )
        self._held_back: list[Exception] = []
        writer = self._engine.checkpoint_engine
        self._written: list[Path] = []
        writer.save = self._hold_back(self._noting_files(writer.save))
        writer.makedirs = self._hold_back(_make_one_folder)
        # A script that joins ZeRO's files: DeepSpeed has it installed, and copies it where no error is caught.
        self._engine._copy_recovery_script = lambda folder: None
        self.rank, self.world = rank_and_world()
        self.device = device

    def forward(self, *arguments: Any) -> Any:
        """Call the module."""
        return self._engine(*arguments)

    def step(self, loss: Tensor, learning_rate_factor: float, word: Word | None = None) -> None:
        """See `Engine`."""
        self._taking_part.clear()
        self._engine.backward(loss)
        stop = None
        if word is not None:
            norms = [norm for group in self._taking_part.values() for norm in group]
            # DeepSpeed has sent the gradients already.
            stop = word.hear(sum_over_ranks(word.say(torch.stack(norms).norm())))
        # It makes zeros of absent gradients: only a rate of zero keeps momentum and weight decay off what has none.
        self._rates.set(self._engine.optimizer, learning_rate_factor, self._taking_part)
        _stop_if(self._optimizer, stop)
        self._engine.step()

    def _takes_part(self, group: int, gradient: Tensor) -> None:
        self._taking_part.setdefault(group, []).append(torch.linalg.vector_norm(gradient))

    def save(self, folder: Path) -> list[Path]:
        """See `Engine`."""
        if not self._sharded:
            return _save_whole(folder, self._engine.module, self._engine.optimizer) if self.rank == 0 else []
        self._held_back.clear()
        self._written.clear()
        # DeepSpeed lets the first rank make it, for all; each rank may have a folder of its own.
        self._hold_back(_make_one_folder)(str(folder), exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=_CHECKPOINT_TAG, save_latest=False)
        if self._held_back:
            raise self._held_back[0]
        return [*self._written]

    def _hold_back(self, write: Callable[..., Any]) -> Callable[..., None]:
        """An error inside DeepSpeed's own barriers would leave the other ranks waiting: it is raised after them."""

        def attempt(*arguments: Any, **named: Any) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:
                self._held_back.append(error)

        return attempt

    def _noting_files(self, save: Callable[..., Any]) -> Callable[..., None]:
        def save_and_note(state_dict: Any, path: str) -> None:
            save(state_dict, path)
            self._written.append(Path(path))

        return save_and_note

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        if not self._sharded:
            _load_whole(folder, self._engine.module, self._engine.optimizer, self.device)
            return
        shards = len(list((folder / _CHECKPOINT_TAG).glob("*optim_states.pt")))
        if shards != self.world:
            found = f"optimiser shards of {shards} ranks" if shards else "no optimiser shards"
            raise CheckpointError(
                f"{folder}: holds {found}, and {self.world} ranks are to go on with training.zero_stage above 0; "
                "resume with the workers and the stage it was trained with"
            )
        self._engine.load_checkpoint(str(folder), tag=_CHECKPOINT_TAG)


def _make_one_folder(folder: str, exist_ok: bool) -> None:
    # Not those above it: where storage is away, they would be made in its place.
    Path(folder).mkdir(exist_ok=exist_ok)


def _placed_on(device: torch.device) -> SimpleNamespace | None:
    """Keeps DeepSpeed on our GPU: by itself it takes that of the worker's number on its node, which may be another."""
    if device.type != "cuda":
        return None
    return SimpleNamespace(device_rank=torch.cuda.current_device() if device.index is None else device.index)


def _import_deepspeed(device: torch.device) -> Any:
    # By itself it takes any GPU that it sees, for a worker that is to use none, too.
    os.environ["DS_ACCELERATOR"] = device.type
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise BackendUnavailableError(
            f"training.engine: deepspeed cannot be loaded ({error}); pip install deepspeed, or set it to torch"
        ) from error
    if device.type == "cpu":
        # Its shared-memory collective is compiled at first use (a minute), for nothing that two ranks would notice.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
