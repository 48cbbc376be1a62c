"""Signatures of private methods of Transformers and TRL that llmctl overrides or calls.

They may change in any release. A failure here means: compare the new method with llmctl's override
in `llmctl/train/trainer.py` or `llmctl/train/dpo.py`, adapt it, then update the signature below.
"""

import inspect
from typing import Any

import pytest
import transformers
from transformers import Trainer

HOOKS = {
    "_get_num_items_in_batch": ["self", "batch_samples", "device"],
    "_clip_grad_norm": ["self", "model"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_save": ["self", "output_dir", "state_dict"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "floating_point_ops": ["self", "inputs"],
    "num_examples": ["self", "dataloader"],
    "get_train_dataloader": ["self"],
    "compute_loss_context_manager": ["self"],
    "_prepare_inputs": ["self", "inputs"],
}
DPO_HOOKS = {
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_compute_loss": ["self", "model", "inputs", "return_outputs"],
    "_send_telemetry": ["self"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
}


def assert_signature(owner: Any, name: str, expected: list[str], library: str) -> None:
    method = getattr(owner, name, None)
    assert method is not None, f"{library} has no {owner.__name__}.{name} any more"
    parameters = list(inspect.signature(method).parameters)
    assert parameters == expected, (
        f"{owner.__name__}.{name} of {library} has the parameters {parameters}, and llmctl "
        f"was written for {expected}"
    )


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_the_transformers_trainer(name: str) -> None:
    assert_signature(Trainer, name, HOOKS[name], f"transformers {transformers.__version__}")


@pytest.mark.parametrize("name", DPO_HOOKS)
def test_hooks_of_the_trl_dpo_trainer(name: str) -> None:
    trl: Any = pytest.importorskip("trl")
    assert_signature(trl.DPOTrainer, name, DPO_HOOKS[name], f"trl {trl.__version__}")


def test_every_overridden_hook_is_pinned() -> None:
    from llmctl.train.trainer import SftTrainer

    inherited = {name for name in vars(SftTrainer) if callable(getattr(Trainer, name, None))}
    unpinned = inherited - HOOKS.keys() - set(vars(object)) - {"evaluate", "__init__"}
    assert not unpinned, f"add the signatures of {sorted(unpinned)}"


def test_a_changed_signature_is_reported_with_both_signatures() -> None:
    class Changed:
        def _clip_grad_norm(self, model: Any, max_norm: float) -> None: ...

    with pytest.raises(AssertionError, match=r"'max_norm'.*was written for \['self', 'model'\]"):
        assert_signature(Changed, "_clip_grad_norm", HOOKS["_clip_grad_norm"], "transformers 9")
    with pytest.raises(AssertionError, match="has no Changed"):
        assert_signature(Changed, "_save", HOOKS["_save"], "transformers 9")
