"""Training a Task on several processes: replicated (DDP) or sharded layer by layer (FSDP2).

The Task is wrapped, not the model: DDP allows one forward call per step, and a task calls its model several times.
Buffers are not broadcast, because the queues are equal on all processes: they store gathered features.
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


def parallelize(task: Task, method: Parallel) -> nn.Module:
    """Return the module to call in place of `task`, which is on its device; on one process, `task` itself."""
    if distributed.world_size() == 1:
        return task
    if method == "fsdp":
        return _shard(task)
    # Newer versions of torch deprecate the name of an argument.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return DistributedDataParallel(task, broadcast_buffers=False, gradient_as_bucket_view=True)


def _shard(task: Task) -> nn.Module:
    """Shard `task` with FSDP2, layer by layer, with its momentum encoders.

    Cross-attention is sharded separately, since `image_kv` runs it outside its layer. FSDP2 cannot shard a scalar such
    as the temperature; `average_unsharded_gradients` averages its gradient.
    """
    # Without a device type, torch takes a GPU if one exists, even for a run on the CPU.
    mesh = init_device_mesh(next(task.parameters()).device.type, (distributed.world_size(),))
    # `image_kv` returns views of keys and values; nothing here writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    scalars = {parameter for parameter in task.parameters() if parameter.ndim == 0}
    for layer in [module for module in task.modules() if isinstance(module, TextLayer | Block)]:
        if isinstance(layer, TextLayer):
            for cross in (layer.cross, layer.decode_cross):
                if cross is not None:
                    fully_shard(cross, mesh=mesh)
                    register_fsdp_forward_method(cross, "image_kv")
        fully_shard(layer, mesh=mesh)
    fully_shard(task, mesh=mesh, ignored_params=scalars)
    return task


def gradient_sync(module: nn.Module, enabled: bool) -> AbstractContextManager:
    """Return a context for the forward and backward pass of a micro-batch, with or without averaging of gradients.

    With gradient accumulation only the last micro-batch of a step needs it.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(enabled)
    elif isinstance(module, DistributedDataParallel) and not enabled:
        return module.no_sync()
    return contextlib.nullcontext()


def average_unsharded_gradients(task: Task) -> None:
    """Average gradients of parameters that FSDP2 does not shard. DDP averages all itself."""
    if isinstance(task, FSDPModule):
        for parameter in task.parameters():
            if parameter.grad is not None and not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad.div_(distributed.world_size()))


def clip_gradients(task: Task, max_norm: float) -> Tensor:
    """Scale the gradients so that their norm over all parameters is at most `max_norm`; return the norm before."""
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    # Sharded and unsharded tensors do not mix in one operation.
    groups = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (True, False)]
    groups = [group for group in groups if group]
    norms = [nn.utils.get_total_norm(group) for group in groups]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    for group in groups:
        torch._foreach_mul_(group, (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total


def all_weights_finite(task: Task) -> bool:
    """Return whether every trained weight is finite, on all processes."""
    weights = [p.to_local() if isinstance(p, DTensor) else p for p in task.parameters() if p.requires_grad]
    finite = torch.stack([weight.detach().isfinite().all() for weight in weights]).all()
    return bool(distributed.mean_over_ranks(finite.float()) == 1)


def unsharded_model(task: Task) -> Blip:
    """Return the model of `task` with complete weights on rank 0. All processes must call it."""
    if not isinstance(task, FSDPModule):
        return task.model
    state = get_model_state_dict(task.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.device("meta"):
        model = Blip(task.model.config)
    if distributed.is_main():
        model.load_state_dict(state, assign=True)
    return model.eval()
