"""A Task on several processes: replicated (DDP) or sharded layer by layer (FSDP2), put on from outside.

In: a Task that knows nothing of processes but what it gathers. Out: a module to call in its place, and the few steps
of training that depend on how its parameters lie. The Task is wrapped, never the model: the model is called several
times a step, which DDP does not allow. Buffers are left alone: queues are equal on all processes by construction.
"""

import contextlib
import warnings
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from blipcore import distributed
from blipcore.model.blip import Blip
from blipcore.model.text import TextLayer
from blipcore.model.vit import Block
from blipcore.tasks.task import Task
from blipcore.train.optim import Parallel


def parallelize(task: Task, how: Parallel) -> nn.Module:
    """What to call instead of `task`, whose parameters are on their device; alone that is `task` itself."""
    if distributed.world_size() == 1:
        return task
    if how == "fsdp":
        return _shard(task)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer torch has another name for it
        return DistributedDataParallel(task, broadcast_buffers=False, gradient_as_bucket_view=True)


def _shard(task: Task) -> nn.Module:
    """FSDP2: each layer a unit that is whole only while it runs, the momentum encoders sharded just like the model.

    Cross-attention is a unit of its own, since `image_kv` runs it outside its layer. The temperature stays whole: a
    scalar cannot be sharded; `average_whole_gradients` sees to its gradient.
    """
    # Said, since torch would take the GPU where there is one, also for a run on the CPU.
    mesh = init_device_mesh(next(task.parameters()).device.type, (distributed.world_size(),))
    # The keys and values of `image_kv` are views, which nothing here writes into.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    scalars = {parameter for parameter in task.parameters() if parameter.ndim == 0}
    for layer in [module for module in task.modules() if isinstance(module, TextLayer | Block)]:
        crosses = (layer.cross, layer.decode_cross) if isinstance(layer, TextLayer) else ()
        for cross in (cross for cross in crosses if cross is not None):
            fully_shard(cross, mesh=mesh)
            register_fsdp_forward_method(cross, "image_kv")
        fully_shard(layer, mesh=mesh)
    fully_shard(task, mesh=mesh, ignored_params=scalars)
    return task


def accumulating(module: nn.Module, last: bool) -> AbstractContextManager:
    """Around forward and backward of a micro-batch: gradients travel only with the last one of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    elif isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()


def average_whole_gradients(task: Task) -> None:
    """Under FSDP2, average the gradients of parameters that are not sharded; DDP has done so for all of its own."""
    if isinstance(task, FSDPModule):
        for parameter in task.parameters():
            if parameter.grad is not None and not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad.div_(distributed.world_size()))


def clip_gradients(task: Task, limit: float) -> Tensor:
    """Scale the gradients so that their norm over all parameters is at most `limit`; returns the norm before."""
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    kinds = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (True, False)]
    norms = [nn.utils.get_total_norm(kind) for kind in kinds if kind]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    for kind in kinds:
        torch._foreach_mul_(kind, (limit / (total + 1e-6)).clamp(max=1.0)) if kind else None
    return total


def weights_finite(task: Task) -> bool:
    """Whether every trained weight is a number, on all processes."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in task.parameters() if p.requires_grad]
    finite = torch.stack([p.detach().isfinite().all() for p in own]).all()
    return bool(distributed.mean(finite.float()) == 1)


def whole_model(task: Task) -> Blip:
    """The model of `task` with all of its weights; every process must ask, rank 0 gets one that is complete."""
    if not isinstance(task, FSDPModule):
        return task.model
    state = get_model_state_dict(task.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.device("meta"):
        whole = Blip(task.model.config)
    if distributed.is_main():
        whole.load_state_dict(state, assign=True)
    return whole.eval()
