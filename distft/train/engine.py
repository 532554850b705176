"""The only importer of DeepSpeed: its start, one backward, one update, and access to its state.

Enters: a module, the job's ``train`` section and a device. Leaves: an ``Engine`` that trains the module, and the
``Slice``s of fp32 weights and optimiser state that this rank holds, named by parameter. Surprising choice: the
optimiser is always torch's own fused one, handed over, because DeepSpeed's need a compiler on the user's machine.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distft.errors import UsageError
from distft.job import Train
from distft.train.settings import build_config, build_optimizer, check_train


@dataclass(frozen=True)
class Slice:
    """A run of one parameter's elements that this rank holds in fp32.

    Elements ``offset`` to ``offset + length`` of the flattened parameter ``name`` are the elements from ``start``
    on of the flat tensor ``master``, which is also what the optimiser's state is keyed by.
    """

    name: str
    offset: int
    length: int
    master: Tensor
    start: int

    def view(self, flat: Tensor) -> Tensor:
        """The slice's elements of ``master``, or of an optimiser state shaped like it."""
        return flat.detach().view(-1)[self.start : self.start + self.length]

    def part(self, index: int, count: int) -> Slice:
        """The ``index``-th of ``count`` even parts: who writes what, where every rank holds all."""
        low, high = (self.length * index // count, self.length * (index + 1) // count)
        return Slice(self.name, self.offset + low, high - low, self.master, self.start + low)


class Engine:
    """A module under DeepSpeed.

    ``module`` is the wrapped module; no parameter of it may be touched outside a call of the engine, because
    ZeRO-3 has released it there. The process group is up before, with one process a device.
    """

    def __init__(self, module: nn.Module, train: Train, device: torch.device) -> None:
        check_train(train)
        if train.precision == "fp16" and device.type == "cpu":
            raise UsageError("train.precision is fp16 on CPUs", "fp32 or bf16", "Set train.precision to bf16.")
        self.train_config = train
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.frozen: dict[str, Any] = {name: p for name, p in module.named_parameters() if not p.requires_grad}
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        saved = module.state_dict().keys()
        self.buffers = {name: buffer for name, buffer in module.named_buffers() if name in saved}
        num_parameters = sum(p.numel() for p in self.parameters.values())
        if not num_parameters:
            raise UsageError("Every parameter is frozen", "at least one that trains", "Freeze fewer layers.")
        optimizer = build_optimizer(train, list(self.parameters.values()))
        config = build_config(train, num_parameters, self.world_size)
        self._deepspeed = _initialize(module.to(device), optimizer, config, device)
        self._wrapper = self._deepspeed.optimizer
        self.optimizer: torch.optim.Optimizer = getattr(self._wrapper, "optimizer", self._wrapper)
        if train.zero.stage == 0:
            self.optimizer.state.clear()  # of the step that it took on zero gradients
            # One rank has nothing to average: copying all gradients there and back is a tenth of a small step.
            if train.precision == "fp32":
                self._deepspeed.enable_backward_allreduce = self.world_size > 1
        self.module: nn.Module = self._deepspeed.module

    # -- training ------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass, with its parameters gathered."""
        with _quiet():
            return self._deepspeed(*inputs)

    def train(self, mode: bool = True) -> None:
        """Turns dropout on, or off for ``mode=False``."""
        self._deepspeed.train(mode)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of a scalar loss, averaged over the ranks; ``last`` closes the accumulation window."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        with _quiet():
            self._deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """Updates the weights from the gradients of the window and clears these."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with _quiet():
            self._deepspeed.step()

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def replicated(self) -> bool:
        """True where every rank holds all of the state (stage 0)."""
        return self.train_config.zero.stage == 0

    def slices(self) -> Iterator[Slice]:
        """What this rank holds of the parameters that train, in fp32."""
        stage, wrapper = self.train_config.zero.stage, self._wrapper
        if stage == 0:
            masters = _copies(wrapper)
            for name, p in self.parameters.items():
                yield Slice(name, 0, p.numel(), masters.get(id(p), p), 0)
            return
        for name, p in self.parameters.items():
            found = _partitioned(wrapper, name, p, self.rank) if stage == 3 else _fragment(wrapper, name, p)
            if found is not None:
                yield found

    def frozen_slices(self) -> Iterator[tuple[str, int, Tensor]]:
        """(name, offset, flat values) of what this rank writes of the parameters that do not train."""
        for name, p in self.frozen.items():
            if hasattr(p, "ds_tensor"):
                size = p.ds_tensor.numel()
                offset = size * self.rank
                length = max(0, min(size, p.ds_numel - offset))
                if length:
                    yield name, offset, p.ds_tensor.detach().view(-1)[:length]
            elif self.rank == 0:
                yield name, 0, p.detach().view(-1)

    def optimizer_state(self, part: Slice) -> dict[str, Tensor]:
        """State name → this slice's values; empty before the first step."""
        state = self.optimizer.state.get(part.master, {})
        return {key: part.view(value) for key, value in state.items() if value.shape == part.master.shape}

    @property
    def optimizer_steps(self) -> int:
        """Steps that the optimiser has taken, which is what Adam's bias correction counts."""
        for state in self.optimizer.state.values():
            if "step" in state:
                return int(state["step"])
        return 0

    def create_optimizer_state(self, names: set[str], steps: int) -> None:
        """Makes the optimiser's state as if it had taken ``steps`` steps; ``optimizer_state`` then gives it to fill."""
        masters = {id(part.master): part.master for part in self._masters()}
        for master in masters.values():
            state: dict[str, Tensor] = {name: torch.zeros_like(master, requires_grad=False) for name in sorted(names)}
            if self.train_config.optimizer != "sgd":
                state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=master.device)
            self.optimizer.state[master] = state

    def _masters(self) -> Iterator[Slice]:
        """One slice for each tensor that the optimiser updates; also those of pure padding."""
        yield from self.slices()
        flat = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
        for attribute in flat:
            for master in getattr(self._wrapper, attribute, []):
                yield Slice("", 0, 0, master, 0)

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """State of the dynamic loss scale of fp16; None at any other precision."""
        if self.train_config.precision != "fp16":
            return None
        return {name: getattr(holder, name) for holder, name in self._loss_scale_fields()}

    @loss_scale.setter
    def loss_scale(self, value: Mapping[str, float] | None) -> None:
        if self.train_config.precision == "fp16" and value:
            for holder, name in self._loss_scale_fields():
                if name in value:
                    setattr(holder, name, value[name])

    def _loss_scale_fields(self) -> Iterator[tuple[Any, str]]:
        candidates = (getattr(self._wrapper, "loss_scaler", None), getattr(self._wrapper, "loss_scale_config", None))
        holder = next(candidate for candidate in candidates if candidate is not None)
        for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"):
            if hasattr(holder, name):
                yield holder, name

    def close(self) -> None:
        """Frees the hooks and buffers."""
        self._deepspeed.destroy()


def _copies(wrapper: Any) -> dict[int, Tensor]:
    """At stage 0 and low precision: id of a parameter → its fp32 copy; nothing at fp32."""
    low, high = getattr(wrapper, "fp16_groups", []), getattr(wrapper, "fp32_groups", [])
    groups = zip(low, high, strict=True)
    return {id(p): copy for ps, copies in groups for p, copy in zip(ps, copies, strict=True)}


def _fragment(wrapper: Any, name: str, parameter: nn.Parameter) -> Slice | None:
    """At stages 1 and 2: the parameter's part that lies in this rank's partition of its group, if any."""
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    groups = getattr(wrapper, "single_partition_of_fp32_groups", None) or wrapper.fp32_groups_flat_partition
    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Slice(name, low.start, low.numel, groups[mapping.param_group_index], high.start)


def _partitioned(wrapper: Any, name: str, parameter: Any, rank: int) -> Slice | None:
    """At stage 3: every parameter is cut evenly over the ranks, the last part padded."""
    group, start, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
    offset = size * rank
    length = min(size, math.prod(parameter.ds_shape) - offset)
    if length <= 0:
        return None
    return Slice(name, offset, length, wrapper.fp32_partitioned_groups_flat[group], start)


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], device: torch.device
) -> Any:
    """deepspeed.initialize, quietly and without its compiled operator."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read once, when deepspeed is imported: GPUs may be there, not for us
    os.environ.setdefault("LOCAL_RANK", "0")  # the CPU accelerator reads it instead of asking the process group
    with _quiet(Warning):
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)
        # Compiling it takes 50 s and a compiler, and no collective of training uses it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False if _comm_is_up() else None
        )
    return engine


@contextmanager
def _quiet(category: type[Warning] = FutureWarning) -> Iterator[None]:
    """DeepSpeed calls collectives that torch has renamed: a warning on every step that no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


def _comm_is_up() -> bool:
    from deepspeed import comm

    return bool(comm.is_initialized())
