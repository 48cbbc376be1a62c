"""Service of `llmctl serve --estimate`: a memory plan without loading the model."""

from llmctl.engine.loading.load import read_shape
from llmctl.engine.memory.hardware import choose_device, choose_dtype, stores_float16
from llmctl.engine.memory.out_of_memory import weights_out_of_memory_error
from llmctl.engine.memory.plan import estimate_plan, plan_memory, plan_weights
from llmctl.engine.memory.request import MemoryRequest, TargetDevice
from llmctl.engine.models import resolve
from llmctl.engine.models.catalog import CATALOG
from llmctl.errors import ModelNotFoundError, OutOfMemoryError
from llmctl.types import Estimate, MemoryPlan, ModelSpec, WeightsPlan


def estimate(spec: ModelSpec, free_bytes: int | None = None) -> Estimate:
    """Plan the memory for a model without reading its weights or using the network.

    Args:
        spec: the model, device and limits.
        free_bytes: plan for this much free memory instead of that of this machine: on a CUDA
            device, unless the spec names another.

    Raises:
        ModelNotFoundError: the model is neither on this machine nor in the catalogue.
        ModelLoadError: the model on this machine is incomplete.
        UnsafeModelError: its weights are pickle, or it needs remote code.
        ConfigError: the device does not exist, or the model does not support `--quant`.
    """
    if free_bytes is None:
        device = choose_device(spec.device)
        target = TargetDevice.here(
            device,
            choose_dtype(spec.dtype, device),
            float16_weights=stores_float16(spec.dtype, device),
        )
    else:
        target = TargetDevice.hypothetical(spec.device, spec.dtype, free_bytes)
    try:
        local = resolve.resolve_local(
            spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle
        )
    except ModelNotFoundError as error:
        return _estimate_from_catalog(spec, target, error)
    request = MemoryRequest(read_shape(spec, local), target, spec.quant, spec.limits)
    try:
        return _estimate(spec, target, local.model_id, plan_memory(request))
    except OutOfMemoryError as error:
        return _estimate(spec, target, local.model_id, estimate_plan(request), error)


def _estimate_from_catalog(
    spec: ModelSpec, target: TargetDevice, not_local: ModelNotFoundError
) -> Estimate:
    name = spec.model.partition("@")[0]
    entry = next((e for e in CATALOG if name.lower() in (e.name, e.repo.lower())), None)
    if entry is None:
        raise ModelNotFoundError(
            f"{spec.model} is not on this machine: {not_local}",
            hint=not_local.hint or f"download it with `llmctl models pull {spec.model}`",
        ) from not_local
    linear, other = entry.linear_parameters, entry.parameters - entry.linear_parameters
    plan = plan_weights(linear, other, target, spec.quant, stored_bytes=entry.stored_bytes)
    error = weights_out_of_memory_error(plan, spec.quant, target.device)
    return _estimate(spec, target, entry.name, plan, error)


def _estimate(
    spec: ModelSpec,
    target: TargetDevice,
    model_id: str,
    plan: MemoryPlan | WeightsPlan,
    error: OutOfMemoryError | None = None,
) -> Estimate:
    return Estimate(
        model_id=model_id,
        device=target.device,
        dtype=str(target.dtype).removeprefix("torch."),
        quant=spec.quant,
        kv_quant=spec.limits.kv_quant,
        plan=plan,
        shortage=None if error is None else str(error),
        hint="" if error is None else error.hint,
    )
