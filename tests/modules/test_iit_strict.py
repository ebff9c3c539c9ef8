"""Strict sites: gradients by hand, what is in a part, nothing left outside, who measures which."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from planting import (
    PARTS,
    QUIET,
    SIDES,
    activation,
    booleans,
    by_hand,
    equality,
    first,
    fitted,
    layer_one,
    made,
    neurons,
    small_gpt2,
    spied,
)

from iitkit.batch import IGNORED, Tokens
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, SiteInfo
from iitkit.interventions.edits import Swap
from iitkit.interventions.masks import Indices
from iitkit.interventions.spaces import Identity
from iitkit.models.scratch import Llama
from iitkit.modules.iit_measures import base_labels, rows_of_sites, says, taken
from iitkit.modules.iit_strict import all_aligned, columns_at

pytestmark = QUIET
WHOLE: dict[str, Any] = {"name": "Vanilla"}


def gradients(model: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_of_a_strict_site_of_vectors(detach: bool) -> None:
    """The source is a constant where it is detached; what stays the base's is the base's own, and never one."""
    module = made(w_strict=1.0, detach_source=detach)
    batch: Any = first(module, equality())
    module.term("strict", batch)[0].backward()  # type: ignore[no-untyped-call]
    found = gradients(module.base_model)
    module.zero_grad()
    source = layer_one(module.base_model, batch.sources[0].inputs)
    source = source.detach() if detach else source
    outside = torch.tensor([False] * 5 + [True] * 2)
    logits = by_hand(module.base_model, batch.base.inputs, lambda hidden: torch.where(outside, source, hidden))
    F.cross_entropy(logits, base_labels(batch)[:, 0]).backward()  # type: ignore[no-untyped-call]
    expected = gradients(module.base_model)
    assert len(found) == len(expected) == 6
    assert min(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_of_a_strict_site_of_sequences(detach: bool) -> None:
    module = made(PARTS, small_gpt2(), w_strict=1.0, detach_source=detach)
    batch = first(module, booleans())
    model: Any = module.base_model
    module.term("strict", batch)[0].backward()  # type: ignore[no-untyped-call]
    found = gradients(model)
    module.zero_grad()
    source = activation(model, batch.sources[0], 1)
    source = source.detach() if detach else source
    into = columns_at(batch, module.strict_sites[0], 0)[0][:, 0].tolist()
    assert {2, 4} <= set(into)  # the aligned positions are among those that are drawn

    def put(hidden: torch.Tensor) -> torch.Tensor:
        new = hidden.clone()
        for row, column in enumerate(into):
            new[row, column] = source[row, column]
        new[:, 4, 0:3] = hidden[:, 4, 0:3]
        new[:, 2, 3:5] = hidden[:, 2, 3:5]
        return new

    logits = spied(model, batch.base, model.transformer.h[1], put)
    F.cross_entropy(logits, base_labels(batch)[:, 0]).backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(found, gradients(model), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


# --- parts ---


def parts_of(alignment: dict[str, Any], base: Any = None) -> set[str]:
    module = made(alignment, base or small_gpt2(), w_strict=1.0, strict="parts")
    module.configure_model()
    return {
        site.name.replace("head_attention_value_output_", "").replace("_mlp_output", "") for site in module.strict_sites
    }


def at(component: str, layer: int, **more: Any) -> dict[str, Any]:
    return {"layer": layer, "component": component, "intervention": WHOLE, **more}


@pytest.mark.parametrize(
    ("component", "more", "gone"),
    [
        ("head_attention_value_output", {"head": 1}, {"layer_1_head_1"}),
        ("head_query_output", {"head": [1]}, {"layer_1_head_1"}),
        ("head_attention_value_output", {}, {"layer_1_head_0", "layer_1_head_1"}),
        ("attention_output", {}, {"layer_1_head_0", "layer_1_head_1"}),
        ("attention_value_output", {}, {"layer_1_head_0", "layer_1_head_1"}),
        ("head_key_output", {"head": 0}, {"layer_1_head_0", "layer_1_head_1"}),  # of several heads in other networks
        ("mlp_output", {}, {"layer_1"}),
        ("mlp_hidden", {}, {"layer_1"}),
        ("mlp_activation", {}, {"layer_1"}),
    ],
)
def test_what_makes_an_aligned_site_is_no_strict_site(component: str, more: dict[str, Any], gone: set[str]) -> None:
    every = {f"layer_{i}_head_{h}" for i in range(3) for h in range(2)} | {f"layer_{i}" for i in range(3)}
    assert parts_of({"ab": at(component, 1, **more)}) == every - gone


def test_a_key_of_several_heads_is_in_all_of_them() -> None:
    network = Llama(3, width=16, layers=2, heads=4, kv_heads=2, positions=8, seed=0)
    found = parts_of({"ab": at("head_value_output", 0, head=1)}, network)
    assert found == {"layer_0", "layer_1", *(f"layer_1_head_{h}" for h in range(4))}


@pytest.mark.parametrize(
    "placement",
    [
        {"layer": 1, "intervention": WHOLE},
        {"layer": 0, "component": "block_input", "intervention": WHOLE},
        {"module": "transformer.h.0.mlp", "side": "output", "intervention": WHOLE},
    ],
)
def test_what_all_parts_make_has_no_parts_beside_it(placement: dict[str, Any]) -> None:
    """A strict head below it is what the variable is computed by."""
    alignment = {"ab": at("mlp_output", 0), "cd": placement}
    with pytest.raises(IITKitError, match=re.escape("alignment.cd is in none of them")):
        parts_of(alignment)


def test_a_part_is_taken_from_the_source_at_all_positions() -> None:
    """An MLP's output, and a head's part of what enters the projection, by hooks."""
    module = made({"ab": at("mlp_output", 2)}, small_gpt2(), w_strict=1.0, strict="parts")
    batch = first(module, booleans())
    model: Any = module.base_model
    by_name = {site.name: site for site in module.strict_sites}
    labels = base_labels(batch)
    for name, part, of, columns in (
        ("layer_0_mlp_output", model.transformer.h[0].mlp.c_proj, "output", slice(0, 16)),
        ("layer_1_head_attention_value_output_head_1", model.transformer.h[1].attn.c_proj, "input", slice(8, 16)),
    ):
        kept: list[torch.Tensor] = []

        def put(hidden: torch.Tensor, kept: list[torch.Tensor] = kept, columns: slice = columns) -> torch.Tensor:
            if not kept:
                kept.append(hidden)
                return hidden
            new = hidden.clone()
            new[:, :, columns] = kept[0][:, :, columns]
            return new

        if of == "output":
            handle = part.register_forward_hook(lambda m, args, output, put=put: put(output))
        else:
            handle = part.register_forward_pre_hook(lambda m, args, put=put: (put(args[0]),))
        model(input_ids=batch.sources[0].ids)
        logits = model(input_ids=batch.base.ids).logits[:, -1]
        handle.remove()
        assert (logits - model(input_ids=batch.base.ids).logits[:, -1]).abs().max() > 1e-4
        for step in (0, 7):  # nothing is drawn within a part
            found = module._strict(by_name[name], batch, labels, step)[:, 0]
            assert torch.allclose(found, logits, atol=1e-6), name


# --- nothing outside ---


def blocks(**sizes: int) -> dict[str, Any]:
    return {"name": "RotatedSubspace", "coordinates": sizes}


@pytest.mark.parametrize(
    ("alignment", "covers"),
    [
        ({"left_equal": neurons(1, [0, 1, 2]), "right_equal": neurons(1, [3, 4, 5, 6])}, True),
        ({"left_equal": neurons(1, [0, 1, 2]), "right_equal": neurons(1, [3, 4, 5])}, False),
        ({"left_equal": {"layer": 1, "intervention": {"rank": 7}}}, True),
        ({"left_equal": {"layer": 1, "intervention": {"rank": 6}}}, False),
        (
            {
                "left_equal": {"layer": 1, "intervention": blocks(left_equal=3, right_equal=4)},
                "right_equal": {"layer": 1, "shared_with": "left_equal"},
            },
            True,
        ),
        ({"left_equal": {"layer": 1, "intervention": blocks(left_equal=3, right_equal=4)}}, False),  # one is placed
    ],
)
def test_variables_that_share_out_all_of_a_site_leave_nothing(alignment: dict[str, Any], covers: bool) -> None:
    module = made(alignment, w_strict=1.0)
    if not covers:
        assert fitted(module, equality()).trainer.global_step == 3
        return
    with pytest.raises(IITKitError, match=r"nothing of layer 1 block_output stands outside the alignment"):
        fitted(module, equality())


@pytest.mark.parametrize(("position", "covers"), [("all", True), ([0, 1, 2, 3], False)])
def test_the_whole_of_all_positions_leaves_nothing(position: Any, covers: bool) -> None:
    alignment = {"ab": {"layer": 1, "position": position, "intervention": WHOLE}}
    module = made(alignment, small_gpt2(), w_strict=1.0)
    if not covers:
        assert fitted(module, booleans()).trainer.global_step == 4
        return
    with pytest.raises(IITKitError, match=r"nothing of layer 1 block_output stands outside the alignment"):
        fitted(module, booleans())


# --- measuring ---


def test_every_row_measures_some_sites_and_all_are_measured() -> None:
    assert [entries.tolist() for entries in rows_of_sites(3, torch.tensor([4, 9]))] == [[0, 1]] * 3
    assert rows_of_sites(0, torch.tensor([4, 9])) == []
    found = rows_of_sites(20, torch.arange(100))
    assert Counter(row for entries in found for row in entries.tolist()) == dict.fromkeys(range(100), 8)
    assert {len(entries) for entries in found} == {40}
    assert found[0].tolist()[:4] == [0, 2, 5, 7]  # 8 sites a row: 0…7, 8…15, 16…3, 4…11, 12…19
    again = rows_of_sites(20, torch.arange(1, 100, 2))  # the other process's rows
    assert [entries.tolist() for entries in again] == [
        [(row - 1) // 2 for row in of.tolist() if row % 2] for of in found
    ]


class Values(Callback):
    found: dict[str, float]

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.found = {key: float(value) for key, value in trainer.callback_metrics.items() if "strict" in key}


def validated(alignment: dict[str, Any], **options: Any) -> dict[str, float]:
    watch = Values()
    size = options.pop("eval_batch_size")
    module = made(alignment, small_gpt2(layers=8), w_strict=1.0, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(module, booleans(eval_batch_size=size), verbose=False)
    return watch.found


@pytest.mark.parametrize("strict", ["beside", "parts"])
def test_strict_accuracy_does_not_depend_on_the_batches(strict: str) -> None:
    alignment = {"ab": at("mlp_output", 3)}
    found = [validated(alignment, strict=strict, eval_batch_size=size) for size in (24, 7, 1)]
    assert len(found[0]) == (1 if strict == "beside" else 23)
    assert found[0] == found[1] == found[2]


def test_strict_accuracy_by_hand() -> None:
    """Each row at its drawn column, with the rest of the network's answer to the base's own label."""
    alignment = {"ab": {"layer": 7, "intervention": {"name": "Vanilla", "features": [0]}}}
    found = validated(alignment, eval_batch_size=24)
    module = made(alignment, small_gpt2(layers=8), w_strict=1.0)
    data = booleans(eval_batch_size=24)
    first(module, data)
    (batch,) = data.val_dataloader()
    model: Any = module.base_model
    into = columns_at(batch, module.strict_sites[0], 0)[0][:, 0].tolist()
    source, right = activation(model, batch.sources[0], 7), 0
    for row, column in enumerate(into):
        one = taken(batch, torch.tensor([row]))

        def put(hidden: torch.Tensor, row: int = row, column: int = column) -> torch.Tensor:
            new = hidden.clone()
            new[0, column] = source[row, column]
            new[0, 4, 0] = hidden[0, 4, 0]
            return new

        logits = spied(model, one.base, model.transformer.h[7], put)
        answers = one.candidates[0, :, 0]
        right += int(logits[0, answers].argmax()) == int(one.base_label)
    assert found == {"val/strict/layer_7_block_output/accuracy": pytest.approx(right / 24)}
    assert 0 < right < 24


def test_a_process_counts_sites_that_none_of_its_rows_measures() -> None:
    """Else two processes would wait for each other for ever: each sums what it counted with what the other did."""
    module = made({"ab": at("mlp_output", 3)}, small_gpt2(layers=8), w_strict=1.0, strict="parts")
    data = booleans()
    batch = first(module, data)
    module.trainer = pl.Trainer(accelerator="cpu", logger=False)
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    one = replace(taken(batch, torch.tensor([0])), rows=torch.tensor([0]))
    zeros = torch.zeros(1, 1, 3)
    module._tally("val", one, zeros, zeros[:, 0, :2])
    counted = {key: int(metric.count.sum()) for key, metric in module.test_metrics.items() if "strict" in key}
    assert list(counted.values()) == [1] * 8 + [0] * 15


def test_an_answer_of_several_tokens_is_kept_if_each_of_them_is() -> None:
    module = made(SIDES)
    batch = first(module, equality())
    several = replace(batch, candidates=torch.tensor([[[0, 1], [1, 0]]] * len(batch)))
    labels = several.candidates[torch.arange(len(batch)), batch.base_label]
    logits = F.one_hot(labels, 2).float()
    assert says(logits, several, labels).all()
    logits[0, 1] = logits[0, 1].flip(0)
    logits[1, 0] = logits[1, 0].flip(0)
    assert says(logits, several, labels).tolist() == [False, False] + [True] * (len(batch) - 2)
    labels[1, 0], labels[0, 1] = logits[1, 0].argmax(), IGNORED  # the second is right now; the first is of one token
    assert says(logits, several, labels).all()


# --- drawing ---


class Stepping:
    """All of a trainer that a step asks for."""

    global_step = 0
    estimated_stepping_batches = 1000.0


def test_every_strict_site_and_every_column_is_drawn_in_time() -> None:
    """The term of a step is that of the site and the columns of the step."""
    module = made({"ab": at("mlp_output", 1), "cd": at("attention_output", 0)}, small_gpt2(), w_strict=1.0)
    batch = first(module, booleans())
    module._trainer = Stepping()  # type: ignore[assignment]
    sites, seen = {}, [Counter[int]() for _ in range(12)]
    with torch.no_grad():
        for step in range(60):
            Stepping.global_step = step
            _, logits = module.term("strict", batch)
            labels = base_labels(batch)
            expected = [module._strict(site, batch, labels, step) for site in module.strict_sites]
            (drawn,) = [i for i, theirs in enumerate(expected) if torch.equal(theirs, logits)]
            sites[step] = drawn
            for row, column in enumerate(columns_at(batch, module.strict_sites[drawn], step)[0][:, 0].tolist()):
                seen[row][column] += 1
    Stepping.global_step = 0
    assert 20 < sum(sites.values()) < 40  # two sites, one as often as the other
    assert all(len(counts) == 5 for counts in seen)  # each row has each of its columns drawn


def padded(lengths: list[int], left: bool) -> Tokens:
    most = max(lengths)
    real = [[0] * (most - n) + [1] * n if left else [1] * n + [0] * (most - n) for n in lengths]
    mask = torch.tensor(real)
    return Tokens(mask.clone(), mask)


@pytest.mark.parametrize("left", [False, True])
def test_columns_are_counted_from_the_end_of_base_and_source(left: bool) -> None:
    """Rows of 3 and 5 tokens from sources of 4 and 2: never outside either."""
    module = made(PARTS, small_gpt2(), w_strict=1.0)
    batch = taken(first(module, booleans()), torch.tensor([0, 1]))
    batch = replace(batch, base=padded([3, 5], left), sources=(padded([4, 2], left),))
    (site,) = module.strict_sites
    pads = ((2, 0), (0, 2)) if left else ((0, 0), (0, 0))  # on the left of the bases, of the sources
    drawn: list[set[int]] = [set(), set()]
    for step in range(40):
        into, out_of, there = columns_at(batch, site, step)
        assert there.all()
        for row, (base, source) in enumerate(((3, 4), (5, 2))):
            back = base - 1 - (int(into[row, 0]) - pads[0][row])
            assert back == source - 1 - (int(out_of[row, 0]) - pads[1][row])
            drawn[row].add(back)
    assert drawn == [{0, 1, 2}, {0, 1}]
    into, out_of, there = columns_at(batch, replace(site, every=True), 0)
    assert there.tolist() == [[True, True, True], [True, True, False]]
    at_right = ([[2, 1, 0], [4, 3]], [[3, 2, 1], [1, 0]])
    at_left = ([[4, 3, 2], [4, 3]], [[3, 2, 1], [3, 2]])
    for columns, wanted in zip((into, out_of), at_left if left else at_right, strict=True):
        assert [columns[row][there[row]].tolist() for row in range(2)] == wanted


# --- what a site beside is ---


def test_sites_beside_are_whole_and_one_for_each_component_and_side() -> None:
    alignment = {
        "ab": at("mlp_output", 1, position=[0, 1], joint=True),
        "cd": at("attention_output", 1),
    }
    module = made(alignment, small_gpt2(), w_strict=1.0)
    module.configure_model()
    assert [(site.name, site.aligned) for site in module.strict_sites] == [
        ("layer_1_mlp_output", (0,)),
        ("layer_1_attention_output", (1,)),
    ]
    assert [site.location.joined for site in module.strict_sites] == [0, 0]  # any one position of a row
    assert fitted(module, booleans()).trainer.global_step == 4
    sides = {
        "ab": {"module": "transformer.h.1.mlp", "side": "input", "intervention": WHOLE},
        "cd": {"module": "transformer.h.1.mlp", "side": "output", "intervention": WHOLE},
    }
    module = made(sides, small_gpt2(), w_strict=1.0)
    module.configure_model()
    assert [site.aligned for site in module.strict_sites] == [(0,), (1,)]


def test_beside_a_whole_head_are_the_other_heads() -> None:
    one = {"ab": at("head_attention_value_output", 1, head=1, position="all")}
    assert fitted(made(one, small_gpt2(), w_strict=1.0), booleans()).trainer.global_step == 4
    both = {"ab": at("head_attention_value_output", 1, position="all")}
    with pytest.raises(IITKitError, match="stands outside the alignment"):
        fitted(made(both, small_gpt2(), w_strict=1.0), booleans())


def test_coordinates_that_are_more_than_the_width_are_no_orthogonal_directions() -> None:
    """Eight features of a dictionary take up less than eight dimensions may say."""
    module = made({"left_equal": {"layer": 1, "intervention": {"rank": 7}}}, w_strict=1.0)
    batch = first(module, equality())
    (site,) = module.strict_sites
    locations = list(module.locations.values())
    assert all_aligned(site, module.edits, locations, batch)
    wide = Intervention(Identity(SiteInfo(width=40)), Indices(40, 8), Swap())
    assert not all_aligned(site, [wide], locations, batch)


# --- answers ---


def test_answers_compete_among_those_that_there_are() -> None:
    module = made()
    batch = taken(first(module, equality()), torch.tensor([0, 1]))
    candidates = torch.tensor([[[1], [2], [IGNORED]], [[3], [1], [0]]])
    logits = torch.tensor([[[9.0, 2.0, 1.0, 0.0]], [[0.0, 1.0, 9.0, 3.0]]])
    batch = replace(batch, candidates=candidates, base_label=torch.tensor([0, 0]), label=torch.tensor([1, 2]))
    assert says(logits, batch, torch.tensor([[1], [3]])).tolist() == [True, True]
    batch = replace(batch, base_label=torch.tensor([1, 2]))
    assert says(logits, batch, torch.tensor([[2], [0]])).tolist() == [False, False]


def test_the_base_s_own_label_is_its_first_form() -> None:
    module = made()
    batch = taken(first(module, equality()), torch.tensor([0, 1]))
    candidates = torch.tensor([[[1, 2], [3, IGNORED], [4, 5], [6, 7]], [[1, IGNORED], [2, 8], [3, 9], [4, IGNORED]]])
    of = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 2]])
    batch = replace(batch, candidates=candidates, base_label=torch.tensor([2, 1]), answer_of=of)
    assert base_labels(batch).tolist() == [[6, 7], [3, 9]]
    batch = replace(batch, base_label=torch.tensor([1, 0]))
    assert base_labels(batch).tolist() == [[3], [1]]
