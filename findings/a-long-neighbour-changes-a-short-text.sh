#!/usr/bin/env bash
# transformers 5.23.0: with `longrope` rotary positions (Phi-3 and Phi-4-mini with 128k) the logits of a short text change once another
# text of its batch is longer than original_max_position_embeddings, right padding and attention mask being as they should.
#
# The rotary module takes the long factors for the whole batch when the largest position of the batch passes the limit. So what a text is
# told depends on its neighbours: scores of an evaluation depend on its batch size and on which samples stand together, and a gradient on
# the batch. A text within the limit beside another within it is exact.
#
# Seen (random Llama of two layers, limit 64, 20 tokens beside 64 and beside 104): largest difference of a logit 2e-6 and 5.1, and 12 of
# 20 likeliest tokens change.
# Exit code 0: as seen (below 1e-4, above 1). 1: it is otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.23.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

LIMIT, SHORT = 64, 20
rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
        "original_max_position_embeddings": LIMIT}
config = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=300,
                     max_position_embeddings=512, rope_parameters=rope, initializer_range=0.2)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config).eval()
text, other = torch.randint(3, 300, (1, SHORT)), torch.randint(3, 300, (1, LIMIT + 40))


@torch.no_grad()
def beside(neighbour):
    wide = neighbour.shape[1]
    ids = torch.cat([torch.nn.functional.pad(text, (0, wide - SHORT)), neighbour])
    mask = torch.stack([(torch.arange(wide) < SHORT).long(), torch.ones(wide, dtype=torch.long)])
    return model(input_ids=ids, attention_mask=mask).logits[0, :SHORT]


with torch.no_grad():
    alone = model(input_ids=text).logits[0]
within, beyond = ((beside(one) - alone).abs().max().item() for one in (other[:, :LIMIT], other))
changed = (beside(other).argmax(-1) != alone.argmax(-1)).sum().item()
print(f"beside a text within the limit: {within:.1e}; beside a longer one: {beyond:.1f}; likeliest tokens that change: {changed} of {SHORT}")
sys.exit(not (within < 1e-4 and beyond > 1 and changed > 0))
PYTHON
