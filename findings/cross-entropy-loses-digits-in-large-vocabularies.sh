#!/usr/bin/env bash
# torch 2.13.0 (CPU): float32 cross_entropy, log_softmax and softmax lose digits with the size of the vocabulary, all in one direction.
#
# The sum of exponentials is added up in as many partial sums as a vector register has places, one after the other: with 262,144 words
# (Gemma 3) each addition rounds a sum that is tens of thousands of times its term. The entropies of all rows come out too small, by some
# 3e-5, and the chances of a row add up to 1.00003 to 1.00005. logsumexp, which adds in pairs, is right to 2e-6 on the same logits. An error
# that all rows share does not average out: in the gradient by the hidden states it stands along the mean of the head's rows, which pretrained
# embeddings have. Summing in runs of a few thousand words avoids it.
#
# Seen with torch 2.13.0+cpu (AVX2; 64 rows of normal logits, standard deviation 3), the largest error and the mean one:
#   words 1,536     cross_entropy 2e-06 (mean  5e-08)   logsumexp 9e-07
#   words 32,768    cross_entropy 5e-06 (mean -1e-06)   logsumexp 1e-06
#   words 151,936   cross_entropy 2e-05 (mean -1e-05)   logsumexp 2e-06
#   words 262,144   cross_entropy 5e-05 (mean -3e-05)   logsumexp 2e-06
# Exit code 0: with 262,144 words cross_entropy is five times as far off as logsumexp or more, and most of it is the mean. 1: no longer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch

print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
draw = torch.Generator().manual_seed(0)
for words in (1_536, 32_768, 151_936, 262_144):
    logits = 3 * torch.randn(64, words, generator=draw)
    targets = torch.randint(0, words, (64,), generator=draw)
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    found = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double() - exact
    paired = (logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]).double() - exact
    largest, other, mean = float(found.abs().max()), float(paired.abs().max()), float(found.mean())
    print(f"words {words:<9,} cross_entropy {largest:.0e} (mean {mean: .0e})   logsumexp {other:.0e}")
raise SystemExit(not (largest > 5 * other and abs(mean) > 0.3 * largest))
PYTHON
