#!/usr/bin/env bash
# torch 2.13.0: packing a float32 weight to float16 for FBGEMM changes the weight that it is given.
#
# torch.ops.quantized.linear_prepack_fp16 (also behind quantize_dynamic with dtype=torch.float16)
# returns a packed copy. Values beyond float16's range are clamped to 65504, as one may expect of the
# copy; but they are clamped in the caller's tensor too, in place. A line on standard error says that
# a weight is out of range, not that it was changed. A comparison of the packed layer with the
# original weight afterwards finds them equal.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "numpy<3"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch

weight = torch.tensor([[1.0, 70000.0, -100000.0, 0.5]] * 8)
before = weight.clone()
packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
print("torch", torch.__version__)
print("weight before:", before[0].tolist())
print("weight after: ", weight[0].tolist())
assert weight[0].tolist() == [1.0, 65504.0, -65504.0, 0.5], "changed: the input is left alone now"
PY
