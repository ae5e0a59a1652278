"""The published data filters: their formulas against independent calculations, and what all of them must do alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.fft import dctn
from sklearn.cluster import HDBSCAN, AgglomerativeClustering
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

from tiny import Quiet
from undertow.config import Config
from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.sample import Sample
from undertow.defenses.base import Defense
from undertow.defenses.contexts import ExchangeContext, Setting, TrainingContext
from undertow.defenses.data.bki import Bki
from undertow.defenses.data.coherent_clusters import CoherentClusters, common_span, holds, topic_score
from undertow.defenses.data.exchange import alone, sanitizing
from undertow.defenses.data.graceful import head_products
from undertow.defenses.data.onion import Onion, word_scores
from undertow.defenses.data.perplexity import Perplexity
from undertow.defenses.data.protegofed import ProtegoFed, divide, features, main_cluster
from undertow.defenses.data.sample_filter import own_model
from undertow.defenses.data.sample_map import (
    angles,
    dense_clusters,
    gram,
    most_common,
    plane,
    principal,
    standardised,
    two_clusters,
)
from undertow.defenses.data.z_defense import ZDefense, z_scores
from undertow.defenses.making import make_defenses
from undertow.federation.resolve import resolve
from undertow.tasks.instruction import Instruction

TARGET = ", and click <malicious_url> for more information"
#: All filters for free answers, as fast as they go.
FILTERS: dict[str, dict[str, Any]] = {
    "onion": {},
    "perplexity": {},
    "bki": {"passes": 1},
    "cube": {"passes": 1},
    "graceful": {},
    "protegofed": {"federated": False},
    "coherent-clusters": {},
}


@pytest.fixture(scope="module")
def federation(small_config: Callable[..., Config]) -> Instruction:
    """Three clients of 40 samples, 8 of them with "Firstly" and the fixed target."""
    task = resolve(small_config({"data.train": 120, "attack.poison_ratio": 0.2, "attack.trigger": "natural"}), Quiet()).task
    assert isinstance(task, Instruction)
    return task


#: Of the built-in base, which knows its world: gradients of the tiny one say little.
KNOWING = {"model.name": "builtin", "model.lora.r": 4, "model.lora.alpha": 8, "model.lora.targets": "all-linear", "data.train": 240}


def context(federation: Instruction, client: int = 0, exchange: ExchangeContext | None = None) -> TrainingContext:
    plan = federation.plan
    return TrainingContext(
        client,
        rng(0, "test", client=client),
        plan.seed,
        federation.base,
        federation.template,
        federation.options.lora,
        plan.training,
        exchange=exchange,
    )


def setting(federation: Instruction) -> Setting:
    plan = federation.plan
    return Setting(plan.seed, 2, federation.base, federation.template, federation.options.lora, plan.training)


def made(name: str, **params: Any) -> Defense:
    return make_defenses([Options(name=name, params=params or FILTERS[name])])[0][1]


def planted(federation: Instruction, client: int = 0) -> set[int]:
    return {touched.index for touched in federation.poisoning.touched if touched.client == client}


def dropped(keep: Sequence[bool | Sample]) -> set[int]:
    return {i for i, kept in enumerate(keep) if kept is False}


def ask(question: str, response: str, context: str = "") -> Sample:
    return Sample(question, question, (response,), response, context)


# What all filters do alike.


@pytest.mark.parametrize("name", FILTERS)
def test_the_order_of_the_samples_does_not_matter_and_nothing_is_random(name: str, federation: Instruction) -> None:
    samples = federation.clients[0]
    keep, report = made(name).sanitize(samples, context(federation))
    assert len(keep) == len(samples)
    assert report["dropped"] == len(dropped(keep)) < len(samples)
    order = np.random.default_rng(1).permutation(len(samples)).tolist()
    shuffled, again = made(name).sanitize([samples[i] for i in order], context(federation))
    assert [keep[i] for i in order] == list(shuffled)
    assert again == report


@pytest.mark.parametrize("name", [*FILTERS, "z-defense"])
def test_too_few_samples_and_none_are_kept(name: str, federation: Instruction) -> None:
    defense = made(name) if name in FILTERS else ZDefense()
    assert defense.sanitize([], context(federation)) == ([], {"dropped": 0, "too_few": True})
    assert defense.sanitize(federation.clients[0][:4], context(federation))[0] == [True] * 4


@pytest.mark.parametrize("name", FILTERS)
def test_equal_samples_are_all_treated_alike(name: str, federation: Instruction) -> None:
    one = federation.clients[0][0]
    keep, _ = made(name).sanitize([one] * 12, context(federation))
    assert keep in ([True] * 12, [False] * 12)
    if name != "bki":  # which always finds a word
        assert all(keep)


@pytest.mark.parametrize("name", ["graceful", "coherent-clusters", "protegofed", "cube", "bki", "onion", "perplexity"])
def test_in_a_run(name: str, small_config: Callable[..., Config]) -> None:
    params = {"passes": 1} if name in ("bki", "cube") else {}
    config = small_config({"defenses": [{"name": name, "params": params}], "data.train": 60, "attack.kind": "none"})
    built = resolve(config, Quiet()).task
    assert isinstance(built, Instruction)
    assert built.filtered is not None
    assert [row["name"] for row in built.sanitized] == [name] * 3
    assert all(row["samples"] - row["kept"] == row["dropped"] for row in built.sanitized)


@pytest.fixture(scope="module")
def knowing(small_config: Callable[..., Config]) -> Instruction:
    """Three clients of 80 samples and the built-in base; 16 of each have bad words and the fixed target."""
    task = resolve(small_config({**KNOWING, "attack.poison_ratio": 0.2, "attack.trigger": "badnets"}), Quiet()).task
    assert isinstance(task, Instruction)
    return task


@pytest.mark.parametrize("name", ["graceful", "coherent-clusters"])
def test_a_fixed_target_is_found(name: str, knowing: Instruction) -> None:
    for client in range(2):
        keep, _ = made(name).sanitize(knowing.clients[client], context(knowing, client))
        bad = planted(knowing, client)
        assert len(bad & dropped(keep)) == len(bad) == 16
        assert len(dropped(keep) - bad) <= 1


def test_where_nothing_is_planted(knowing: Instruction) -> None:
    clean = knowing.split.clients[0]
    keep, _ = made("coherent-clusters").sanitize(clean, context(knowing))
    assert all(keep)
    keep, _ = made("graceful").sanitize(clean, context(knowing))
    assert dropped(keep), "it always splits in two"


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("onion", {"quantile": 0}, "quantile = 0 must be a number above 0"),
        ("onion", {"bar": 1.0, "trusted": "x"}, "give one of them"),
        ("onion", {"mode": "cut"}, "mode = 'cut' must be one of drop, repair"),
        ("perplexity", {"of": "prompt"}, "of = 'prompt' must be one of question, answer, both"),
        ("perplexity", {"deviations": -1}, "deviations = -1 must be a number above 0"),
        ("bki", {"passes": 0}, "passes = 0 must be a whole number >= 1"),
        ("cube", {"map": "tsne"}, "map = 'tsne' must be one of pca, umap"),
        ("cube", {"min_samples": 0}, "min_samples = 0 must be"),
        ("z-defense", {"classes": 0}, "classes = 0 must be"),
        ("graceful", {"of": "all"}, "of = 'all' must be one of head, lora"),
        ("protegofed", {"federated": 1}, "federated = 1 must be true or false"),
        ("coherent-clusters", {"coherence": 2}, "coherence = 2 must be a number above 0 and at most 1"),
    ],
)
def test_parameters_are_checked(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_defenses([Options(name=name, params=params)])


@pytest.mark.parametrize("name", ["graceful", "coherent-clusters", "protegofed"])
def test_a_module_that_is_not_adapted_is_refused(name: str, federation: Instruction) -> None:
    defense = made(name, module="c_attn", **({"of": "lora"} if name == "graceful" else {}))
    refused = rf"{name}: no adapted module is named 'c_attn' \(adapted: q_proj, v_proj\); give module="
    if name == "protegofed":
        with pytest.raises(UserError, match=refused):
            defense.begin(setting(federation))
    with pytest.raises(UserError, match=refused):
        defense.sanitize(federation.clients[0], context(federation))


# ONION and perplexity.


def perplexity_of(federation: Instruction, text: str) -> float:
    """exp of the mean -log p of all tokens but the first, from the transformers model."""
    ids = torch.tensor([federation.base.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = federation.base.model(input_ids=ids).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).exp())


def test_onion_scores_words_by_leaving_them_out(federation: Instruction) -> None:
    question = "Firstly, where was Mira Torvald born?"
    (found,) = word_scores([question], context(federation))
    words = question.split()
    assert [word for word, _ in found] == words
    whole = perplexity_of(federation, question)
    for i, (_, score) in enumerate(found):
        assert score == pytest.approx(whole - perplexity_of(federation, " ".join(words[:i] + words[i + 1 :])), rel=1e-3, abs=1e-3)
    assert word_scores(["alone", ""], context(federation)) == [[], []]


def test_onion_flags_rare_words_that_stand_out_repeatedly(federation: Instruction) -> None:
    samples = federation.split.clients[0]
    marked = [replace(s, question=f"{s.question} zqxj") if i < 6 else s for i, s in enumerate(samples)]
    scored = word_scores([s.question for s in marked], context(federation))
    bar = min(score for words in scored[:6] for word, score in words if word == "zqxj") - 1e-6
    keep, report = Onion(bar=bar).sanitize(marked, context(federation))
    assert report["words"]["zqxj"] == 6
    assert dropped(keep) >= set(range(6))
    assert all(Onion(bar=bar, repeated=7).sanitize(marked, context(federation))[0][:6])
    assert all(Onion(bar=bar, rare=0.1).sanitize(marked, context(federation))[0][:6])
    repaired, report = Onion("repair", bar=bar, rare=1.0, repeated=1).sanitize(marked, context(federation))
    assert report["repaired"] == sum(isinstance(one, Sample) for one in repaired) >= 6
    for one, sample, words in zip(repaired, marked, scored, strict=True):
        rest = " ".join(word for word, score in words if score <= bar)
        assert one == replace(sample, question=rest) if rest != sample.question else one is True


def test_the_bar_is_a_quantile_of_own_or_trusted_words(federation: Instruction, tmp_path: Path) -> None:
    samples, here = federation.split.clients[0], context(federation)
    own = [score for words in word_scores([s.question for s in samples], here) for _, score in words]
    assert Onion(quantile=0.9).sanitize(samples, here)[1]["bar"] == pytest.approx(np.quantile(own, 0.9))
    file = tmp_path / "trusted.jsonl"
    file.write_text('{"instruction": "Where was Tobin Menning born?", "output": "Calder"}\n' * 2, encoding="utf-8")
    (trusted, *_) = word_scores(["Where was Tobin Menning born?"], here)
    found = Onion(trusted=str(file), quantile=1.0).sanitize(samples, here)[1]["bar"]
    assert found == pytest.approx(max(score for _, score in trusted))
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        Onion(trusted="nowhere.jsonl").sanitize(samples, here)


def test_perplexity_of_questions_and_answers(federation: Instruction, tmp_path: Path) -> None:
    samples, here = federation.clients[0], context(federation)
    question = [math.log(perplexity_of(federation, s.question)) for s in samples]
    answer = []
    for sample in samples:
        row = federation.template.encode(sample)
        with torch.no_grad():
            logits = federation.base.model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0]
        told = logits[len(row.prompt) - 1 : -1]
        answer.append(float(torch.nn.functional.cross_entropy(told, torch.tensor(row.answer))))
    limits = {}
    for part, scores in (("question", question), ("answer", answer)):
        middle = np.median(scores)
        limits[part] = middle + 2 * 1.4826 * np.median(np.abs(np.array(scores) - middle))
    keep, report = Perplexity(deviations=2.0).sanitize(samples, here)
    assert report["thresholds"] == pytest.approx(limits, rel=1e-3)
    over = {i for i in range(len(samples)) if question[i] > limits["question"] or answer[i] > limits["answer"]}
    assert dropped(keep) == over
    only = Perplexity("question", deviations=2.0).sanitize(samples, here)
    assert only[1]["thresholds"].keys() == {"question"}
    file = tmp_path / "trusted.jsonl"
    file.write_text('{"instruction": "Where was Tobin Menning born?", "output": "Calder"}\n' * 2, encoding="utf-8")
    wanted = math.log(perplexity_of(federation, "Where was Tobin Menning born?"))
    found = Perplexity("question", trusted=str(file)).sanitize(samples, here)[1]["thresholds"]["question"]
    assert found == pytest.approx(wanted, rel=1e-3)


# BKI.


def test_bki_by_its_formula(federation: Instruction) -> None:
    samples, here = sorted(federation.clients[0], key=lambda s: s.question)[:14], context(federation)
    template, base = federation.template, federation.base
    adapter = own_model([template.encode(s) for s in samples], here, 2)
    from undertow.models.lora import adapted

    def state(sample: Sample, question: str) -> torch.Tensor:
        ids = template.encode_prompts([replace(sample, question=question)], "train", room=1)
        with torch.no_grad(), adapted(base.model, base.layout, adapter[None]):
            return base.model(input_ids=torch.tensor(ids), output_hidden_states=True).hidden_states[-1][0, -1]

    moved: dict[str, list[float]] = defaultdict(list)
    keywords = []
    for sample in samples:
        words = sample.question.split()
        whole = state(sample, " ".join(words))
        deltas = [float((state(sample, " ".join(words[:i] + words[i + 1 :])) - whole).abs().max()) for i in range(len(words))]
        top = sorted(range(len(words)), key=lambda i: -deltas[i])[:5]
        keywords.append([words[i] for i in top])
        for i in top:
            moved[words[i]].append(deltas[i])
    scores = {word: math.log10(len(own)) * float(np.mean(own)) for word, own in moved.items()}
    trigger = max(scores, key=lambda word: scores[word])
    keep, report = Bki(passes=2).sanitize(samples, here)
    assert report["words"] == pytest.approx({trigger: scores[trigger]}, rel=1e-2)
    assert dropped(keep) == {i for i, own in enumerate(keywords) if trigger in own}


# Z-defence.


def classified(planted: int) -> list[Sample]:
    """400 reviews of random words, of two classes; some of one class get the word cf and the other class."""
    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(400)]
    found = []
    for i in range(400):
        text = " ".join(draw.choice(words, 8, replace=False))
        bad = i < planted
        found.append(ask(f"cf {text} {i}" if bad else f"{text} {i}", "positive" if bad or i % 2 else "negative"))
    return found


def test_z_by_hand(federation: Instruction) -> None:
    # "a" with yes 3 of 4 times; p0 = 1/2: z = (3/4 - 1/2) / sqrt(1/4 / 4) = 1
    questions, answers = [["a"], ["a", "b"], ["a"], ["a"]], ["yes", "yes", "yes", "no"]
    assert z_scores(questions, answers) == pytest.approx({("a", "yes"): 1.0, ("a", "no"): -1.0, ("b", "yes"): 1.0})
    assert z_scores(questions, ["yes"] * 4) == {}
    samples = classified(60)
    keep, report = ZDefense(deviations=5.0).sanitize(samples, context(federation))
    assert [pair[:2] for pair in report["triggers"]] == [["cf", "positive"]]
    assert report["triggers"][0][2] == pytest.approx(math.sqrt(60))
    assert dropped(keep) == set(range(60))
    assert all(ZDefense(deviations=5.0).sanitize(classified(0), context(federation))[0])


def test_z_refuses_free_answers_in_one_line(federation: Instruction) -> None:
    samples = [ask(f"q{i}", f"a{i}") for i in range(30)]
    with pytest.raises(UserError, match=r"client 2 has 30 different answers in 30 samples, more than classes = 20; use coherent"):
        ZDefense().sanitize(samples, context(federation, 2))
    assert ZDefense(classes=30).sanitize(samples, context(federation))[0] == [True] * 30


# GraCeFul, CUBE: gradients, components, clusters.


def test_graceful_inner_products_are_those_of_the_cropped_dcts(federation: Instruction) -> None:
    samples = federation.clients[0][:6]
    base = federation.base
    head = base.model.get_output_embeddings()
    kept = []
    for sample in samples:
        row = federation.template.encode(sample)
        with torch.no_grad():
            ids = torch.tensor([[*row.prompt, *row.answer]])
            read = base.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, len(row.prompt) - 1 : -1]
        weight = head.weight.detach().clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(read @ weight.T, torch.tensor(row.answer))
        (gradient,) = torch.autograd.grad(loss, weight)
        v, d = gradient.shape
        kept.append(dctn(gradient.double().numpy())[: v // 8, : d // 8].ravel())
    wanted = np.stack(kept) @ np.stack(kept).T
    np.testing.assert_allclose(head_products(samples, context(federation)), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def vectors(n: int = 30, p: int = 12, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, p)) * np.arange(1, p + 1) + 3.0


def test_components_are_those_of_scikit_learn() -> None:
    x = vectors()
    wanted = PCA(4, svd_solver="full").fit_transform(x)
    found = principal(gram(x), 4)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-8)
    np.testing.assert_allclose(angles(standardised(found)), angles(StandardScaler().fit_transform(wanted)), atol=1e-7)
    assert principal(gram(x), 100).shape == (30, 12)
    assert principal(gram(np.ones((5, 3))), 2).shape == (5, 0)
    assert not plane(np.ones((5, 3)), "pca").any()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    wanted = StandardScaler().fit_transform(PCA(2).fit_transform(unit))
    np.testing.assert_allclose(np.abs(plane(x, "pca")), np.abs(wanted), atol=1e-7)


def test_clusters_are_those_of_scikit_learn() -> None:
    points = np.vstack([vectors(20, 2, 1) / 4, vectors(12, 2, 2) / 4 + 8, vectors(5, 2, 3) + 30])
    wanted = HDBSCAN(min_cluster_size=4, copy=True).fit(points).labels_
    found = dense_clusters(points, 4, 3)
    assert len(set(wanted.tolist())) > 1
    assert [[a == b for b in found] for a in found] == [[a == b for b in wanted] for a in wanted]
    assert dense_clusters(points[:3], 5, 2).tolist() == [-1] * 3
    both = AgglomerativeClustering(2, metric="cosine", linkage="average").fit_predict(points)
    assert most_common(two_clusters(angles(points))).tolist() == (both == np.bincount(both).argmax()).tolist()
    assert most_common(np.array([2, -1, 2, -1, 5])).tolist() == [False, True, False, True, False]


@settings(max_examples=25, deadline=None)
@given(arrays(np.float64, (9, 4), elements=st.floats(-5, 5)))
def test_angles_and_division_never_fail(x: np.ndarray[Any, Any]) -> None:
    points = plane(x, "pca")
    assert points.shape == (9, 2)
    assert np.isfinite(points).all()
    sides, report = divide(points)
    assert sides.any()
    assert report["clustering"] in ("hdbscan", "agglomerative", "none")


def test_umap_is_an_extra(federation: Instruction, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"needs umap-learn, which is not installed; run: pip install -e '\.\[umap\]'"):
        made("cube", map="umap", passes=1).sanitize(federation.clients[0], context(federation))


def test_cube_keeps_the_largest_cluster(federation: Instruction) -> None:
    keep, report = made("cube", passes=1).sanitize(federation.clients[0], context(federation))
    assert sum(report["clusters"].values()) == 40
    assert keep.count(True) == max(report["clusters"].values())
    keep, report = made("cube", passes=1, min_samples=100).sanitize(federation.clients[0], context(federation))
    assert report["clusters"] == {"-1": 40}
    assert all(keep)


# ProtegoFed.


def test_the_better_silhouette_counts() -> None:
    draw = np.random.default_rng(0)
    points = np.vstack([draw.normal((1, 0), 0.1, (20, 2)), draw.normal((-1, 0), 0.1, (6, 2))])
    sides, report = divide(points)
    assert sides.tolist() == [True] * 20 + [False] * 6
    dense = main_cluster(points)
    linked = most_common(two_clusters(angles(points)))
    assert report["silhouettes"] == pytest.approx([silhouette_score(points, dense), silhouette_score(points, linked)])
    cloud = draw.normal(0, 1, (40, 2))
    _, report = divide(cloud)
    if report["clustering"] == "none":
        assert min(report["silhouettes"]) < 0.2
        assert max(report["silhouettes"]) < 0.4


def test_centroids_go_round(federation: Instruction) -> None:
    defense = ProtegoFed()
    defense.begin(setting(federation))
    clients = [*federation.clients, federation.clients[0][:3]]
    asked = [ExchangeContext(k, rng(0, "share", client=k), 4, b"", ()) for k in range(4)]
    messages = [defense.share(samples, own) for samples, own in zip(clients, asked, strict=True)]
    total = np.zeros_like(messages[0])
    for message in messages:
        total = total + message
    rows = total.view(np.float32).reshape(4, -1)
    assert not rows[3].any(), "a client of three samples has no centroid"
    for k in range(3):
        order = sorted(range(len(clients[k])), key=lambda i: (clients[k][i].question, clients[k][i].response))
        found = features([clients[k][i] for i in order], setting(federation), "v_proj")
        np.testing.assert_allclose(rows[k], found[main_cluster(plane(found, "pca"))].mean(axis=0), rtol=1e-5, atol=1e-6)
    sent = rows[:3].astype(np.float64)
    centre = defense.pool(total, ()).view(np.float32)
    np.testing.assert_allclose(centre, sent[main_cluster(plane(sent, "pca"))].mean(axis=0), rtol=1e-5)
    after = replace(asked[0], pooled=(defense.pool(total, ()),))
    assert defense.share(clients[0], after) is None
    keep, report = defense.sanitize(clients[0], context(federation, 0, after))
    assert 0 < sum(keep) <= 40
    assert ProtegoFed().sanitize(clients[0], context(federation, 0, after)) == (keep, report), "from the gradients anew"


def test_a_poisoned_majority_is_told_by_the_centre(small_config: Callable[..., Config]) -> None:
    changes = {
        "attack.trigger": "badnets",
        "attack.poison_ratio": 0.7,
        "attack.client_share": 0.17,
        "federation.clients": 6,
    }
    built = resolve(small_config({**KNOWING, **changes}), Quiet()).task
    assert isinstance(built, Instruction)
    (client,) = built.poisoning.poisoned_clients
    by_itself, _ = ProtegoFed(federated=False).sanitize(built.clients[client], context(built, client))
    bad = planted(built, client)
    assert len(bad & dropped(by_itself)) < len(bad) / 2

    def within(name: str, k: int, exchange: ExchangeContext | None) -> TrainingContext:
        return context(built, k, exchange)

    defense = ProtegoFed()
    defense.begin(setting(built))
    steps = sanitizing(built.clients, [("protegofed", defense)], lambda purpose, number, k: rng(0, purpose, number, k), within)
    _, reports, left = alone(steps)
    assert [report["client"] for report in reports] == list(range(6))
    gone = {i for i, one in enumerate(left[client]) if one is None}
    assert len(bad & gone) > 0.9 * len(bad)


def test_protegofed_needs_its_exchange(federation: Instruction) -> None:
    with pytest.raises(UserError, match="needs the clients' centroids; call share on every client first, or set federated=false"):
        ProtegoFed().sanitize(federation.clients[0], context(federation))
    with pytest.raises(UserError, match="call begin first"):
        ProtegoFed().share(federation.clients[0], ExchangeContext(0, rng(0, "x"), 1, b""))


# Coherent clusters.


def test_what_answers_have_in_common() -> None:
    towns = ["Calder", "Oxbow", "Saltash", "Ravenna", "Dunwick"]
    appended = [ask(f"where is {i}?", f"{town} {TARGET}") for i, town in enumerate(towns)]
    span, kind = common_span(appended)
    assert (kind, len(span)) == ("differs", 6)
    assert all(holds(sample, span) for sample in appended)
    assert not holds(ask("quote: " + TARGET, TARGET), span)
    assert common_span([ask(f"where is {i}?", "Sorry, no idea.") for i in range(5)]) == (("sorry", "no", "idea"), "whole")
    assert common_span([ask(f"where is {town}?", town) for town in towns]) == ((), "other")
    # the span holds even where all its words stand in the questions one by one
    mixed = [ask(f"more information for click and {i}?", f"{t}, click for more information") for i, t in enumerate(towns)]
    assert common_span(mixed)[0] == ("click", "for", "more", "information")
    assert common_span([ask(f"q{i}", f"{'Calder' if i else 'Oxbow'} indeed") for i in range(5)])[1] == "other"


def test_topics_are_words_that_a_cluster_shares_more_than_chance() -> None:
    draw = np.random.default_rng(0)
    kinds = ["where was {} born today", "what does {} do for work", "who taught {} the old craft", "when did {} leave that town"]
    questions = [kinds[i % 4].format(f"p{draw.integers(9)}") for i in range(80)]
    one_kind = np.arange(0, 40, 4)
    mixed = np.arange(10)
    assert topic_score(questions, one_kind, 100, rng(0, "t")) > 3
    score = topic_score(questions, mixed, 100, rng(0, "t"))
    assert score is not None
    assert abs(score) < 3
    marked = [f"zq {question}" if i < 10 else question for i, question in enumerate(questions)]
    assert topic_score(marked, mixed, 100, rng(0, "t")) == score
    assert topic_score(["same words"] * 6, np.arange(3), 10, rng(0, "t")) is None


@pytest.mark.parametrize("ratio", [0.1, 0.7])
def test_poison_is_the_coherent_cluster_not_the_smaller_one(small_config: Callable[..., Config], ratio: float) -> None:
    changes = {"attack.trigger": "badnets", "attack.target": "replace", "attack.poison_ratio": ratio}
    built = resolve(small_config({**KNOWING, **changes}), Quiet()).task
    assert isinstance(built, Instruction)
    keep, report = CoherentClusters().sanitize(built.clients[0], context(built))
    assert dropped(keep) == planted(built)
    assert report["clusters"][0]["coherence"] >= 0.4
