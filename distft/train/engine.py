"""The only importer of DeepSpeed: its start, one backward, one update, and access to its state.

Enters: a module, the job's ``train`` section and a device. Leaves: an ``Engine`` that trains the module, and the
``Slice``s of fp32 weights and optimiser state that this rank holds, named by parameter. Surprising choice: the
optimiser is always torch's own fused one, handed over, because DeepSpeed's need a compiler on the user's machine.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distft.errors import UsageError
from distft.sections.train import Train
from distft.train.joint_norm import JointNorm
from distft.train.position import here
from distft.train.resting import RestingTensors
from distft.train.settings import RATE_FACTOR, ParameterGroup, build_config, build_optimizer, check_train
from distft.train.sharded_table import ShardedTable


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
    ZeRO-3 has released it there. The process group is up before, with one process a device. ``rate_factors``: what the
    learning rate of some parameters, by name, is multiplied by. A ``table`` of the module has rows that
    are trained beside its parameters, in the same steps.
    """

    def __init__(
        self, module: nn.Module, train: Train, device: torch.device, rate_factors: Mapping[str, float] | None = None
    ) -> None:
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
        optimizer = build_optimizer(train, _groups(self.parameters, rate_factors or {}))
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
        self.table: ShardedTable | None = getattr(module, "table", None)
        self._norm = None if self.table is None else JointNorm(self._deepspeed, train.clip_norm)
        self._resting: RestingTensors | None = None
        if train.zero.offload == "nvme":
            assert train.zero.nvme_path is not None, "the section refuses this"
            self._resting = RestingTensors(train.zero.nvme_path)
            self._let_rest(self._resting)

    # -- training ------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass, with its parameters gathered."""
        with _quiet():
            return self._deepspeed(*inputs)

    def look_up(self, *inputs: Any) -> None:
        """Has the module look up what its forward passes over these inputs need of the table, if there is one."""
        if self.table is not None:
            here.at("look-up of item rows")
            self.module.look_up(*inputs)  # type: ignore[operator]

    def train(self, mode: bool = True) -> None:
        """Turns dropout on, or off for ``mode=False``."""
        self._deepspeed.train(mode)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of a scalar loss, averaged over the ranks; ``last`` closes the accumulation window."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        with _quiet():
            self._deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """Updates the weights from the gradients of the window and clears these.

        Where there is a table, also its rows that were looked up: they count for the norm that is clipped, and if
        DeepSpeed skips the step, because a gradient is too large for its precision, so do they.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(RATE_FACTOR, 1.0)
        if self.table is not None and self._norm is not None:
            loss_scale = self._loss_scale_now
            self._norm.expect(self.table.collect(self.world_size * loss_scale), loss_scale)
        with _quiet():
            self._deepspeed.step()
        if self.table is not None and self._norm is not None:
            if self._deepspeed.was_step_applied():
                self.table.update(learning_rate, self._norm.scale)
            else:
                self.table.drop()
        self.rest()  # DeepSpeed has read the new weights

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

    def create_optimizer_state(self, steps: int) -> None:
        """Makes the optimiser's state as if it had taken ``steps`` steps; ``optimizer_state`` then gives it to fill."""
        for master in self._masters():
            self.optimizer.state[master] = self._new_state(master, steps)

    def _new_state(self, master: Tensor, steps: int) -> dict[str, Tensor]:
        """The optimiser's state of one tensor, with moments of zero."""
        adam = self.train_config.optimizer != "sgd"
        zeros = torch.zeros_like if self._resting is None else self._resting.zeros_like
        names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
        state: dict[str, Tensor] = {name: zeros(master.detach()) for name in names}
        if adam:
            state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=master.device)
        return state

    def _masters(self) -> list[Tensor]:
        """Every tensor that the optimiser updates, once; also those of pure padding."""
        flat = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
        found = [part.master for part in self.slices()]
        found += [master for attribute in flat for master in getattr(self._wrapper, attribute, [])]
        return list({id(master): master for master in found}.values())

    # -- state in files ------------------------------------------------------------------------------------

    @property
    def rests(self) -> bool:
        """True where the fp32 weights and the optimiser's state lie in files and not in memory."""
        return self._resting is not None

    def rest(self) -> None:
        """Gives the memory back that reading such a state took."""
        if self._resting is not None:
            self._resting.rest()

    def _let_rest(self, resting: RestingTensors) -> None:
        """Moves the fp32 weights into files now, and the moments before the step that would make them."""
        for master in self._masters():
            master.data = resting.moved(master)
        for p in self.parameters.values():
            mapping = getattr(p, "_hp_mapping", None)  # stages 1 and 2 keep a view, which would keep the memory
            if mapping is not None:
                where = mapping.hp_fragment_address
                group = _flat_groups(self._wrapper)[mapping.param_group_index]
                mapping.hp_fragment = group.detach().narrow(0, where.start, where.numel)

        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                for master in group["params"]:
                    if master.grad is not None and not optimizer.state.get(master):
                        optimizer.state[master] = self._new_state(master, 0)

        self.optimizer.register_step_pre_hook(before)
        self.optimizer.register_step_post_hook(lambda *_: resting.rest())
        resting.rest()

    @property
    def _loss_scale_now(self) -> float:
        """What DeepSpeed multiplies the loss of this step by."""
        return float(getattr(self._wrapper, "loss_scale", 1.0))

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


def _groups(parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float]) -> list[ParameterGroup]:
    """The parameters by the factor of their learning rate."""
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    return [ParameterGroup(members, factor) for factor, members in by_factor.items()]


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
    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Slice(name, low.start, low.numel, _flat_groups(wrapper)[mapping.param_group_index], high.start)


def _flat_groups(wrapper: Any) -> Any:
    """At stages 1 and 2: this rank's fp32 partition of every group."""
    return getattr(wrapper, "single_partition_of_fp32_groups", None) or wrapper.fp32_groups_flat_partition


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
    deepspeed = import_deepspeed()
    with _quiet(Warning):
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False if _comm_is_up() else None
        )
    return engine


def import_deepspeed() -> Any:
    """The module, without what takes long and is not used here."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its Muon is compiled when it is imported: seconds for torch's compiler
    unwanted = {"mlflow"} - sys.modules.keys()  # a second, for its autotuner, which does without where there is none
    sys.modules.update(dict.fromkeys(unwanted))  # type: ignore[arg-type]
    try:
        with _quiet(Warning):
            import deepspeed
            import deepspeed.ops
            import deepspeed.runtime.zero.muon.muon_optimizer
            from deepspeed.utils import logger
    finally:
        for name in unwanted:
            del sys.modules[name]
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before
    logger.setLevel(logging.ERROR)
    # Compiling it takes 50 s and a compiler, and no collective of training uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _quiet(category: type[Warning] = FutureWarning) -> Iterator[None]:
    """DeepSpeed calls collectives that torch has renamed: a warning on every step that no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


def _comm_is_up() -> bool:
    from deepspeed import comm

    return bool(comm.is_initialized())
