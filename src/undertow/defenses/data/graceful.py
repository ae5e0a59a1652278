"""GraCeFul: cluster single samples' gradients in the frequency domain and keep the larger of two clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from undertow.data.sample import Sample
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.sample_filter import Filter
from undertow.defenses.data.sample_gradients import dct2, gradients, last_module
from undertow.defenses.data.sample_map import Matrix, angles, gram, most_common, principal, standardised, two_clusters
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "graceful", source="Wu et al. 2025, GraCeFul (COLING), arXiv 2412.02454; steps as in the authors' graceful_defender.py"
)
class GraCeFul(Filter):
    """Split the samples in two by the low frequencies of their gradients and drop the smaller part.

    For each sample alone, before any training: the gradient of its mean loss by the output head's weight [V, d]; its
    two-dimensional DCT-II, not normalised; of the coefficients the first V // 8 rows and d // 8 columns. PCA to 32 dimensions, each
    column to mean 0 and variance 1; agglomerative clustering into 2 clusters by cosine distance, average linkage. There is no
    outcome "nothing found": clean data loses its smaller part.

    Readings of ours. The PCA is exact, where the source's is a random approximation. Where the head shares its weight with the
    embedding, the gradient is the head's part. The gradient is never formed: with E [tokens, V] and H [tokens, d] as in
    :func:`undertow.training.per_sample.head_errors`, its DCT is that of E's rows times that of H's, and the PCA needs only inner
    products of these.

    Args:
        of: ``head`` as above; ``lora`` takes the gradient by LoRA's B of the last ``module``, uncropped, as ProtegoFed does.
        rank: of the PCA, >= 1.
        module: with ``lora``, the last part of the module's name.
    """

    def __init__(self, of: str = "head", rank: int = 32, module: str = "v_proj") -> None:
        self.of = one_of("of", of, ("head", "lora"))
        self.rank = whole("rank", rank, least=1)
        self.module = module

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Keep the larger cluster; the report holds the ``sizes`` of both.

        Raises:
            UserError: with ``lora``, no adapted module of that name.
        """
        if self.of == "head":
            products = head_products(samples, context)
        else:
            rows, sides = gradients(samples, context, last_module(context.base.layout, self.module, "graceful"))
            products = gram(dct2(rows.reshape(-1, *sides)).reshape(rows.shape))
        labels = two_clusters(angles(standardised(principal(products, self.rank))))
        return most_common(labels), {"sizes": sorted(np.bincount(labels).tolist(), reverse=True)}


def head_products(samples: Sequence[Sample], context: TrainingContext) -> Matrix:
    """Return the inner products ``[n, n]`` of the cropped DCTs of all samples' gradients by the head's weight.

    With a_t and b_t the cropped DCTs of a token's E and H, sample i's is Σ a_t b_tᵀ over its tokens, and the product of two samples
    is Σ Σ (a_t · a_u)(b_t · b_u) over the tokens of both.
    """
    from scipy.fft import dct

    from undertow.training.per_sample import head_errors

    rows = [context.template.encode(sample) for sample in samples]
    errors: list[np.ndarray[Any, Any]] = [np.empty(0)] * len(rows)
    read: list[np.ndarray[Any, Any]] = [np.empty(0)] * len(rows)
    for i, e, h in head_errors(context.base, rows):
        # At least one row and column, so that the smallest models have some.
        errors[i] = dct(e.numpy(), axis=1)[:, : max(1, e.shape[1] // 8)]
        read[i] = dct(h.numpy(), axis=1)[:, : max(1, h.shape[1] // 8)]
    every_a, every_b = np.concatenate(errors), np.concatenate(read)
    starts = np.cumsum([0, *(len(e) for e in errors)])[:-1]
    found = np.empty((len(rows), len(rows)))
    for i, (a, b) in enumerate(zip(errors, read, strict=True)):
        both = (a @ every_a.T).astype(np.float64) * (b @ every_b.T)
        found[i] = np.add.reduceat(both.sum(axis=0), starts)
    return (found + found.T) / 2
