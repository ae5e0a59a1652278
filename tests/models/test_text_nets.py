"""Networks of text classes: padding changes nothing, clients side by side learn what they learn alone, transformers fit in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from undertow.config import Training
from undertow.core.errors import UserError
from undertow.data.examples import Examples
from undertow.models.net import Net, make_net
from undertow.training.stacked import ExampleJob, chunk_size, train

IDS, LENGTH, CLASSES = 20, 7, 3


def texts(n: int, seed: int = 0) -> Tensor:
    """Rows of 2 to LENGTH - 1 numbers from 1, padded with 0."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, IDS, (n, LENGTH), generator=draw)
    ends = torch.randint(2, LENGTH, (n, 1), generator=draw)
    return torch.where(torch.arange(LENGTH) < ends, rows, 0)


def encoder(options: str = "", ids: int | None = IDS) -> Net:
    return make_net(f"encoder:width=8{options}", (LENGTH,), CLASSES, 0, ids)


def updates(net: Net, chunk: int, trainer: str, sizes: tuple[int, ...] = (6, 3, 5)) -> Tensor:
    jobs = [ExampleJob(k, Examples(texts(n, k), torch.arange(n) % CLASSES)) for k, n in enumerate(sizes)]
    values = {"trainer": trainer, "batch_size": 4, "lr": 0.05, "optimizer": "sgd", "clip": 1.0, "client_chunk": chunk}
    return train(net, Training.model_validate(values), net.initial().double(), jobs, 0, 1).updates


@pytest.mark.parametrize("options", ["", ":act=relu", ":layers=1:heads=4"])
def test_encoders_train_the_same_side_by_side_and_alone(options: str) -> None:
    net = encoder(options)
    plain, fast = updates(net, 0, "sequential"), updates(net, 3, "batched")
    assert torch.linalg.vector_norm(plain, dim=1).min() > 1e-3
    assert torch.linalg.vector_norm(fast - plain) / torch.linalg.vector_norm(plain) < 1e-9


def test_the_encoder_does_not_see_padding_and_stays_finite_on_it_alone() -> None:
    net, rows = encoder(), texts(5)
    state = net.initial()
    ends = int((rows != 0).sum(1).max())
    torch.testing.assert_close(net.logits(state, rows[:, :ends]), net.logits(state, rows))
    start = state.clone().requires_grad_()
    found = net.call(net.of_state(start), torch.zeros(2, LENGTH, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(found.sum(), start)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


def test_the_encoder_knows_places_and_has_an_activation_in_every_block() -> None:
    net = encoder(":layers=3:act=relu")
    rows = torch.tensor([[3, 4, 5, 0, 0, 0, 0], [5, 4, 3, 0, 0, 0, 0]])
    one, other = net.logits(net.initial(), rows)
    assert not torch.allclose(one, other, atol=1e-6)
    names = [name for name, part in net.module.named_modules() if isinstance(part, torch.nn.ReLU)]
    assert names == [f"blocks.{i}.mlp.act" for i in range(3)]


def test_the_encoders_attention_is_torchs() -> None:
    net = encoder(":layers=1:heads=2")
    block: Any = net.module.blocks[0]  # type: ignore[union-attr,index]
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    x, rows = torch.randn(4, LENGTH, 8, generator=torch.Generator().manual_seed(1)), texts(4)
    seen = block.norm1(x)
    wanted = x + theirs(seen, seen, seen, key_padding_mask=rows == 0, need_weights=False)[0]
    wanted = wanted + block.mlp(block.norm2(wanted))
    mask = torch.where(rows != 0, 0.0, torch.finfo(x.dtype).min)[:, None, None]
    torch.testing.assert_close(block(x, mask), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "ids", "said"),
    [
        ("encoder:heads=3", IDS, "heads = 3 does not divide width = 64"),
        ("encoder:layers=0", IDS, "layers = 0 is no whole number from 1"),
        ("encoder:act=tanh", IDS, "neither gelu nor relu"),
        ("encoder:ids=5", IDS, "no parameter 'ids'"),
        ("encoder", None, "reads texts with one class each, and the data are no such texts"),
        ("lstm", IDS, "network 'lstm' reads no texts with one class each, and the data are such texts"),
        ("cnn", IDS, "choose another of `undertow list networks`"),
        ("sequence-classifier", IDS, "path is not set"),
        ("sequence-classifier:path=./nowhere", IDS, "no such folder"),
        ("sequence-classifier:path=x:frozen=2", IDS, "frozen = 2 is neither true nor false"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, ids: int | None, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make_net(name, (LENGTH,), CLASSES, 0, ids)
    assert "\n" not in str(caught.value)


# ---- models of transformers ----------------------------------------------------------------------------------------


def tokenizer(folder: Path, words: int = IDS - 1) -> None:
    """A tokenizer of that many words in a folder."""
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, words)}}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


TINY: dict[str, Any] = {
    "distilbert": DistilBertConfig(vocab_size=IDS, dim=8, hidden_dim=12, n_layers=2, n_heads=2, max_position_embeddings=9),
    "bert": BertConfig(
        vocab_size=IDS - 1,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
    ),
    # padding is token 1, and places are counted from behind it
    "roberta": RobertaConfig(
        vocab_size=IDS, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=9
    ),
    # no padding at all; reads the last token
    "gpt2": GPT2Config(vocab_size=IDS, n_embd=8, n_layer=1, n_head=2, n_positions=9, eos_token_id=19, bos_token_id=19),
}


@pytest.fixture(scope="module", params=list(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pre-trained classifier with its tokenizer."""
    place = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        TINY[request.param].num_labels = CLASSES
        AutoModelForSequenceClassification.from_config(TINY[request.param]).save_pretrained(place)
    tokenizer(place)
    return place


def test_it_computes_what_transformers_does_for_each_text_alone(folder: Path) -> None:
    net, rows = make_net(f"sequence-classifier:path={folder}", (LENGTH,), CLASSES, 0, IDS), texts(6)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = torch.cat([plain(input_ids=row[row != 0][None] - 1).logits for row in rows])
    torch.testing.assert_close(net.logits(net.initial(), rows), wanted, atol=1e-5, rtol=1e-4)
    assert net.trained == sum(p.numel() for p in plain.parameters())
    blank = net.logits(net.initial(), torch.zeros(2, LENGTH, dtype=torch.int64))
    assert blank.isfinite().all()


def test_it_trains_the_same_alone_and_in_the_reference(folder: Path) -> None:
    net = make_net(f"sequence-classifier:path={folder}", (LENGTH,), CLASSES, 0, IDS)
    plain = updates(net, 0, "sequential")
    for chunk in (0, 3):
        assert torch.linalg.vector_norm(updates(net, chunk, "batched") - plain) / torch.linalg.vector_norm(plain) < 1e-6
    jobs = [ExampleJob(k, Examples(texts(4, k), torch.zeros(4, dtype=torch.int64))) for k in range(3)]
    assert chunk_size(net, Training.model_validate({}), net.initial(), jobs) == 1


def test_frozen_trains_the_head_alone_and_scratch_forgets_the_checkpoint(folder: Path) -> None:
    whole = make_net(f"sequence-classifier:path={folder}", (LENGTH,), CLASSES, 0, IDS)
    head = make_net(f"sequence-classifier:path={folder}:frozen=true", (LENGTH,), CLASSES, 0, IDS)
    names = [slot.name for slot in head.layout.slots]
    assert names
    assert all("classifier" in name or name.startswith("model.score") for name in names)
    torch.testing.assert_close(head.logits(head.initial(), texts(3)), whole.logits(whole.initial(), texts(3)))
    new = [
        make_net(f"sequence-classifier:path={folder}:scratch=true", (LENGTH,), CLASSES, seed, IDS).initial() for seed in (0, 0, 1)
    ]
    assert torch.equal(new[0], new[1])
    assert not torch.equal(new[0], new[2])
    assert not torch.equal(new[0], whole.initial())


def test_another_number_of_classes_and_a_bare_encoder_get_a_new_head(folder: Path, tmp_path: Path) -> None:
    net = make_net(f"sequence-classifier:path={folder}", (LENGTH,), 5, 0, IDS)
    assert net.logits(net.initial(), texts(2)).shape == (2, 5)
    bare = BertModel(TINY["bert"])
    bare.save_pretrained(tmp_path)
    tokenizer(tmp_path)
    made = make_net(f"sequence-classifier:path={tmp_path}", (LENGTH,), CLASSES, 0, IDS)
    found = made.module.model.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    assert torch.equal(found, bare.embeddings.word_embeddings.weight)


def test_other_numbers_than_its_own_and_long_rows_are_refused(folder: Path) -> None:
    for ids in (IDS - 1, IDS + 5):
        with pytest.raises(UserError, match=r"add tokenizer=.* to data\.name"):
            make_net(f"sequence-classifier:path={folder}", (LENGTH,), CLASSES, 0, ids)
    assert make_net(f"sequence-classifier:path={folder}:scratch=true", (LENGTH,), CLASSES, 0, IDS - 1).trained
    with pytest.raises(UserError, match="it cannot read 30 tokens; lower length"):
        make_net(f"sequence-classifier:path={folder}", (30,), CLASSES, 0, IDS)
