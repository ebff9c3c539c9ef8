"""What ``iitkit fit`` stores of each variable's values: means over hand-placed hooks, prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import activation, relative
from running import iitkit, metrics
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from iitkit import load
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.hub import Artifact, Values
from iitkit.modules import DAS
from iitkit.tasks import PronounGender, words

CONFIG = """\
seed_everything: 0
model:
  class_path: DAS
  init_args:
    base: {base}
    alignment:
      early: {{layer: 1, position: name, variable: gender, intervention: {{rank: 3}}}}
      two: {{layer: 2, position: [0, name, last], variable: gender, intervention: {{rank: 2}}}}
      joint: {{layer: 2, position: [0, -1], joint: true, variable: gender, intervention: {{rank: 3}}}}
      heads: {{layer: 3, component: head_attention_value_output, variable: gender, intervention: {{rank: 2}}}}
      gender: {{layer: 3, intervention: {{class_path: Vanilla}}}}
      constant: {{layer: 3, position: 0, variable: gender, intervention: {{class_path: Zero}}}}
      name: {{layer: 2, position: name, intervention: {{rank: 1}}}}
    replay: {replay}
data:
  class_path: CounterfactualDataModule
  init_args:
    task: {{class_path: PronounGender}}
    sizes: {{train: 48, validation: 16, test: 16, test_templates: 0}}
    batch_size: 8
    padding: {padding}
trainer: {{max_epochs: 1, default_root_dir: {root}, enable_progress_bar: false}}
"""
GENDER = {row["name"]: row["gender"] for row in words("names")}


@pytest.fixture(scope="module")
def sources(shallow_gpt2: str) -> list[str]:
    """The distinct prompts that are sources of training pairs."""
    module = DAS(shallow_gpt2, {name: {"layer": 3} for name in ("gender", "name")})  # type: ignore[arg-type]
    sizes = Sizes(train=48, validation=16, test=16, test_templates=0)
    data = CounterfactualDataModule(PronounGender(), sizes, batch_size=8, seed=0)
    data.bind(module, model=False)
    texts = data.pools["train"].texts
    return [texts[row].text for row in np.unique(data.pairs("train", 0).sources).tolist()]


@pytest.fixture(scope="module", params=[("auto", "right"), ("layers", "left"), ("off", "left")], ids=str)
def fitted(request: pytest.FixtureRequest, shallow_gpt2: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    replay, padding = request.param
    folder = tmp_path_factory.mktemp("run")
    text = CONFIG.format(base=shallow_gpt2, replay=f"'{replay}'", padding=padding, root=folder)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    ran = iitkit("fit", "--config", folder / "config.yaml")
    assert ran.code == 0, ran.err
    return load(folder)


def by_hand(base: str, texts: Sequence[str], bases: Mapping[str, Tensor]) -> dict[str, dict[str, list[Tensor]]]:
    """Each placement's source vectors [positions, (heads,) k], by gender, from hooks on unpadded prompts."""
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    blocks: Sequence[nn.Module] = model.transformer.h
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in ("early", "two", "joint", "heads", "gender")}
    for text in texts:
        name = next(name for name in GENDER if f" {name} " in text)
        gender = GENDER[name]
        encoded = tokenizer(text, return_offsets_mapping=True)
        end = text.index(f" {name} ") + 1 + len(name)
        at = next(i for i, (_, stop) in enumerate(encoded["offset_mapping"]) if stop >= end)
        ids = encoded["input_ids"]
        first, second, third = (activation(model, ids, blocks[i]) for i in (1, 2, 3))
        seen: list[Tensor] = []
        handle = model.transformer.h[3].attn.c_proj.register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0]))
        model(torch.tensor([ids]))
        handle.remove()
        for placement, vectors in {
            "early": first[at][None] @ bases["early"],
            "two": second[[0, at, len(ids) - 1]] @ bases["two"],
            "joint": torch.cat([second[0], second[-1]])[None] @ bases["joint"],
            "heads": seen[0][0, -1].view(1, 4, 8) @ bases["heads"],
            "gender": third[-1][None],
        }.items():
            found[placement].setdefault(gender, []).append(vectors.detach())
    return found


def test_means_are_those_of_hooks_by_hand(fitted: Artifact, sources: list[str], shallow_gpt2: str) -> None:
    bases = {
        name: edit.space.basis
        for name, edit in fitted.interventions.items()
        if name in ("early", "two", "joint", "heads")
    }
    expected = by_hand(shallow_gpt2, sources, bases)  # type: ignore[arg-type]
    assert set(fitted.values) == set(expected)  # nothing of what takes no source, nor of a variable of many values
    for placement, by_gender in expected.items():
        values = fitted.values[placement]
        assert values.names == ("female", "male")
        assert values.counts == tuple(len(by_gender[gender]) for gender in values.names)
        assert values.features.dtype == torch.float32
        means = [torch.stack([v.mean(0) for v in by_gender[gender]]).mean(0) for gender in values.names]
        assert relative(values.features, torch.stack(means)) <= 1e-5, placement
        assert relative(means[0], means[1]) > 1e-3
        norms = [vectors.norm(dim=-1).max() for of_gender in by_gender.values() for vectors in of_gender]
        assert fitted.config["placements"][placement]["largest"] == pytest.approx(float(max(norms)), rel=1e-5)
    assert tuple(fitted.values["heads"].features.shape) == (2, 4, 2)
    assert "largest" not in fitted.config["placements"]["constant"]
    assert fitted.config["placements"]["name"]["largest"] > 0


RECORDED = """\
seed_everything: 0
model:
  class_path: DAS
  init_args:
    base: {base}
    alignment: {{gender: {{layer: 2, position: last, intervention: {{rank: 2}}}}}}
data:
  class_path: CounterfactualDataModule
  init_args: {{dataset: {{path: {path}}}, sizes: {{train: 12, validation: 4, test: 4}}, batch_size: 4}}
trainer: {{max_epochs: 1, default_root_dir: {root}, enable_progress_bar: false}}
"""


NAMES = ["Anna", "Paul", "Maria", "John", "Julia", "Peter"]


def recorded(folder: Path, base: str, values: Mapping[str, Any]) -> Artifact:
    """An artifact of a fit to recorded pairs of the names; ``values`` says what is known of each."""
    said = {"Anna": " she", "Maria": " she", "Julia": " she"}
    for split, n in (("train", 12), ("validation", 4), ("test", 4)):
        rows = []
        for i in range(n):
            one, other = NAMES[i % 6], NAMES[(i // 6 + 1 + i) % 6]
            row: dict[str, Any] = {"base": f"{split} {one} is", "source": f"{split} {other} is"}
            row |= {"label": said.get(other, " he"), "base_label": said.get(one, " he")}
            if other in values:
                row["source_values"] = {"gender": values[other]}
            rows.append(row)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = folder / "config.yaml"
    config.write_text(RECORDED.format(base=base, path=folder, root=folder / "run"), encoding="utf-8")
    ran = iitkit("fit", "--config", config)
    assert ran.code == 0, ran.err
    assert metrics(folder / "run")["test/n"] == 4
    return load(folder / "run")


def last_states(base: str, artifact: Artifact) -> dict[str, Tensor]:
    """The coordinates of each name's training prompt at its last token, by hand."""
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    basis: Any = artifact.interventions["gender"].space.basis
    ids = {name: tokenizer(f"train {name} is")["input_ids"] for name in NAMES}
    return {name: (activation(model, ids[name], model.transformer.h[2])[-1] @ basis).detach() for name in NAMES}


def check_values(artifact: Artifact, base: str, expected: Mapping[Any, Sequence[str]]) -> None:
    states, values = last_states(base, artifact), artifact.values["gender"]
    assert list(values.names) == list(expected)
    assert [type(name) for name in values.names] == [type(name) for name in expected]
    assert values.counts == tuple(map(len, expected.values()))
    means = torch.stack([torch.stack([states[name] for name in names]).mean(0) for names in expected.values()])
    assert relative(values.features, means) <= 1e-5


def test_recorded_values_are_those_in_the_file(tmp_path: Path, shallow_gpt2: str) -> None:
    female = {"Anna": True, "Maria": True, "Julia": True, "Paul": False, "John": False, "Peter": False}
    found = recorded(tmp_path, shallow_gpt2, female)
    # in the order of the file's prompts, whose first is a base of Anna's
    check_values(found, shallow_gpt2, {True: ["Anna", "Maria", "Julia"], False: ["Paul", "John", "Peter"]})


def test_prompts_of_no_known_value_are_left_out(tmp_path: Path, shallow_gpt2: str) -> None:
    said = {"Anna": 1, "Paul": 2.5, "Maria": [1, [2, "x"]], "John": None, "Julia": {"no": "value"}, "Peter": 1}
    found = recorded(tmp_path, shallow_gpt2, said)
    check_values(found, shallow_gpt2, {1: ["Anna", "Peter"], 2.5: ["Paul"], "(1, (2, 'x'))": ["Maria"]})


def test_nothing_is_stored_where_nothing_is_known(tmp_path: Path, shallow_gpt2: str) -> None:
    found = recorded(tmp_path, shallow_gpt2, {})
    assert found.values == {}
    norms = [float(state.norm()) for state in last_states(shallow_gpt2, found).values()]
    assert found.config["placements"]["gender"]["largest"] == pytest.approx(max(norms), rel=1e-5)


def test_a_prompt_that_has_two_values_has_none(tmp_path: Path, shallow_gpt2: str) -> None:
    from iitkit.data.known import said_values
    from iitkit.data.recorded import Recorded

    rows = [
        {"base": "a", "source": "b", "label": " x", "base_label": " y", "source_values": {"v": 1, "w": True}},
        {"base": "b", "source": "a", "label": " y", "base_label": " x", "base_values": '{"v": 2, "w": true}'},
    ]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = Recorded(str(tmp_path))
    assert (said_values(source, "v"), said_values(source, "w"), said_values(source, "z")) == ({}, {"b": True}, {})


def test_many_values_are_not_stored() -> None:
    assert "name" not in GENDER  # the words of the variable that has too many
    assert len(GENDER) > 64
    with pytest.raises(ValueError, match="up to 64 values"):
        Values.stored([{"value": i, "n": 1} for i in range(65)], torch.zeros(65, 1), 1, 1)


def test_a_placement_of_one_value_tells_the_answer_that_it_leads_to(tmp_path: Path, shallow_gpt2: str) -> None:
    """So that steering finds it by the answer; the name leads to no one answer."""
    where = "{{layer: 2, position: name, variable: gender, value: {}, intervention: {{class_path: Addition}}}}"
    lines = CONFIG.format(base=shallow_gpt2, replay="'auto'", padding="right", root=tmp_path / "run").splitlines()
    start, stop = lines.index("    alignment:") + 1, lines.index("    replay: 'auto'")
    lines[start:stop] = [f"      {value}: {where.format(value)}" for value in ("male", "female")]
    (tmp_path / "config.yaml").write_text("\n".join(lines), encoding="utf-8")
    ran = iitkit("fit", "--config", tmp_path / "config.yaml")
    assert ran.code == 0, ran.err
    placements = load(tmp_path / "run").config["placements"]
    assert {(where["value"], where["answer"]) for where in placements.values()} == {("male", " he"), ("female", " she")}
