#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0: in a mixture of experts that has dense layers, too, LoRA on the dense layers' gate_proj, up_proj
# and down_proj adapts the experts of the other layers, and nothing of the dense ones, even where the full names of the dense modules are
# given. No error, no warning about it.
#
# transformers 5 holds all experts of a layer as one tensor, and peft maps the old names of an expert's linears to it, by the last part
# of a name. Dense layers (Qwen 3 MoE's mlp_only_layers, DeepSeek's first_k_dense_replace) and shared experts have linears of these very
# names, which are taken for the experts, too. So an adapter with tensors for dense layers, as transformers 4 or another trainer makes
# it, loses them when it is loaded.
#
# Seen: layer 0 is dense, with three linears; asked for these by their full names, peft adapts layers.1.mlp.experts alone.
# Exit code 0: as seen. 1: it is otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

config = AutoConfig.for_model(
    "qwen3_moe", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64,
    vocab_size=300, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0],
)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config)
dense = [name for name, module in model.named_modules() if ".0.mlp." in name and isinstance(module, torch.nn.Linear)]
tuned = get_peft_model(model, LoraConfig(r=4, target_modules=dense, task_type="CAUSAL_LM"))
adapted = {name.split(".lora_A")[0] for name, _ in tuned.named_parameters() if ".lora_A" in name}
of_layer = {layer: sum(f".layers.{layer}.mlp" in name for name in adapted) for layer in (0, 1)}
print("asked for:", ", ".join(dense))
print("adapted in layer 0 (dense):", of_layer[0], "- in layer 1 (experts):", of_layer[1])
sys.exit(not (len(dense) == 3 and of_layer[0] == 0 and of_layer[1] > 0))
PYTHON
