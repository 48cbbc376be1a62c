"""The story of `llmctl serve --estimate`: would the model fit, and with how much context?"""

from llmctl.engine.loading.load import read_shape
from llmctl.engine.memory.hardware import choose_device, choose_dtype
from llmctl.engine.memory.out_of_memory import weights_out_of_memory_error
from llmctl.engine.memory.plan import estimate_plan, plan_memory, plan_weights
from llmctl.engine.memory.request import MemoryRequest, TargetDevice
from llmctl.engine.models import resolve
from llmctl.engine.models.catalog import CATALOG
from llmctl.errors import ModelNotFoundError, OutOfMemoryError
from llmctl.types import Estimate, MemoryPlan, ModelSpec, WeightsPlan


def estimate(spec: ModelSpec, free_bytes: int | None = None) -> Estimate:
    """Plan the memory for a model without reading its weights; never asks the network.

    Args:
        free_bytes: plan for a machine with so much free memory instead of this one: a CUDA card,
            unless the spec names a device.

    Raises:
        ModelNotFoundError: it is neither on this machine nor in the catalogue.
        ModelLoadError: what is here is no whole model.
        UnsafeModelError: its weights are pickle, or it needs remote code.
        ConfigError: the device is not here, or `--quant` cannot be put on this model.
    """
    if free_bytes is None:
        device = choose_device(spec.device)
        machine = TargetDevice.here(device, choose_dtype(spec.dtype, device))
    else:
        machine = TargetDevice.hypothetical(spec.device, spec.dtype, free_bytes)
    try:
        found = resolve.resolve_local(
            spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle
        )
    except ModelNotFoundError as error:
        return _from_catalogue(spec, machine, error)
    case = MemoryRequest(read_shape(spec, found), machine, spec.quant, spec.limits)
    try:
        return _estimate(spec, machine, found.model_id, plan_memory(case))
    except OutOfMemoryError as error:
        return _estimate(spec, machine, found.model_id, estimate_plan(case), error)


def _from_catalogue(
    spec: ModelSpec, machine: TargetDevice, absence: ModelNotFoundError
) -> Estimate:
    name = spec.model.partition("@")[0]
    entry = next((e for e in CATALOG if name.lower() in (e.name, e.repo.lower())), None)
    if entry is None:
        raise ModelNotFoundError(
            f"{spec.model} is not on this machine: {absence}",
            hint=absence.hint or f"`llmctl models pull {spec.model}` fetches it",
        ) from absence
    linear, other = entry.linear_parameters, entry.parameters - entry.linear_parameters
    plan = plan_weights(linear, other, machine, spec.quant)
    shortage = weights_out_of_memory_error(plan, spec.quant, machine.device)
    return _estimate(spec, machine, entry.name, plan, shortage)


def _estimate(
    spec: ModelSpec,
    machine: TargetDevice,
    model_id: str,
    plan: MemoryPlan | WeightsPlan,
    error: OutOfMemoryError | None = None,
) -> Estimate:
    return Estimate(
        model_id=model_id,
        device=machine.device,
        dtype=str(machine.dtype).removeprefix("torch."),
        quant=spec.quant,
        kv_quant=spec.limits.kv_quant,
        plan=plan,
        shortage=None if error is None else str(error),
        hint="" if error is None else error.hint,
    )
