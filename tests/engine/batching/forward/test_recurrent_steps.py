"""Single tokens of recurrent layers are computed as by Transformers' own functions."""

from typing import Any

import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

from llmctl.engine.batching.forward.recurrent_steps import use_cpu_steps
from tests.compat.architectures import build


def functions(name: str) -> tuple[Any, Any]:
    """Return the function that layers call, and Transformers' own."""
    use_cpu_steps(build("qwen3_5_text"))
    used = getattr(qwen, name)
    return used, used.for_more_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bias", "activation", "kept"), [(False, "silu", 4), (True, None, 6)])
def test_a_convolution_of_one_token_moves_its_state(
    dtype: torch.dtype, bias: bool, activation: str | None, kept: int
) -> None:
    used, own = functions("causal_conv1d_update")
    torch.manual_seed(0)
    new, weight = torch.randn(3, 10, 1, dtype=dtype), torch.randn(10, 4, dtype=dtype)
    states = [torch.randn(3, 10, kept, dtype=dtype)] * 2
    states[1] = states[0].clone()
    shift = torch.randn(10, dtype=dtype) if bias else None
    found = used(new, states[0], weight, shift, activation)
    expected = own(new, states[1], weight, shift, activation)
    assert torch.equal(states[0], states[1])
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_step_of_the_gated_delta_rule_equals_that_of_transformers(dtype: torch.dtype) -> None:
    used, own = functions("torch_recurrent_gated_delta_rule")
    torch.manual_seed(0)
    query, key = (torch.randn(3, 1, 2, 8, dtype=dtype) for _ in range(2))
    value = torch.randn(3, 1, 4, 6, dtype=dtype)
    options = {
        "g": -torch.rand(3, 1, 4),
        "beta": torch.rand(3, 1, 4).to(dtype),
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": True,
    }
    before = torch.randn(3, 4, 8, 6)
    expected, after = own(query, key, value, initial_state=before.clone(), **options)
    found, state = used(query, key, value, initial_state=before, **options)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(state, after)
    assert state is before
