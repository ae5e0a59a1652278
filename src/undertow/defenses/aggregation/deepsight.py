"""DeepSight: judge clients by what their updates do to the output layer of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout, Slot
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.clustering import hdbscan
from undertow.defenses.aggregation.geometry import combination, cosine_distances, lengths, squared_distances
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number, whole
from undertow.defenses.registry import DEFENSES

#: Added to the global model's outputs before they divide.
EPSILON = 1e-6
MIN_CLUSTER_SIZE = 5  # the hdbscan package's default, which the public implementations use


@DEFENSES.register(
    "deepsight", source="Rieger et al. 2022, DeepSight (NDSS), arXiv 2201.00763; steps as in its public implementations"
)
class DeepSight(Aggregator):
    """Cluster clients by three views of the output layer, and drop the clusters in which too many train on few labels.

    The layout must hold a head: ``<head>.weight`` [C, H] and ``<head>.bias`` [C]. With the update of these two:
    energy e_c = |bias_c| + sum_h |weight_ch|; NEUP_c = e_c^2 / sum e^2; TE = number of c with NEUP_c > max(0.01, 1 / C) max NEUP. A
    client with TE <= median(TE) / 2 is suspicious. DDif_c = mean over random inputs of client's output c / (global model's + 1e-6),
    for each of ``seeds`` sets of inputs. HDBSCAN (min_cluster_size = 5) clusters the cosine distances of the bias updates, the
    Euclidean ones of NEUP, and those of each DDif; each clustering becomes distances, 0 for two clients in one cluster and 1
    otherwise, the outliers being one cluster as in the public implementations; the seeds' are averaged, then the three; HDBSCAN, a
    single cluster allowed, clusters that. Clusters with a share of suspicious clients below tau are kept, outliers never. delta =
    mean of min(1, S / |U_i|) U_i over the kept, S the median of all lengths, and 0 where none is kept. Defined for K >= 5.

    A causal language model's LoRA trains no head: a run refuses. Undertow's server holds no model, so that outputs come from a
    function; without it DDif is left out and two views are averaged.

    Args:
        head: name of the output layer in the layout.
        tau: share of suspicious clients from which on a cluster is dropped, above 0 and at most 1; 1/3.
        min_samples: of HDBSCAN, >= 1: neighbours that make a point dense, itself not counted; 3.
        seeds: sets of random inputs, >= 1; 3.
        outputs: ``outputs(adapter [D], seed)`` -> probabilities ``[N, C]`` of the model with that adapter on the N random inputs of
            that seed (20,000 in the paper), for use in Python.
    """

    def __init__(
        self,
        head: str = "classifier",
        tau: float = 1 / 3,
        min_samples: int = 3,
        seeds: int = 3,
        outputs: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.head = head
        self.tau = number("tau", tau, most=1.0)
        self.min_samples = whole("min_samples", min_samples, least=1)
        self.seeds = whole("seeds", seeds, least=1)
        if outputs is not None and not callable(outputs):
            raise ValueError(f"outputs = {outputs!r} must be a function of an adapter and a seed; leave it out in a config")
        self.outputs = outputs

    @property
    def needs_adapter(self) -> bool:
        """Outputs are those of the global adapter with and without the update."""
        return self.outputs is not None

    def check(self, k: int) -> None:
        """Refuse K < 5 and K <= min_samples."""
        super().check(k)
        least = max(MIN_CLUSTER_SIZE, self.min_samples + 1)
        if k < least:
            raise UserError(f"DeepSight needs at least {least} clients, but there are {k}; use more clients or another aggregator")

    def fits(self, layout: Layout) -> None:
        """Refuse a layout without the head."""
        self._head(layout)

    def _head(self, layout: Layout) -> tuple[Slot, Slot]:
        slots = {slot.name: slot for slot in layout.slots}
        weight, bias = slots.get(f"{self.head}.weight"), slots.get(f"{self.head}.bias")
        if weight is None or bias is None or len(weight.shape) != 2 or bias.shape != weight.shape[:1]:
            raise UserError(
                f"DeepSight needs the output layer {self.head}.weight [C, H] and {self.head}.bias [C] among what clients send; "
                "without a classification head use another aggregator"
            )
        return weight, bias

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``.

        The report holds the final cluster of each row of ``updates [K, D]`` in ``labels``, who is ``suspicious``, TE as
        ``exceeding``, the ``kept`` rows and ``bound`` S.

        Raises:
            UserError: no head in the layout, or outputs that are no finite ``[N, C]``.
        """
        weight, bias = self._head(context.layout)
        k, classes = updates.shape[0], bias.size
        w = updates[:, weight.start : weight.start + weight.size].double().cpu().reshape(k, *weight.shape)
        b = updates[:, bias.start : bias.start + bias.size].double().cpu()
        energy = (b.abs() + w.abs().sum(dim=2)).square()
        neup = energy / torch.where(energy.sum(1) > 0, energy.sum(1), 1.0)[:, None]
        exceeding = (neup > max(0.01, 1 / classes) * neup.amax(dim=1, keepdim=True)).sum(dim=1)
        suspicious = exceeding <= float(exceeding.double().quantile(0.5)) / 2

        views = [self._apart(cosine_distances(b)), self._apart(squared_distances(neup).sqrt())]
        if self.outputs is not None:
            views.append(
                np.mean([self._apart(squared_distances(ddif).sqrt()) for ddif in self._ddifs(updates, context, classes)], axis=0)
            )
        labels = hdbscan(
            np.mean(views, axis=0), min_cluster_size=MIN_CLUSTER_SIZE, min_samples=self.min_samples, allow_single_cluster=True
        )
        kept: list[int] = []
        for label in sorted(set(labels) - {-1}):
            rows = [i for i, own in enumerate(labels) if own == label]
            if sum(bool(suspicious[i]) for i in rows) < self.tau * len(rows):
                kept += rows
        kept.sort()
        far = lengths(updates)
        bound = float(far.quantile(0.5))
        weights = torch.zeros(k, dtype=torch.float64)
        if kept:
            weights[kept] = torch.where(far > bound, bound / torch.where(far > bound, far, 1.0), 1.0)[kept] / len(kept)
        return combination(updates, weights), {
            "labels": labels,
            "exceeding": exceeding.tolist(),
            "suspicious": torch.nonzero(suspicious).flatten().tolist(),
            "kept": kept,
            "bound": bound,
        }

    def _apart(self, distances: Tensor) -> np.ndarray[Any, Any]:
        """Cluster by ``distances [K, K]``, and return 0 for two in one cluster and 1 otherwise, ``[K, K]``."""
        labels = np.array(hdbscan(distances.numpy(), min_cluster_size=MIN_CLUSTER_SIZE, min_samples=self.min_samples))
        apart: np.ndarray[Any, Any] = labels[:, None] != labels[None, :]
        return apart.astype(np.float64)

    def _ddifs(self, updates: Tensor, context: ServerContext, classes: int) -> list[Tensor]:
        """Return DDif ``[K, C]`` float64 for each seed."""
        adapter = context.adapter.to(updates.device)
        return [
            torch.stack([(self._ask(adapter + row, seed, classes) / shared).mean(dim=0) for row in updates])
            for seed in range(self.seeds)
            for shared in [self._ask(adapter, seed, classes) + EPSILON]
        ]

    def _ask(self, adapter: Tensor, seed: int, classes: int) -> Tensor:
        assert self.outputs is not None
        found = self.outputs(adapter, seed).detach().double().cpu()
        if found.ndim != 2 or found.shape[1] != classes or len(found) == 0 or not bool(torch.isfinite(found).all()):
            raise UserError(f"DeepSight got outputs of shape {list(found.shape)}; give finite probabilities [N, {classes}]")
        return found
