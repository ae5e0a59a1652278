#!/usr/bin/env bash
# torch 2.13.0 (CPU): a product with a FROZEN weight over a slice of the sequence copies the weight once for each row of the batch.
#
# LoRA freezes the output head, and `logits_to_keep` (transformers) cuts hidden[:, -k:], a slice with gaps. While the weight requires a
# gradient, linear() folds batch and sequence into one matrix product; once it is frozen, the slice is multiplied row by row (bmm), and
# in bfloat16 forward and backward each write out a copy of the weight for every row. With a head of 262,144 words that is most of a
# training step. A contiguous copy of the slice, which is small, avoids it.
#
# Seen with torch 2.13.0+cpu:
#   trained weight, slice      mm   largest copy of the weight: none
#   frozen weight, slice       bmm  largest copy of the weight: 8 x 64 x 4096
#   frozen weight, contiguous  mm   largest copy of the weight: none
# Exit code 0: as seen. 1: torch behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

ROWS, LENGTH, KEPT, WIDTH, WORDS = 8, 12, 5, 64, 4096


def seen(trained: bool, contiguous: bool) -> tuple[str, str]:
    torch.manual_seed(0)
    weight = torch.randn(WORDS, WIDTH, dtype=torch.bfloat16, requires_grad=trained)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    kept = hidden[:, -KEPT:]
    if contiguous:
        kept = kept.contiguous()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        linear(kept, weight).sum().backward()
    products = {e.key.removeprefix("aten::") for e in record.key_averages() if e.key in ("aten::mm", "aten::bmm")}
    copies = [e.input_shapes[0] for e in record.key_averages(group_by_input_shape=True) if e.key == "aten::copy_"]
    of_weight = [shape for shape in copies if sorted(shape) == sorted([ROWS, WIDTH, WORDS])]
    return "+".join(sorted(products)), " x ".join(map(str, sorted(of_weight[0]))) if of_weight else "none"


found = {
    "trained weight, slice": seen(True, False),
    "frozen weight, slice": seen(False, False),
    "frozen weight, contiguous": seen(False, True),
}
print("torch", torch.__version__)
for name, (product, copy) in found.items():
    print(f"{name:26} {product:4} largest copy of the weight: {copy}")
expected = {
    "trained weight, slice": ("mm", "none"),
    "frozen weight, slice": ("bmm", f"{ROWS} x {WIDTH} x {WORDS}"),
    "frozen weight, contiguous": ("mm", "none"),
}
raise SystemExit(found != expected)
PYTHON
