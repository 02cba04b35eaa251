"""DeepSpeed ZeRO around any model: the only file that imports deepspeed.

Stage 0 replicates; 1, 2 and 3 shard optimizer state, gradients and parameters over the ranks. The
optimizer is torch's AdamW, which nothing has to be compiled for.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlm_platform.experiment.sections import Optimizer
from latentlm_platform.training.parameter_groups import decay_groups

CHECKPOINT_TAG = "zero"


class ZeroEngine:
    """A model under ZeRO: backward, step, exponential average, checkpoints, whole weights."""

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer,
        stage: int,
        micro_batch_size: int,
        accumulation: int,
        ema_decay: float,
    ) -> None:
        quieten_deepspeed()
        import deepspeed

        self.stage, self.clip_norm = stage, optimizer.clip_norm or math.inf
        self.norm = math.nan
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,
            optimizer=torch.optim.AdamW(
                decay_groups(model, optimizer.weight_decay),
                lr=optimizer.learning_rate,
                betas=optimizer.betas,
                fused=True,
            ),
            config={
                "train_micro_batch_size_per_gpu": micro_batch_size,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": optimizer.clip_norm or 0.0 if stage else 0.0,
                "zero_optimization": {"stage": stage, "overlap_comm": False},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        self.average = ExponentialAverage(model, decay=ema_decay)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.engine(*inputs, **named)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; they are averaged over ranks, not over micro-batches."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def micro_step(self, *, learning_rate: float) -> None:
        """End a micro-batch; on the last of a step the optimizer moves."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary and self.stage == 0:  # where DeepSpeed itself neither measures the norm
            parameters = self.engine.module.parameters()
            self.norm = float(nn.utils.clip_grad_norm_(parameters, self.clip_norm))
        self.engine.step()
        if boundary:
            self.average.update()
            if self.stage:
                self.norm = float(self.engine.get_global_grad_norm())

    def gradient_norm(self) -> float:
        """The global norm before clipping, of the last step."""
        return self.norm

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint; every rank calls it."""
        self.engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, save_latest=False)
        rank = torch.distributed.get_rank()
        torch.save(self.average.state(), folder / f"average_rank_{rank:05d}.pt")

    def restore(self, folder: Path) -> None:
        """Load a checkpoint of the same stage and, but for stage 0, the same world size; its files
        were verified by the caller."""
        path, _ = self.engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        if path is None:
            raise FileNotFoundError(f"{folder} holds no DeepSpeed checkpoint {CHECKPOINT_TAG!r}")
        rank = torch.distributed.get_rank() if self.stage else 0  # replicas are all the same
        self.average.load(torch.load(folder / f"average_rank_{rank:05d}.pt", weights_only=True))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model computes with its exponential average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # ZeRO-3 keeps small parameters gathered between steps: without letting go of them first,
        # a forward pass would not see that their shards have changed
        self.engine.empty_partition_cache()
        self.average.swap()

    def whole_weights(self) -> dict[str, Tensor]:
        """The full state on every rank, gathered where it is sharded; copies, on the CPU."""
        import deepspeed

        model = self.engine.module
        sharded = [p for p in model.parameters() if hasattr(p, "ds_tensor")]
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}


class ExponentialAverage:
    """The exponential moving average of the weights, sharded as the weights are.

    Decay rises as (1 + t) / (10 + t) to `decay`, so that short runs are averaged too.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.shadow = [_local(p).detach().clone() for p in self.parameters]
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [_local(p) for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average, bit for bit."""
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            kept = _local(parameter).detach().clone()
            _local(parameter).copy_(shadow)
            shadow.copy_(kept)

    def state(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self.updates}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)
        self.updates = state["updates"]


def _local(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a parameter: its ZeRO-3 shard, or all of it."""
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.data


def build_communication_op() -> None:
    """Compile DeepSpeed's shared-memory communication op, else the first run's start does it."""
    quieten_deepspeed()
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


def quieten_deepspeed() -> None:
    """DeepSpeed logs warnings and errors only."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
