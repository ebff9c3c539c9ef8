"""``Artifact.steer``: exactly the tokens said, set to exactly the features said, against hooks placed by hand."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from byhand import Edit, activation, gram_schmidt, hooks_of, logits_of, module_of, relative
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn

import iitkit
from iitkit.errors import IITKitError
from iitkit.hub import Artifact, Values, write_artifact
from iitkit.hub.identity import identity
from iitkit.hub.settings import index_of
from iitkit.interventions import (
    Addition,
    Intervention,
    LowRankSubspace,
    RotatedSubspace,
    SAEFeatures,
    SiteInfo,
    Vanilla,
)
from iitkit.interventions.steered import steered

WIDTH, LAYER, STEPS = 32, 2, 4
PROMPTS = ["Yesterday, Anna walked home because", "Paul was happy", "On Monday, Mary and Paul stayed late because"]
NAMES = ["Anna", "Paul", "Mary"]
FAMILIES = ("gpt2", "llama")
FEATURES = torch.randn(2, 2, generator=torch.Generator().manual_seed(5)) * 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def base_of(family: str) -> dict[str, Any]:
    return dict(identity(tiny_model(family), "user/model"))


def subspace(rank: int = 2) -> LowRankSubspace:
    return LowRankSubspace(SiteInfo(WIDTH, generator=torch.Generator().manual_seed(3)), rank=rank)


def artifact(folder: Path, family: str = "gpt2", position: Any = "name", **more: Any) -> Artifact:
    """A rank 2 artifact that knows the variable ``gender`` by its two values' features."""
    where = {"layer": LAYER, "component": "block_output", "position": position, "variable": "gender"}
    values = {"gender": Values(("female", "male"), FEATURES, (3, 4))}
    kept = {"values": values, "largest": {"gender": 2.5}, **more}
    write_artifact(
        folder, {"gender": subspace()}, {"gender": where}, base_of(family), {"gender": SiteInfo(WIDTH)}, **kept
    )
    return iitkit.load(folder)


def basis_of(folder: Path) -> Tensor:
    """The stored basis [d, r], read from the file."""
    return basis_of_named(folder, "gender")


def basis_of_named(folder: Path, name: str) -> Tensor:
    """A placement's stored basis."""
    return load_file(folder / "interventions.safetensors")[f"{name}.space.basis"]


def towards(basis: Tensor, coordinates: Tensor, strength: float = 1.0) -> Edit:
    """``h + strength · (c − hR)Rᵀ``."""
    return lambda h: h + strength * (coordinates - h @ basis) @ basis.T


def block(model: Any, family: str) -> nn.Module:
    return module_of(model, family, LAYER, "block_output")


def inputs(texts: Sequence[str] = PROMPTS, side: str = "left") -> dict[str, Tensor]:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    return dict(tokenizer(list(texts), return_tensors="pt", padding=True))


def tokens_of(text: str) -> list[int]:
    found: list[int] = tiny_tokenizer()(text)["input_ids"]
    return found


def name_at(text: str, name: str) -> list[int]:
    """The tokens of a name, by the tokenizer's own offsets."""
    offsets = tiny_tokenizer()(text, return_offsets_mapping=True)["offset_mapping"]
    start = text.index(name)
    return [i for i, (a, b) in enumerate(offsets) if a < start + len(name) and b > start]


Columns = Callable[[int, int], Sequence[int]]
"""Columns for (length of the prompt, length so far)."""


@torch.no_grad()
def by_hand(
    model: Any, text: str, edits: Sequence[tuple[nn.Module, Columns, Edit]], steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Greedy tokens and their logits [steps, V], the whole sequence run for each token."""
    tokens, logits = tokens_of(text), []
    prompt = len(tokens)
    for _ in range(steps):
        now = [(module, columns(prompt, len(tokens)), edit) for module, columns, edit in edits]
        logits.append(logits_of(model, tokens, now)[-1])
        tokens.append(int(logits[-1].argmax()))
    return torch.tensor(tokens[prompt:]), torch.stack(logits)


def generated(model: Any, given: Mapping[str, Tensor], **more: Any) -> tuple[Tensor, Tensor]:
    options = {"do_sample": False, "max_new_tokens": STEPS, "eos_token_id": 2999, "pad_token_id": 0, **more}
    out = model.generate(**given, return_dict_in_generate=True, output_logits=True, **options)
    steps = torch.stack(out.logits, 1)
    return out.sequences[:, -steps.shape[1] :], steps


def same(found: tuple[Tensor, Tensor], expected: Sequence[tuple[Tensor, Tensor]]) -> None:
    assert torch.equal(found[0], torch.stack([tokens for tokens, _ in expected]))
    for row, (_, steps) in zip(found[1], expected, strict=True):
        assert relative(row, steps) <= 1e-5


# --- to a value ---


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_sets_the_coordinates_at_the_name(family: str, use_cache: bool, tmp_path: Path) -> None:
    """Ragged, padded on the left; every row's own name is found in its own text."""
    model, found = tiny_model(family), artifact(tmp_path / "a", family)
    basis = basis_of(tmp_path / "a")
    expected = [
        by_hand(
            model,
            text,
            [(block(model, family), lambda p, n, t=text, who=name: name_at(t, who)[-1:], towards(basis, FEATURES[1]))],
        )
        for text, name in zip(PROMPTS, NAMES, strict=True)
    ]
    plain = generated(model, inputs())
    with found.steer(model, tiny_tokenizer(), {"gender": "male"}, spans={"name": NAMES}):
        steered = generated(model, inputs(), use_cache=use_cache)
    same(steered, expected)
    assert relative(steered[1], plain[1]) > 1e-3
    assert torch.equal(generated(model, inputs())[1], plain[1])


def test_each_row_its_own_value_and_none(tmp_path: Path) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    basis = basis_of(tmp_path / "a")
    last: Columns = lambda p, n: [p - 1]  # noqa: E731
    sets = [towards(basis, FEATURES[1]), None, towards(basis, FEATURES[0])]
    expected = [
        by_hand(model, text, [] if edit is None else [(block(model, "gpt2"), last, edit)])
        for text, edit in zip(PROMPTS, sets, strict=True)
    ]
    with found.steer(model, None, {"gender": ["male", None, "female"]}, where="last"):
        same(generated(model, inputs()), expected)
        beams = model.generate(
            **inputs(), num_beams=3, num_return_sequences=2, do_sample=False, max_new_tokens=3, eos_token_id=2999
        )
    for row, (text, edit) in enumerate(zip(PROMPTS, ["male", None, "female"], strict=True)):
        alone = found.steer(model, None, {"gender": [edit]}, where="last").attach() if edit else None
        single = model.generate(
            **inputs([text]), num_beams=3, num_return_sequences=2, do_sample=False, max_new_tokens=3, eos_token_id=2999
        )
        assert torch.equal(beams[2 * row : 2 * row + 2, -3:], single[:, -3:])
        if alone:
            alone.detach()
    with (
        found.steer(model, None, {"gender": ["male", "female"]}, where="last"),
        pytest.raises(IITKitError, match="has 2 rows, the batch 3"),
    ):
        generated(model, inputs())


WHERE: list[tuple[Any, Any, Columns]] = [
    ("prompt", None, lambda p, n: range(p)),
    ("generated", None, lambda p, n: range(p, n)),
    ("all", None, lambda p, n: range(n)),
    ("last", None, lambda p, n: [p - 1]),
    (0, None, lambda p, n: [0]),
    ("f1+l2", None, lambda p, n: [0, p - 2, p - 1]),
    ("f7+l7", None, lambda p, n: sorted({*range(min(7, p)), *range(max(0, p - 7), p)})),
    ([1, "last"], None, lambda p, n: [1, p - 1]),
    ("generated", (1, 3), lambda p, n: [i for i in range(p, n) if 1 <= i - p < 3]),
    ("generated", (2, None), lambda p, n: [i for i in range(p, n) if i - p >= 2]),
    ("all", (0, 1), lambda p, n: range(min(n, p + 1))),
]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("where", "steps", "columns"), WHERE)
def test_exactly_the_tokens_said(where: Any, steps: Any, columns: Columns, use_cache: bool, tmp_path: Path) -> None:
    model, found = tiny_model("llama"), artifact(tmp_path / "a", "llama")
    edit = towards(basis_of(tmp_path / "a"), FEATURES[0], 0.5)
    expected = [by_hand(model, text, [(block(model, "llama"), columns, edit)]) for text in PROMPTS]
    with found.steer(model, None, {"gender": "female"}, strength=0.5, where=where, steps=steps):
        same(generated(model, inputs(), use_cache=use_cache), expected)


@pytest.mark.parametrize(("part", "chosen"), [("name.first", slice(0, 1)), ("name.all", slice(None))])
def test_parts_of_a_span(part: str, chosen: slice, tmp_path: Path) -> None:
    """Also of names of several tokens, and by offsets."""
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    edit = towards(basis_of(tmp_path / "a"), FEATURES[0])
    names = ["Anna walked", "Paul was happy", "Monday, Mary"]
    expected = [
        by_hand(model, text, [(block(model, "gpt2"), lambda p, n, t=text, who=who: name_at(t, who)[chosen], edit)])
        for text, who in zip(PROMPTS, names, strict=True)
    ]
    assert max(len(name_at(text, who)) for text, who in zip(PROMPTS, names, strict=True)) >= 3
    offsets = [(t.index(who), t.index(who) + len(who)) for t, who in zip(PROMPTS, names, strict=True)]
    for spans in (names, offsets):
        with found.steer(model, tiny_tokenizer(), {"gender": "female"}, where=part, spans={"name": spans}):
            same(generated(model, inputs()), expected)


def test_spans_are_found_in_beams_in_chunks_and_between_bytes(tmp_path: Path) -> None:
    """Each beam has its example's span; a prompt may come in pieces; characters of several tokens are whole."""
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    edit = towards(basis_of(tmp_path / "a"), FEATURES[1])
    here = block(model, "gpt2")
    odd = "😀 Zoë🚀 was happy"
    texts, names = [*PROMPTS[:2], odd], ["Anna", "Paul", "Zoë🚀"]
    assert len(name_at(odd, names[2])) > len(names[2])  # bytes are tokens
    expected = [
        by_hand(model, text, [(here, lambda p, n, t=text, who=who: name_at(t, who)[-1:], edit)])
        for text, who in zip(texts, names, strict=True)
    ]
    with found.steer(model, tiny_tokenizer(), {"gender": "male"}, spans={"name": names}):
        same(generated(model, inputs(texts)), expected)
        same(generated(model, inputs(texts), prefill_chunk_size=3), expected)
        beams = generated(model, inputs(texts), num_beams=2, num_return_sequences=2)[0]
    for row, (text, name) in enumerate(zip(texts, names, strict=True)):
        with found.steer(model, tiny_tokenizer(), {"gender": "male"}, spans={"name": name}):
            alone = generated(model, inputs([text]), num_beams=2, num_return_sequences=2)[0]
        assert torch.equal(beams[2 * row : 2 * row + 2], alone)
    with pytest.raises(IITKitError, match="no tokenizer was given"):
        found.steer(model, None, {"gender": "male"}, spans={"name": "Anna"})
    embedded = model.get_input_embeddings()(inputs(texts[:1])["input_ids"])
    steering = found.steer(model, tiny_tokenizer(), {"gender": "male"}, spans={"name": "Anna"})
    with steering, pytest.raises(IITKitError, match="given no tokens of the whole prompt"):
        generated(model, {"inputs_embeds": embedded})


def test_placements_trained_for_one_value_each_are_chosen_by_it(tmp_path: Path) -> None:
    """Sourceless edits fitted per target value: setting the variable picks the one that was trained for it."""
    model = tiny_model("gpt2")
    vectors = {"female": random(WIDTH, seed=21), "male": random(WIDTH, seed=22)}
    edits, where = {}, {}
    for value, vector in vectors.items():
        edits[value] = Addition(SiteInfo(WIDTH))
        with torch.no_grad():
            edits[value].edit.get_parameter("vector").copy_(vector)
        place = {"layer": LAYER, "component": "block_output", "position": "last", "variable": "gender"}
        where[value] = {**place, "value": value, "answer": {"female": " she", "male": " he"}[value]}
    sizes = dict.fromkeys(vectors, SiteInfo(WIDTH))
    write_artifact(tmp_path / "a", edits, where, base_of("gpt2"), sizes)
    found = iitkit.load(tmp_path / "a")
    here = block(model, "gpt2")
    chosen = ["male", "female", None]
    expected = [
        by_hand(model, text, [] if v is None else [(here, lambda p, n: [p - 1], lambda h, v=v: h + vectors[v])])
        for text, v in zip(PROMPTS, chosen, strict=True)
    ]
    with found.steer(model, None, {"gender": chosen}):
        same(generated(model, inputs()), expected)
    for named in ("male", "he"):
        with found.steer(model, None, {"gender": named}):
            same(generated(model, inputs(PROMPTS[:1])), expected[:1])
    for settings, message in (
        (None, "nothing is set: give a value of gender"),
        ({"gender": "mael"}, "variable 'gender' has no value 'mael'. Did you mean 'male'"),
        ({"gender": ["male", 1]}, "variable 'gender' has no value 1"),
        ({"gender": random(WIDTH)}, "take no vector"),
    ):
        with pytest.raises(IITKitError, match=message):
            found.steer(model, None, settings)


@pytest.mark.parametrize(
    ("names", "answers", "given", "expected"),
    [
        (("a", "b"), None, "b", 1),
        (("a", "b"), None, " b ", 1),
        ((True, False), None, False, 1),
        ((True, False), None, "False", 1),
        ((True, False), None, "false", 1),
        ((True, False), None, "true", 0),
        ((False, True, 1, "1", 0), None, True, 1),
        ((False, True, 1, "1", 0), None, 1, 2),
        ((False, True, 1, "1", 0), None, "1", 3),
        ((False, True, 1, "1", 0), None, 0, 4),
        ((1, 2, 10), None, "2", 1),
        ((1, 2, 10), None, 2.0, 1),
        ((1, 2, 10), None, "2.0", 1),
        ((1, 2, 10), None, "02", 1),
        ((0.5, 2.0), None, ".50", 0),
        ((0.5, 2.0), None, 2, 1),
        (("1", "2"), None, 2, 1),
        (("f", "m"), [" she", " he"], "he", 1),
        (("he", "she"), [" she", " he"], "he", 0),  # a value comes before an answer
        (("1", "2"), [" 02", " 1"], "02", 0),  # an answer before a number
    ],
)
def test_values_as_themselves_as_text_and_by_their_answer(
    names: tuple[Any, ...], answers: list[str | None] | None, given: Any, expected: int
) -> None:
    values = Values(names, torch.zeros(len(names), 2), (1,) * len(names))
    where = {"variable": "x"} | ({} if answers is None else {"answers": answers})
    assert index_of(values, given, where) == expected


@pytest.mark.parametrize(
    ("names", "answers", "given"),
    [
        ((1, 2), None, True),
        ((True, False), None, 1),
        ((True, False), None, "1"),
        ((True, False), None, 1.0),
        ((1, "1"), None, 1.0),  # either
        ((1, "1"), None, " 1"),
        (("f", "m", "n"), [" she", " he", " he"], "he"),
        (("f", "m"), [" she", None], "None"),
        ((1, 2), None, "nan"),
        ((1, 2), None, None),
        (("a", "b"), None, ""),
        (("a", "b"), None, torch.zeros(())),
    ],
)
def test_values_that_are_none_or_several(names: tuple[Any, ...], answers: Any, given: Any) -> None:
    values = Values(names, torch.zeros(len(names), 2), (1,) * len(names))
    where = {"variable": "x"} | ({} if answers is None else {"answers": answers})
    with pytest.raises(IITKitError, match="variable 'x' has no value"):
        index_of(values, given, where)


def test_what_was_given_may_change_afterwards(tmp_path: Path) -> None:
    """Nothing of the caller's is kept or changed, and nothing of the artifact is."""
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    vector, names = random(WIDTH, seed=3), list(NAMES)
    values: list[str | None] = ["male", None, "female"]
    kept = vector.clone(), deepcopy(found.config), found.interventions["gender"].state_dict()
    tensors = {name: tensor.clone() for name, tensor in kept[2].items()}
    for setting in (vector, values):
        steering = found.steer(model, tiny_tokenizer(), {"gender": setting}, spans={"name": names})
        with steering:
            first = generated(model, inputs())[1]
        assert torch.equal(vector, kept[0])
        assert (names, values) == (list(NAMES), ["male", None, "female"])
        vector.zero_()
        names[:], values[:] = ["Eve"] * 3, ["female"] * 3
        with steering:
            assert torch.equal(generated(model, inputs())[1], first)
        names[:], values[:] = NAMES, ["male", None, "female"]
        vector.copy_(kept[0])
    assert found.config == kept[1]
    assert all(torch.equal(kept[2][name], tensor) for name, tensor in tensors.items())
    assert torch.equal(found.values["gender"].features, FEATURES)


def test_a_prompt_without_the_span_is_left_alone(tmp_path: Path) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a", position=["name", "last"])
    edit = towards(basis_of(tmp_path / "a"), FEATURES[1])
    here = block(model, "gpt2")
    expected = [
        by_hand(model, PROMPTS[0], [(here, lambda p, n: [name_at(PROMPTS[0], "Anna")[-1], p - 1], edit)]),
        by_hand(model, PROMPTS[1], [(here, lambda p, n: [p - 1], edit)]),
    ]
    spans = {"name": ["Anna", None]}
    with found.steer(model, tiny_tokenizer(), {"gender": "male"}, spans=spans):
        same(generated(model, inputs(PROMPTS[:2])), expected)
    plain = generated(model, inputs(PROMPTS[:2]))
    with found.steer(model, tiny_tokenizer(), {"gender": "male"}, spans=spans, where="name"):
        steered = generated(model, inputs(PROMPTS[:2]))
    assert torch.equal(steered[1][1], plain[1][1])
    assert relative(steered[1][0], plain[1][0]) > 1e-3


@pytest.mark.parametrize("unit", ["norm", "largest"])
def test_a_strength_may_be_a_length(unit: Any, tmp_path: Path) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    basis = basis_of(tmp_path / "a")

    def edit(h: Tensor) -> Tensor:
        step = (FEATURES[1] - h @ basis) @ basis.T
        return h + 0.7 * (h.norm() if unit == "norm" else 2.5) * step / step.norm()

    expected = [by_hand(model, text, [(block(model, "gpt2"), lambda p, n: [p - 1], edit)]) for text in PROMPTS]
    with found.steer(model, None, {"gender": "male"}, strength=0.7, unit=unit, where="last"):
        same(generated(model, inputs()), expected)


@pytest.mark.parametrize("unit", ["norm", "largest"])
@pytest.mark.parametrize("size", [1e-3, 1e-30])
def test_the_direction_of_a_short_edit_is_kept(unit: Any, size: float) -> None:
    """A vector far shorter than what it is added to gets the length that is asked for, in its own direction."""
    vector = random(WIDTH, seed=1) * size
    added = Addition(SiteInfo(WIDTH)).requires_grad_(False)
    added.edit.get_parameter("vector").copy_(vector)
    h = random(4, WIDTH, seed=2) * 1000
    if size < 1e-3:  # an edit that is nothing beside the activation is rounding
        h = h * size
    length = 2.5 if unit == "largest" else h.double().norm(dim=-1, keepdim=True)
    expected = h.double() + length * vector.double() / vector.double().norm()
    found = steered(added, unit, 2.5)(h)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6 * float(h.abs().max()))


def test_rounding_is_no_direction(tmp_path: Path) -> None:
    """An activation that is where it should be already has no way to go, and is not thrown about by rounding."""
    artifact(tmp_path / "a")
    found = iitkit.load(tmp_path / "a").interventions["gender"]
    h, features = random(64, WIDTH, seed=2) * 10, FEATURES[1].expand(64, 2)
    there = steered(found, by_coordinates=True)(h, features)
    for unit in ("norm", "largest"):
        again = steered(found, unit, 2.5, by_coordinates=True)(there, features)  # type: ignore[arg-type]
        assert torch.equal(again, there)
    zero = Addition(SiteInfo(WIDTH)).requires_grad_(False)
    assert torch.equal(steered(zero, "norm")(h), h)
    owned = {id(part) for part in steered(zero).modules()}
    assert not owned & {id(part) for part in zero.modules()}  # it may go to another device
    assert torch.equal(steered(zero, "norm")(torch.zeros(2, WIDTH)), torch.zeros(2, WIDTH))


@pytest.mark.parametrize("where", ["prompt", "generated", "all"])
def test_an_artifact_edits_the_tokens_that_it_was_trained_to(where: str, tmp_path: Path) -> None:
    """ReFT may train edits of generated tokens: ``where`` in config.json."""
    model, vector = tiny_model("gpt2"), random(WIDTH, seed=8)
    added = Addition(SiteInfo(WIDTH))
    with torch.no_grad():
        added.edit.get_parameter("vector").copy_(vector)
    place = {"layer": LAYER, "component": "block_output", "position": "f1+l1", "variable": "x"}
    write_artifact(tmp_path / "a", {"x": added}, {"x": place}, base_of("gpt2"), {"x": SiteInfo(WIDTH)}, where=where)

    def columns(p: int, n: int) -> list[int]:
        return [i for i in range(n) if (i in (0, p - 1) and where != "generated") or (i >= p and where != "prompt")]

    here = block(model, "gpt2")
    expected = [by_hand(model, text, [(here, columns, lambda h: h + vector)]) for text in PROMPTS]
    with iitkit.load(tmp_path / "a").steer(model):
        same(generated(model, inputs()), expected)


# --- to a source, to a vector ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_artifact_gives_the_logits_of_what_was_trained(dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit, with a free matrix before and its result after; from tokens and from their text."""
    untyped: Any = tiny_model("llama")
    model, tokenizer = untyped.to(dtype), tiny_tokenizer()
    info = SiteInfo(WIDTH, generator=torch.Generator().manual_seed(7))
    base, source = inputs(PROMPTS[:1]), inputs(PROMPTS[1:2])
    for i, trained in enumerate((LowRankSubspace(info, rank=3), RotatedSubspace(info, coordinates=5))):
        site = iitkit.Site(LAYER, position="last")
        with torch.no_grad():
            expected = iitkit.interchange(model, base, source, {"x": (site, trained)}).logits
            plain = model(**base).logits
        place = {"layer": LAYER, "component": "block_output", "position": "last", "variable": "x"}
        write_artifact(tmp_path / str(i), {"x": trained}, {"x": place}, base_of("llama"), {"x": SiteInfo(WIDTH)})
        found = iitkit.load(tmp_path / str(i))
        for given in (source, PROMPTS[1]):
            with torch.no_grad(), found.steer(model, tokenizer, source=given):
                assert torch.equal(model(**base).logits, expected)
        assert not torch.equal(expected, plain)


def test_a_source_text_gives_what_its_own_position_has(tmp_path: Path) -> None:
    """With the training prompts' prefix before it."""
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a", prefix="<|endoftext|>")
    basis = basis_of(tmp_path / "a")
    text = "<|endoftext|>This morning, Paul was happy"
    taken = activation(model, tokens_of(text), block(model, "gpt2"))[name_at(text, "Paul")[-1]]
    edit = towards(basis, taken @ basis)
    expected = [by_hand(model, text, [(block(model, "gpt2"), lambda p, n: [p - 1], edit)]) for text in PROMPTS]
    steering = found.steer(
        model, tiny_tokenizer(), source="This morning, Paul was happy", source_spans={"name": "Paul"}, where="last"
    )
    with steering:
        same(generated(model, inputs()), expected)
    with found.steer(model, None, {"gender": taken}, where="last"):
        same(generated(model, inputs()), expected)
    with found.steer(model, None, {"gender": taken.expand(3, -1)}, where="all", steps=(0, 1)):
        generated(model, inputs())


def test_all_takes_each_tokens_own_from_the_source(tmp_path: Path) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a", position="all")
    base, source = "Yesterday, Anna walked home", "Yesterday, Paul walked home"
    assert len(tokens_of(base)) == len(tokens_of(source))
    basis = basis_of(tmp_path / "a")
    taken = activation(model, tokens_of(source), block(model, "gpt2"))
    n = len(tokens_of(base))
    edits = [(block(model, "gpt2"), lambda p, _, i=i: [i], towards(basis, taken[i] @ basis)) for i in range(n)]
    expected = by_hand(model, base, edits)
    with found.steer(model, tiny_tokenizer(), source=source):
        same(generated(model, inputs([base])), [expected])
    with pytest.raises(IITKitError, match="leave where out"):
        found.steer(model, tiny_tokenizer(), source=source, where="last")


# --- other sites ---


def test_a_vector_for_each_head_is_added(tmp_path: Path) -> None:
    """Constant-source additions at attention_value_output: what the heads' outputs get before the output projection."""
    model, width = tiny_model("llama"), 8
    edit = Addition(SiteInfo(width, heads=2))
    vector = random(width, seed=4)
    with torch.no_grad():
        edit.edit.get_parameter("vector").copy_(vector)
    where = {
        "layer": LAYER,
        "component": "head_attention_value_output",
        "head": 1,
        "position": "all",
        "variable": "honest",
    }
    write_artifact(tmp_path / "a", {"honest": edit}, {"honest": where}, base_of("llama"), {"honest": SiteInfo(width)})
    found = iitkit.load(tmp_path / "a")
    project = model.get_submodule(f"model.layers.{LAYER}.self_attn.o_proj")
    added = torch.zeros(32)
    added[8:16] = 1.5 * vector
    moved = added @ project.weight.T  # the projection is linear
    expected = [by_hand(model, text, [(project, lambda p, n: range(n), lambda h: h + moved)]) for text in PROMPTS]
    with found.steer(model, strength=1.5, where="all"):
        same(generated(model, inputs()), expected)


def test_values_of_heads_and_of_joint_sites(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    tokens = inputs(PROMPTS[:1])
    features = random(2, 2, 8, seed=9)  # 2 values of 2 heads
    where = {"layer": 1, "component": "head_attention_value_output", "head": [0, 3], "position": "last"}
    write_artifact(
        tmp_path / "heads",
        {"x": Vanilla(SiteInfo(8, heads=2))},
        {"x": {**where, "variable": "x"}},
        base_of("gpt2"),
        {"x": SiteInfo(8, heads=2)},
        values={"x": Values((0, 1), features, (1, 1))},
    )
    before = "transformer.h.1.attn.c_proj"
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0][0, -1].clone())

    def seeing() -> None:
        handle = model.get_submodule(before).register_forward_pre_hook(look)  # after the edits' own
        model(**tokens)
        handle.remove()

    with torch.no_grad():
        seeing()
        with iitkit.load(tmp_path / "heads").steer(model, None, {"x": 1}):
            seeing()
    plain, steered = (each.unflatten(0, (4, 8)) for each in seen)
    assert torch.allclose(steered[[0, 3]], features[1], atol=1e-6)
    assert torch.equal(steered[[1, 2]], plain[[1, 2]])

    basis = gram_schmidt(random(64, 3, seed=2))
    joint = LowRankSubspace(SiteInfo(64, positions=2), rank=3)
    with torch.no_grad():
        joint.space.get_parameter("free").copy_(basis)
    coordinates = random(2, 3, seed=11)
    write_artifact(
        tmp_path / "joint",
        {"x": joint},
        {"x": {"layer": 1, "component": "block_output", "joint": True, "position": [0, "last"], "variable": "x"}},
        base_of("gpt2"),
        {"x": SiteInfo(64, positions=2)},
        values={"x": Values(("a", "b"), coordinates, (1, 1))},
    )
    outputs: list[Tensor] = []
    steering = iitkit.load(tmp_path / "joint").steer(model, None, {"x": "b"})
    with torch.no_grad(), steering:
        following = model.get_submodule("transformer.h.2").register_forward_pre_hook(
            lambda module, args: outputs.append(args[0].clone())
        )
        model(**inputs(PROMPTS))
    following.remove()
    rows = inputs(PROMPTS)["attention_mask"].argmax(1)
    for row, first in enumerate(rows.tolist()):
        both = torch.cat([outputs[0][row, first], outputs[0][row, -1]])
        assert torch.allclose(both @ basis, coordinates[1], atol=1e-5)


# --- on and off ---


def test_strength_0_detach_and_an_exception_leave_the_plain_model(tmp_path: Path) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    plain, hooks = generated(model, inputs())[1], hooks_of(model)
    with found.steer(model, None, {"gender": "male"}, where="last", strength=0):
        assert hooks_of(model) == hooks
        assert torch.equal(generated(model, inputs())[1], plain)
    steering = found.steer(model, None, {"gender": "male"}, where="last")
    assert torch.equal(generated(model, inputs())[1], plain)  # not attached yet
    assert not steering.attached
    assert steering.attach() is steering
    assert steering.attached
    changed = generated(model, inputs())[1]
    assert relative(changed, plain) > 1e-3
    with pytest.raises(IITKitError, match="attached already"):
        steering.attach()
    steering.detach()
    steering.detach()
    assert torch.equal(generated(model, inputs())[1], plain)
    with steering:  # again
        assert torch.equal(generated(model, inputs())[1], changed)

    def fails() -> None:
        with steering:
            generated(model, inputs())
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="user's"):
        fails()
    assert torch.equal(generated(model, inputs())[1], plain)
    assert hooks_of(model) == hooks
    assert "generate" not in vars(model)


def test_what_is_attached_stays_though_nobody_holds_it(tmp_path: Path) -> None:
    """As in a notebook: ``found.steer(…).attach()``, and the model is steered until it is detached."""
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    plain = generated(model, inputs())[1]
    with found.steer(model, None, {"gender": "male"}, where="last"):
        steered = generated(model, inputs())[1]
    held = weakref.ref(found.steer(model, None, {"gender": "male"}, where="last").attach())
    gc.collect()
    assert torch.equal(generated(model, inputs())[1], steered)
    attached = held()
    assert attached is not None
    attached.detach()
    assert torch.equal(generated(model, inputs())[1], plain)
    del attached
    gc.collect()
    assert held() is None


def test_several_artifacts_apply_in_the_order_attached(tmp_path: Path) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    basis = basis_of(tmp_path / "a")
    vector = random(WIDTH, seed=8)
    added = Addition(SiteInfo(WIDTH))
    with torch.no_grad():
        added.edit.get_parameter("vector").copy_(vector)
    where = {"layer": LAYER, "component": "block_output", "position": "last", "variable": "tone"}
    write_artifact(tmp_path / "b", {"tone": added}, {"tone": where}, base_of("gpt2"), {"tone": SiteInfo(WIDTH)})
    other = iitkit.load(tmp_path / "b")
    last: Columns = lambda p, n: [p - 1]  # noqa: E731
    adding: Edit = lambda h: h + 2 * vector  # noqa: E731
    setting = towards(basis, FEATURES[1])
    here = block(model, "gpt2")
    for order in ([(here, last, setting), (here, last, adding)], [(here, last, adding), (here, last, setting)]):
        first = found.steer(model, None, {"gender": "male"}, where="last")
        second = other.steer(model, strength={"tone": 2})
        pair = (first, second) if order[0][2] is setting else (second, first)
        expected = [by_hand(model, text, order) for text in PROMPTS]
        with pair[0], pair[1]:
            same(generated(model, inputs()), expected)


def test_decoding_in_every_way(tmp_path: Path) -> None:
    """Streaming, sampling, assisted, a static cache and a pipeline give what plain greedy decoding by hand gives."""
    from transformers import TextIteratorStreamer, pipeline

    tokenizer = tiny_tokenizer()
    model, found = tiny_model("llama"), artifact(tmp_path / "a", "llama")
    edit = towards(basis_of(tmp_path / "a"), FEATURES[1])
    expected, _ = by_hand(model, PROMPTS[0], [(block(model, "llama"), lambda p, n: range(n), edit)])
    given = inputs(PROMPTS[:1])
    text = tokenizer.decode(expected)
    with found.steer(model, tokenizer, {"gender": "male"}, where="all"):
        for more in (
            {"cache_implementation": "static"},
            {"assistant_model": tiny_model("llama", layers=2, seed=4)},
            {"do_sample": True, "top_k": 1},
        ):
            assert torch.equal(generated(model, given, **more)[0][0], expected), more
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        generated(model, given, streamer=streamer)
        assert "".join(streamer) == text
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
        options = {"max_new_tokens": STEPS, "do_sample": False, "return_full_text": False, "eos_token_id": 2999}
        assert pipe(PROMPTS[0], **options)[0]["generated_text"] == text


def test_a_chat_templates_text_has_its_spans(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    chat = [{"role": "user", "content": "Was Anna happy?"}, {"role": "assistant", "content": "On Monday"}]
    given = dict(tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True))
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokens_of(text) == given["input_ids"][0].tolist()
    edit = towards(basis_of(tmp_path / "a"), FEATURES[1])
    expected = by_hand(model, text, [(block(model, "gpt2"), lambda p, n: name_at(text, "Anna")[-1:], edit)])
    with found.steer(model, tokenizer, {"gender": "male"}, spans={"name": "Anna"}):
        same(generated(model, given), [expected])


def test_dispatched_offloaded_and_16_bit_networks(tmp_path: Path) -> None:
    """An artifact fits the same weights wherever they lie; where they cannot be compared, it says so."""
    from accelerate import cpu_offload, dispatch_model  # type: ignore[import-untyped]

    tokenizer, plain = tiny_tokenizer(), tiny_model("llama")
    found = artifact(tmp_path / "a", "llama", position="last", prefix="<|endoftext|>")
    basis = basis_of(tmp_path / "a")
    text = "<|endoftext|>Paul was happy"
    taken = activation(plain, tokens_of(text), block(plain, "llama"))[-1]
    sets = ({"settings": {"gender": "male"}}, FEATURES[1]), ({"source": "Paul was happy"}, taken @ basis)
    for options, features in sets:
        edit = towards(basis, features)
        expected = [by_hand(plain, t, [(block(plain, "llama"), lambda p, n: [p - 1], edit)]) for t in PROMPTS]
        dispatched = dispatch_model(tiny_model("llama"), {"": "cpu"}, force_hooks=True)
        with found.steer(dispatched, tokenizer, match="exact", **options):
            same(generated(dispatched, inputs()), expected)
        offloaded = cpu_offload(tiny_model("llama"), execution_device=torch.device("cpu"))
        with pytest.warns(UserWarning, match="not all in memory to be compared"):
            steering = found.steer(offloaded, tokenizer, **options)
        with steering:
            same(generated(offloaded, inputs()), expected)
        narrow: Any = tiny_model("llama").to(torch.bfloat16)
        with found.steer(narrow, tokenizer, match="exact", **options):
            logits = generated(narrow, inputs())[1]
        assert relative(logits[:, 0].float(), torch.stack([steps[0] for _, steps in expected])) < 0.05


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"nothing is set: give a value of gender \(gender: 'female', 'male'\), or source='…'"),
        ({"settings": {"gendr": "male"}}, r"no variable 'gendr'\. Did you mean 'gender'\? It has gender"),
        ({"settings": {"gender": "mal"}}, r"no value 'mal'\. Did you mean 'male'\? It has 'female', 'male'"),
        ({"settings": {"gender": []}}, "an empty list given: expected one value for each row"),
        ({"settings": {"gender": torch.zeros(31)}}, r"a vector of shape \[31\] given, expected .* \[32\] or"),
        ({"settings": {"gender": "male"}}, r"is a span of the task's prompts.* spans=\{'name': '…'\}"),
        ({"settings": {"gender": "male"}, "spans": {"nam": "Anna"}}, "'name' is no span of the prompt. Did you mean"),
        ({"settings": {"gender": "male"}, "where": "f7+"}, "is a span of the task's prompts"),
        ({"settings": {"gender": "male"}, "where": []}, r"position \[\]: expected"),
        (
            {"settings": {"gender": "male"}, "where": "last", "strength": float("nan")},
            "strength nan: expected",
        ),
        ({"settings": {"gender": "male"}, "where": "last", "strength": {"x": 1}}, "strength names 'x'"),
        ({"settings": {"gender": "male"}, "where": "last", "unit": "cm"}, "unit 'cm': expected 'edit', 'norm'"),
        ({"source": "Anna", "where": "last"}, r"source_spans=\{'name': '…'\}"),
        ({"source": [], "where": "last"}, "expected a text, a list of texts, or what the tokenizer returns"),
        ({"settings": {"gender": "male"}, "where": "last", "source_spans": {"name": "A"}}, "source_spans given"),
        ({"settings": {"gender": "male"}, "where": "last", "source": "Paul was"}, "source given, and no placement"),
        ({"settings": {"gender": "male"}, "where": "last", "spans": {"name": "A"}}, "spans name 'name', and no"),
        ({"settings": {"gender": "male"}, "spans": {"name": "Anna", "verb": "was"}}, "spans name 'verb', and no"),
        (
            {"source": "Paul was", "source_spans": {"name": "Paul", "verb": "was"}, "where": "last"},
            "source_spans name 'verb', and no",
        ),
        ({"settings": "male", "where": "last"}, r"settings 'male': expected a mapping"),
        ({"settings": 5, "where": "last"}, r"settings 5: expected a mapping"),
        ({"settings": {"gender": "male"}, "spans": "Anna"}, r"spans 'Anna': expected a mapping, \{name: 'Anna'\}"),
        ({"source": "Paul was", "source_spans": "Paul", "where": "last"}, "spans 'Paul': expected a mapping"),
        ({"source": 5, "where": "last"}, "source 5: expected a text, a list of texts, or"),
        ({"source": {"attention_mask": torch.ones(1, 3)}, "where": "last"}, "a source without input_ids"),
        ({"source": {"input_ids": [5, 6]}, "where": "last"}, r"input_ids: expected a tensor \[rows, tokens\]"),
        ({"source": {"input_ids": torch.tensor([5, 6])}, "where": "last"}, r"expected a tensor \[rows, tokens\]"),
        (
            {"settings": {"gender": torch.tensor([float("nan"), *[0.0] * 31])}, "where": "last"},
            "a vector that is not finite",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match=message):
        artifact(tmp_path / "a").steer(tiny_model("gpt2"), tiny_tokenizer(), **options)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"name": "Eve"}, r"span name: 'Eve' is not in the prompt 'Yesterday, Anna"),
        ({"name": "a"}, r"span name: 'a' stands more than once in the prompt .* give its offsets, e.g. \(7, 8\)"),
        ({"name": (3, 300)}, r"characters \(3, 300\) are not in the 35 of"),
        ({"name": ["Anna", "Paul"]}, "the spans has 2 rows, the batch 1"),
    ],
)
def test_spans_that_are_not_there_are_refused_when_the_prompt_is_known(
    spans: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    plain = generated(model, inputs(PROMPTS[:1]))[1]
    with (
        found.steer(model, tiny_tokenizer(), {"gender": "male"}, spans=spans),
        pytest.raises(IITKitError, match=message),
    ):
        generated(model, inputs(PROMPTS[:1]))
    assert torch.equal(generated(model, inputs(PROMPTS[:1]))[1], plain)


def test_a_strength_of_what_is_not_edited_is_refused(tmp_path: Path) -> None:
    where = {"layer": LAYER, "component": "block_output", "position": "last"}
    places = {"a": {**where, "variable": "gender"}, "b": {**where, "variable": "tone"}}
    values = {name: Values(("female", "male"), FEATURES.clone(), (3, 4)) for name in "ab"}
    edits, sizes = {name: subspace() for name in "ab"}, dict.fromkeys("ab", SiteInfo(WIDTH))
    write_artifact(tmp_path / "a", edits, places, base_of("gpt2"), sizes, values=values)
    found, model = iitkit.load(tmp_path / "a"), tiny_model("gpt2")
    for key in ("b", "tone"):
        with pytest.raises(IITKitError, match=f"strength of '{key}', which nothing is set for.* of a, gender"):
            found.steer(model, None, {"gender": "male"}, strength={key: 2.0})
    edit = towards(basis_of_named(tmp_path / "a", "a"), FEATURES[1], 2.0)
    expected = [by_hand(model, text, [(block(model, "gpt2"), lambda p, n: [p - 1], edit)]) for text in PROMPTS]
    with found.steer(model, None, {"gender": "male", "tone": "male"}, strength={"gender": 2.0, "tone": 0}):
        same(generated(model, inputs()), expected)


def test_a_row_of_padding_alone_is_refused(tmp_path: Path) -> None:
    model, found = tiny_model("gpt2"), artifact(tmp_path / "a")
    ids, mask = torch.tensor([[5, 6], [0, 0]]), torch.tensor([[1, 1], [0, 0]])
    for where in ("last", "all", 0):
        steering = found.steer(model, None, {"gender": "male"}, where=where)
        with steering, pytest.raises(IITKitError, match="a prompt of 0 tokens"):
            model(input_ids=ids, attention_mask=mask)


def test_steps_need_generated_tokens(tmp_path: Path) -> None:
    found = artifact(tmp_path / "a")
    for steps, where, message in (
        ((0, 2), "last", "edits no generated token"),
        ((2, 2), "all", "expected"),
        ((-1, 2), "all", "expected"),
        ((0.0, 2), "all", "expected"),
        ((False, True), "all", "expected"),
        ((None, 2), "all", "expected"),
        ((0, 1, 2), "all", "expected"),
        (3, "all", "expected"),
        ("02", "all", "expected"),
    ):
        with (
            pytest.raises(IITKitError, match=message),
            found.steer(tiny_model("gpt2"), None, {"gender": "male"}, where=where, steps=steps),  # type: ignore[arg-type]
        ):
            pass


# --- coordinates ---


def _named() -> list[tuple[str, Intervention]]:
    info = SiteInfo(8, generator=torch.Generator().manual_seed(0))
    return [
        ("Vanilla", Vanilla(info)),
        ("features", Vanilla(info, features=[0, 4])),
        ("LowRankSubspace", LowRankSubspace(info, rank=3)),
        ("RotatedSubspace", RotatedSubspace(info, coordinates=3)),
        ("Addition", Addition(info, take="source")),
    ]


@pytest.mark.parametrize(("name", "edit"), _named(), ids=[name for name, _ in _named()])
def test_a_sources_coordinates_do_what_the_source_does(name: str, edit: Intervention) -> None:
    base, source = random(5, 8, seed=1), random(5, 8, seed=2)
    with torch.no_grad():
        expected = edit(base, source, 0.7)
        found = edit.toward(base, edit.coordinates(source), 0.7)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, base, atol=1e-2)
    with pytest.raises(IITKitError, match="given, expected"):
        edit.toward(base, random(5, 9))


def test_an_edit_without_source_has_no_coordinates_to_go_to() -> None:
    with pytest.raises(IITKitError, match="takes nothing from a source"):
        Addition(SiteInfo(8)).toward(random(2, 8), random(2, 8))


def test_an_sae_goes_to_the_features_and_keeps_its_error(tmp_path: Path) -> None:
    """``h + (c − φ(h)) D``: the reconstruction error stays."""
    from safetensors.torch import save_file

    weights = {
        "W_enc": random(8, 6, seed=1),
        "b_enc": random(6, seed=2) * 0.1,
        "W_dec": random(6, 8, seed=3),
        "b_dec": random(8, seed=4) * 0.1,
    }
    save_file(weights, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text('{"architecture": "standard", "apply_b_dec_to_input": true}')
    edit = SAEFeatures(SiteInfo(8), file=str(tmp_path / "sae.safetensors"))
    h, c = random(4, 8, seed=6), random(4, 6, seed=7).relu()
    encoded = ((h - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    with torch.no_grad():
        coordinates = edit.coordinates(h)
        found = edit.toward(h, c)
    assert torch.allclose(coordinates, encoded, atol=1e-5)
    assert torch.allclose(found, h + (c - encoded) @ weights["W_dec"], atol=1e-5)
