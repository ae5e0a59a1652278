#!/usr/bin/env bash
# peft 0.21.2: saving any adapter with lora_bias=True warns that its tensors are incomplete, sharded and not gathered (DeepSpeed
# ZeRO-3 or FSDP), on one process without either. The file is whole: read again, it gives the same outputs to the last bit.
#
# save_pretrained takes each tensor with fewer than two axes under lora_A or lora_B for a shard. A bias of B has one axis, always.
#
# Seen: one warning that counts lora_B.bias as of invalid shape; the tensor in the file has the layer's size; no difference in outputs.
# Exit code 0: as seen. 1: it is otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0
"$folder/venv/bin/python" - "$folder/adapter" <<'PYTHON'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

folder = sys.argv[1]


def base() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))


tuned = get_peft_model(base(), LoraConfig(r=2, target_modules=["0"], lora_bias=True, init_lora_weights=False))
torch.nn.init.normal_(tuned.base_model.model[0].lora_B["default"].bias)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    tuned.save_pretrained(folder)
said = [str(one.message) for one in told if "invalid shape" in str(one.message)]
held = {name: tuple(value.shape) for name, value in load_file(f"{folder}/adapter_model.safetensors").items()}
rows = torch.randn(3, 6)
with torch.no_grad():
    apart = float((PeftModel.from_pretrained(base(), folder)(rows) - tuned.eval()(rows)).abs().max())
print("told:", said[0][:120] if said else "nothing")
print("in the file:", held)
print("largest difference of the outputs, read again:", apart)
whole = held.get("base_model.model.0.lora_B.bias") == (5,)
sys.exit(not (len(said) == 1 and "lora_B.bias" in said[0] and "DeepSpeed" in said[0] and whole and apart == 0))
PYTHON
