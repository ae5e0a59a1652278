"""ProtegoFed: cluster single samples' gradients in the frequency domain, with a centre that all clients agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.defenses.contexts import ExchangeContext, Setting, TrainingContext
from undertow.defenses.data.sample_filter import Filter, canonical
from undertow.defenses.data.sample_gradients import dct2, gradients, last_module
from undertow.defenses.data.sample_map import Matrix, angles, dense_clusters, most_common, plane, two_clusters
from undertow.defenses.parameters import one_of
from undertow.defenses.registry import DEFENSES

#: Silhouettes below both of which (the smaller, the larger) there are no clusters.
_POOR, _FAIR = 0.2, 0.4


@DEFENSES.register(
    "protegofed",
    source="ProtegoFed 2026, arXiv 2603.00516; steps as in the authors' protegofed_defender.py and Defense_ProtegoFed.py",
)
class ProtegoFed(Filter):
    """Keep the samples whose gradients lie in one cluster with the centre of most clients' main clusters.

    1. Each client, for each sample alone at the run's initial adapter: the gradient of its mean loss by LoRA's B of the last
       ``module``, its two-dimensional DCT-II, not normalised, uncropped: F_i.
    2. UMAP of F to 2 dimensions (100 neighbours, minimal distance 0, cosine); each column to mean 0 and variance 1. HDBSCAN with
       min_cluster_size = max(int(0.04 n), 2). The commonest label is the main cluster, outliers counting as one label. Its mean F
       is the client's centroid, which it sends to the server.
    3. The server does step 2 with the centroids; the mean of their main cluster goes to all clients.
    4. Each client adds that to its own F, repeats the map, and divides the points in two: by HDBSCAN as in 2 into main cluster
       and all else, and by agglomerative clustering (2 clusters, cosine of the map's coordinates, average linkage). The division
       with the larger silhouette counts, of equal ones the second; where HDBSCAN leaves one label, that one. If the smaller
       silhouette is below 0.2 and the larger below 0.4 nothing is dropped. Otherwise the samples on the common centre's side stay.

    Without ``federated`` the division of step 4 is made of the client's own samples, and the larger side stays.

    Readings of ours. ``map`` pca takes the first two principal components of F at length 1 in place of UMAP, which is an optional
    extra. Clients of fewer than 5 samples send no centroid and drop nothing. The gradient leaves the client as an average over
    its main cluster; the exchange adds up one row a client, so that the server sees each, as in the source.

    Args:
        federated: whether clients share centroids.
        map: ``pca`` or ``umap``.
        module: the last part of the module's name.
    """

    def __init__(self, federated: bool = True, map: str = "pca", module: str = "v_proj") -> None:
        if not isinstance(federated, bool):
            raise ValueError(f"federated = {federated!r} must be true or false")
        self.federated = federated
        self.map = one_of("map", map, ("pca", "umap"))
        self.module = module
        self._setting: Setting | None = None
        self._features: dict[int, Matrix] = {}

    def begin(self, setting: Setting) -> None:
        """Take the base, and refuse an adapter without the module.

        Raises:
            UserError: no adapted module of that name.
        """
        last_module(setting.base.layout, self.module, "protegofed")
        self._setting = setting

    def share(self, samples: Sequence[Sample], context: ExchangeContext) -> NDArray[np.uint32] | None:
        """Return the client's centroid in a row of its own, as the bits of float32, ``[K·P]``: a sum with the other clients' keeps
        it.

        Raises:
            UserError: :meth:`begin` was not called.
        """
        if not self.federated or context.pooled:
            return None
        setting = self._set()
        rows = np.zeros((context.clients, self._width()), dtype=np.float32)
        if len(samples) >= self.least:
            found = features([samples[i] for i in canonical(samples)], setting, self.module)
            self._features[context.client] = found
            rows[context.client] = found[main_cluster(plane(found, self.map))].mean(axis=0)
        return rows.reshape(-1).view(np.uint32)

    def pool(self, total: NDArray[np.uint32], pooled: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """Return the mean of the centroids' main cluster ``[P]``, as the bits of float32."""
        rows = total.view(np.float32).reshape(-1, self._width()).astype(np.float64)
        sent = rows[np.any(rows != 0, axis=1)]
        if len(sent) > 1:
            sent = sent[main_cluster(plane(sent, self.map))]
        centre = sent.mean(axis=0) if len(sent) else np.zeros(self._width())
        return centre.astype(np.float32).view(np.uint32)

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[NDArray[np.bool_], dict[str, Any]]:
        """Keep the samples beside the common centre; the report holds which ``clustering`` counted and both ``silhouettes``.

        Raises:
            UserError: no adapted module of that name, or the centroids were not exchanged.
        """
        found = self._features.pop(context.client, None)
        if found is None:
            found = features(samples, context, self.module)
        if not self.federated:
            divided, report = divide(plane(found, self.map))
            return divided, report
        if context.exchange is None or not context.exchange.pooled:
            raise UserError("protegofed needs the clients' centroids; call share on every client first, or set federated=false")
        centre = context.exchange.pooled[0].view(np.float32).astype(np.float64)
        divided, report = divide(plane(np.vstack([found, centre]), self.map))
        return divided[:-1] == divided[-1], report

    def _set(self) -> Setting:
        if self._setting is None:
            raise UserError("protegofed has no base to compute gradients with; call begin first, as undertow run does")
        return self._setting

    def _width(self) -> int:
        layout = self._set().base.layout
        name = f"{last_module(layout, self.module, 'protegofed')}.lora_B"
        return next(slot.size for slot in layout.slots if slot.name == name)


def features(samples: Sequence[Sample], context: Setting | TrainingContext, module: str) -> Matrix:
    """Return F ``[n, P]``: each sample's gradient in the frequency domain."""
    rows, sides = gradients(samples, context, last_module(context.base.layout, module, "protegofed"))
    return dct2(rows.reshape(-1, *sides)).reshape(rows.shape)


def main_cluster(points: Matrix) -> NDArray[np.bool_]:
    """Return which of ``points [n, 2]`` have the commonest of HDBSCAN's labels."""
    size = max(int(0.04 * len(points)), 2)
    # scikit-learn's HDBSCAN takes its min_samples, with the point itself, from min_cluster_size.
    return most_common(dense_clusters(points, size, size - 1))


def divide(points: Matrix) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Return on which side each of ``points [n, 2]`` is, True for the larger, and how; all True where there are no clusters."""
    from sklearn.metrics import silhouette_score

    dense = main_cluster(points)
    if dense.all():
        return dense, {"clustering": "hdbscan", "silhouettes": None}
    linked = most_common(two_clusters(angles(points)))
    scores = [float(silhouette_score(points, sides)) if not sides.all() else -1.0 for sides in (dense, linked)]
    report = {"clustering": "hdbscan" if scores[0] > scores[1] else "agglomerative", "silhouettes": scores}
    if min(scores) < _POOR and max(scores) < _FAIR:
        return np.ones(len(points), dtype=bool), {**report, "clustering": "none"}
    return dense if scores[0] > scores[1] else linked, report
