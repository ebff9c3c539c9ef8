"""Placements of one value: exactly the pairs whose source has it are edited, and no vector learns from another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from byhand import logits_of, module_of, relative
from training import batch_of, bound, fitted, pairs

from iitkit.causal import CausalModel
from iitkit.data import CounterfactualDataModule, Dataset
from iitkit.errors import IITKitError
from iitkit.models.runs import label_logits
from iitkit.modules import DAS
from iitkit.tasks import Task, words

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

GENDERS = {row["name"]: row["gender"] for row in words("names")}


def place(value: Any, **more: Any) -> dict[str, Any]:
    return {
        "layer": 1, "position": "name", "variable": "gender", "value": value, "intervention": {"name": "Addition"},
        **more,
    }  # fmt: skip


BOTH = {"he": place("male"), "she": place("female")}


def made(base: str, alignment: dict[str, Any] | None = None, **options: Any) -> DAS:
    return DAS(base, alignment or BOTH, **{"optimizer": lambda p: torch.optim.SGD(p, lr=1.0), **options})


def genders(data: CounterfactualDataModule, split: str = "train") -> list[str]:
    """The gender of each pair's source, by the name in its text."""
    pool = data.pools[split]
    found = []
    for row in data.pairs(split).sources[:, 0].tolist():
        (name,) = [name for name in GENDERS if f" {name} " in f" {pool.texts[row].text.replace(',', '')} "]
        found.append(GENDERS[name])
    return found


def test_a_placement_edits_the_pairs_whose_source_has_its_value(shallow_gpt2: str) -> None:
    alignment = {**BOTH, "both": {**place(None), "layer": 2}}
    data = pairs(eval_batch_size=64)
    bound(made(shallow_gpt2, alignment), data)
    for split in ("train", "test"):
        batch = next(iter(data.every_pair(split)))
        expected = [[gender == "male", gender == "female", True] for gender in genders(data, split)[: len(batch)]]
        assert len({tuple(row) for row in expected}) == 2
        assert batch.active.tolist() == expected


def test_a_vector_learns_from_its_own_pairs_alone(shallow_gpt2: str) -> None:
    data = pairs(batch_size=48)
    module = bound(made(shallow_gpt2), data)
    batch = batch_of(data)
    base: Any = module.base_model
    block = module_of(base, "gpt2", 1, "block_output")
    vectors = {name: torch.zeros(32, requires_grad=True) for name in BOTH}
    loss = torch.zeros(())
    for row, gender in enumerate(genders(data)):
        vector = vectors["he" if gender == "male" else "she"]
        ids = batch.base.ids[row][batch.base.mask[row].bool()].tolist()
        at = int(batch.base_positions[row, 0, 0] - batch.base.mask[row].argmax())
        logits = logits_of(base, ids, [(block, [at], lambda h, v=vector: h + v)])[-1]  # type: ignore[misc]
        loss = loss + F.cross_entropy(logits, batch.labels[row, 0]) / len(batch)
    loss.backward()
    fitted(trained := made(shallow_gpt2), pairs(batch_size=48))
    for name, vector in vectors.items():
        assert vector.grad is not None
        found = next(trained.intervention(name).parameters()).detach()
        assert relative(found, -vector.grad) <= 1e-4
        assert found.abs().max() > 1e-3
    assert relative(*(next(trained.intervention(name).parameters()).detach() for name in BOTH)) > 0.1


@pytest.mark.parametrize("replay", ["auto", "off"])
def test_a_lora_for_each_value_learns_from_its_own_pairs_alone(shallow_gpt2: str, replay: Any) -> None:
    """By hand: α/r · (x A) B with α = 8, r = 2 at an MLP's output, a step from B = 0, in which A stays."""
    lora = {"intervention": {"name": "LoRA", "rank": 2}, "component": "mlp_output"}
    alignment = {name: {**placed, **lora} for name, placed in BOTH.items()}
    data = pairs(batch_size=48)
    module = bound(made(shallow_gpt2, alignment), data)
    batch = batch_of(data)
    base: Any = module.base_model
    inner = base.transformer.h[1].mlp
    a = {name: module.intervention(name).edit.A.detach().clone() for name in BOTH}  # type: ignore[attr-defined]
    b = {name: torch.zeros(2, 32, requires_grad=True) for name in BOTH}
    loss = torch.zeros(())
    for row, gender in enumerate(genders(data)):
        which = "he" if gender == "male" else "she"
        ids = batch.base.ids[row][batch.base.mask[row].bool()].tolist()
        at = int(batch.base_positions[row, 0, 0] - batch.base.mask[row].argmax())

        def hook(_: Any, inputs: Any, output: Any, at: int = at, which: str = which) -> Any:
            moved = torch.zeros_like(output)
            moved[0, at] = 4 * (inputs[0][0, at] @ a[which]) @ b[which]
            return output + moved

        handle = inner.register_forward_hook(hook)
        loss = loss + F.cross_entropy(logits_of(base, ids)[-1], batch.labels[row, 0]) / len(batch)
        handle.remove()
    loss.backward()
    fitted(trained := made(shallow_gpt2, alignment, replay=replay), pairs(batch_size=48))
    for name in BOTH:
        edit: Any = trained.intervention(name).edit
        gradient = b[name].grad
        assert gradient is not None
        assert relative(edit.B.detach(), -gradient) <= 1e-4
        assert gradient.abs().max() > 1e-3
        assert torch.equal(edit.A.detach(), a[name])


def test_other_pairs_are_left_as_they_are(shallow_gpt2: str) -> None:
    data = pairs(batch_size=48)
    module = bound(made(shallow_gpt2), data)
    with torch.no_grad():
        next(module.intervention("he").parameters())[:16] = 4.0  # the other vector is still 0
        batch = batch_of(data)
        prepared = module.runner.prepare(batch)
        edited, plain = (label_logits(prepared, edits, batch.labels)[:, 0] for edits in (module.edits, None))
    moved = (edited - plain).abs().amax(1) > 1e-2
    assert moved.tolist() == [gender == "male" for gender in genders(data)]


def test_isolating_edits_the_other_variable_s_own_value(shallow_gpt2: str) -> None:
    alignment = {**BOTH, "word": {"layer": 1, "position": "last", "variable": "pronoun", "intervention": {"rank": 1}}}
    data = pairs(batch_size=48)
    bound(made(shallow_gpt2, alignment, objective="mdas"), data)
    batch = batch_of(data)
    found = [[gender == "male", gender == "female", True] for gender in genders(data)]
    variables = data.pairs("train").variables[:, 0].tolist()
    assert set(variables) == {0, 1}
    for row, (values, variable) in enumerate(zip(found, variables, strict=True)):
        of_variable = [values[0], values[1], False] if variable == 0 else [False, False, True]
        of_other = [False, False, True] if variable == 0 else [values[0], values[1], False]
        assert batch.active[row].tolist() == of_variable
        assert batch.isolate_active is not None
        assert batch.isolate_active[row].tolist() == of_other


class Sign(Task):
    """Values that are no texts."""

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="The {thing} is", output="said")
        model.variables(thing=["door", "wall", "sun", "sea", "fire", "ice", "dog", "park", "boy"])

        @model.mechanism
        def hot(thing: str) -> bool:
            return thing in ("sun", "fire", "dog", "boy")

        @model.mechanism
        def said(hot: bool) -> str:
            return " late" if hot else " happy"

        return model


@pytest.mark.parametrize("values", [(True, False), ("True", "False")])
def test_values_are_found_as_they_are_or_by_their_text(shallow_gpt2: str, values: tuple[Any, Any]) -> None:
    alignment = {
        name: {**place(value), "variable": "hot", "position": "last"}
        for name, value in zip(("hot", "cold"), values, strict=True)
    }
    data = pairs(Sign(), batch_size=16, sizes={"test_templates": 0})
    bound(made(shallow_gpt2, alignment), data)
    batch = batch_of(data)
    sources = [data.pools["train"].texts[row].text.split()[1] for row in data.pairs("train").sources[:16, 0].tolist()]
    assert batch.active[:, 0].tolist() == [thing in ("sun", "fire", "dog", "boy") for thing in sources]
    assert torch.equal(batch.active[:, 0], ~batch.active[:, 1])


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        ({"he": place("mail")}, r"alignment\.he: value 'mail': 'gender' has no such value\. Did you mean 'male'\?"),
        ({"he": place("male")}, "'gender' takes the value 'female' too, and he are of others: place one for each"),
        ({"he": place(1), "she": place("female")}, r"value 1: 'gender' has no such value.* It has 'female', 'male'"),
    ],
)
def test_values_that_cannot_be_are_refused(shallow_gpt2: str, alignment: dict[str, Any], expected: str) -> None:
    with pytest.raises(IITKitError, match=expected):
        bound(made(shallow_gpt2, alignment), pairs())


def test_values_and_stages_are_refused(shallow_gpt2: str) -> None:
    with pytest.raises(IITKitError, match=r"alignment\.he: value and model\.stages do not go together"):
        bound(made(shallow_gpt2, BOTH, stages=[["he"], ["she"]]), pairs())


def rows(said: bool) -> list[dict[str, Any]]:
    names = [("Mary", "female"), ("John", "male"), ("Anna", "female"), ("Tom", "male"), ("Alice", "female")]
    found = []
    for base, of_base in names:
        for source, of_source in names:
            row: dict[str, Any] = {"base": f"Today, {base} was", "source": f"Today, {source} was", "variable": "gender"}
            word = {"female": " she", "male": " he"}
            row |= {"label": word[of_source], "base_label": word[of_base], "candidates": [" he", " she"]}
            if said:
                row |= {"base_values": {"gender": of_base}, "source_values": {"gender": of_source}}
            found.append(row)
    return found


def test_recorded_pairs_say_the_values_themselves(shallow_gpt2: str, tmp_path: Path) -> None:
    for said in (True, False):
        folder = tmp_path / str(said)
        folder.mkdir()
        for split in ("train", "validation", "test"):
            lines = [json.dumps(row).replace("Today", f"{split} today") for row in rows(said)]
            (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        data = CounterfactualDataModule(dataset=Dataset(str(folder)), batch_size=25, seed=0)
        alignment = {name: {**each, "position": "last"} for name, each in BOTH.items()}
        module = made(shallow_gpt2, alignment)
        if said:
            bound(module, data)
            batch = batch_of(data)
            assert batch.active[:, 0].tolist() == [row["label"] == " he" for row in rows(True)]
            assert torch.equal(batch.active[:, 1], ~batch.active[:, 0])
        else:
            with pytest.raises(IITKitError, match=r"does not say what 'gender' is .* add columns base_values and"):
                bound(module, data)
