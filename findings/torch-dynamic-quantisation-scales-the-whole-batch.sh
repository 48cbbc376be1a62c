#!/usr/bin/env bash
# torch 2.13.0: with dynamic quantisation the result of a row depends on the other rows of its batch.
#
# A layer of torch.ao.quantization.quantize_dynamic rounds its inputs with one scale for the whole
# tensor, not one per row (token), as LLM.int8 and most 8-bit inference of language models have it. A
# row of ordinary numbers is exact to a percent alone, and is rounded to nothing beside a row that is
# a thousand times larger: in a server, the reply to one request depends on who else is served.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "numpy<3"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torch import nn

torch.manual_seed(0)
layer = nn.Sequential(nn.Linear(64, 64))
quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
row = torch.randn(1, 64)
with torch.inference_mode():
    exact = layer(row)
    alone = quantised(row)
    beside = quantised(torch.cat((row, 1000 * torch.randn(1, 64))))[:1]


def error(found):
    return float((found - exact).norm() / exact.norm())


print("torch", torch.__version__)
print(f"relative error of the row alone: {error(alone):.3f}")
print(f"relative error of the same row beside a large one: {error(beside):.3f}")
assert error(alone) < 0.05 < 0.5 < error(beside), "changed: rows have scales of their own now"
PY
