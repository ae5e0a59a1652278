"""CUBE: cluster the hidden states of a model trained on the data and keep the largest cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from undertow.data.sample import Sample
from undertow.data.template import Encoded
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.sample_filter import Filter, own_model
from undertow.defenses.data.sample_map import dense_clusters, gram, most_common, plane, principal
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "cube", source="Cui et al. 2022, CUBE (NeurIPS), arXiv 2206.08514, section 5; for generation as in GraCeFul's baselines"
)
class Cube(Filter):
    """Train on the data, map each sample's last hidden state to the plane, cluster densely, keep the largest cluster.

    The model is the run's initial adapter, trained ``passes`` times over the client's own samples; h is what the output head reads
    at the last token of prompt and answer. PCA to 32 dimensions; UMAP to 2 (100 neighbours, minimal distance 0); each column
    to mean 0 and variance 1; HDBSCAN (min_cluster_size 5). Outliers count as one cluster. The source does so within each
    class; for generation all samples are one.

    Readings of ours. ``map`` pca takes the first two principal components in place of UMAP, which is an optional extra. By
    default min_samples is 2 % of the client's samples, at least 5, because the source's 100 is more than a client's whole poison:
    then all are outliers and nothing is dropped. Training goes by the run's options.

    Args:
        passes: over the client's samples, >= 1; 3 in GraCeFul's comparison, 10 in the toolkit of CUBE.
        map: ``pca`` or ``umap``.
        min_samples: of HDBSCAN, >= 1: neighbours that make a point dense, itself not counted; None = by the client's size.
    """

    def __init__(self, passes: int = 3, map: str = "pca", min_samples: int | None = None) -> None:
        self.passes = whole("passes", passes, least=1)
        self.map = one_of("map", map, ("pca", "umap"))
        self.min_samples = None if min_samples is None else whole("min_samples", min_samples, least=1)

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Keep the largest cluster; the report holds the ``clusters``' sizes by label, -1 = outliers."""
        from undertow.training.per_sample import states

        rows = [context.template.encode(sample) for sample in samples]
        adapter = own_model(rows, context, self.passes)
        # The answer ends with the token that ends it; that one's own state predicts nothing, so any target does.
        whole_texts = [Encoded((*row.prompt, *row.answer), row.answer[-1:]) for row in rows]
        last = np.stack([found[-1].double().numpy() for found in states(context.base, whole_texts, adapter)])
        few = self.min_samples or max(5, len(samples) * 2 // 100)
        labels = dense_clusters(plane(principal(gram(last), 32), self.map, metric="euclidean"), 5, few)
        names, counts = np.unique(labels, return_counts=True)
        return most_common(labels), {"clusters": dict(zip(map(str, names), counts.tolist(), strict=True))}
