"""Names: what may be built from plain values, and how it says what it was built from."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from iitkit.errors import IITKitError
from iitkit.interventions import (
    Composed,
    Intervention,
    LoRA,
    LowRankSubspace,
    MaskedNeurons,
    MaskedSubspace,
    RotatedSubspace,
    SiteInfo,
    Vanilla,
)
from iitkit.interventions.edits import Edit, Swap, Zero
from iitkit.interventions.masks import All, Blocks
from iitkit.interventions.registered import options_of
from iitkit.interventions.rotations import LowRankRotation
from iitkit.interventions.spaces import Space

SITE = SiteInfo(6)


def pairs(n: int = 5, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    base, source = torch.randn(2, n, width, generator=torch.Generator().manual_seed(3)).unbind(0)
    return base, source


# --- names ---


def test_a_name_belongs_to_one_class() -> None:
    before = dict(Intervention.registry)

    def define(module: str) -> type[Intervention]:
        return type("Vanilla", (Intervention,), {"__module__": module, "__qualname__": "Vanilla"})

    with pytest.raises(
        IITKitError, match=r"'Vanilla' is already registered by iitkit\.interventions\.subspaces: choose"
    ):
        define("notebook")
    assert Intervention.registry == before
    with pytest.raises(IITKitError, match=r"space 'Identity' is already registered by iitkit\.interventions\.spaces"):
        type("Identity", (Space,), {})
    # a notebook's cell may run twice
    made = type("Twice", (Intervention,), {"__module__": "notebook", "__qualname__": "Twice"})
    again = type("Twice", (Intervention,), {"__module__": "notebook", "__qualname__": "Twice"})
    assert Intervention.registry.pop("Twice") is again
    assert made is not again
    assert "Twice" not in before
    # an edit may have the name of an intervention, and a class that begins with _ has no name of its own
    assert Edit.registry["Zero"] is not Intervention.registry["Zero"]
    assert not any(name.startswith("_") for name in {**Intervention.registry, **Space.registry, **Edit.registry})


def test_a_user_s_class_needs_nothing_but_its_options_as_attributes() -> None:
    class Halfway(Intervention):
        def __init__(self, site: SiteInfo, rank: int = 2, note: str | None = None) -> None:
            super().__init__(LowRankRotation(site, rank), All(rank), Zero())
            self.rank, self.note = rank, note

    try:
        made = Intervention.from_spec({"name": "Halfway", "rank": 3}, SITE)
        assert made.spec() == {"name": "Halfway", "rank": 3}
        assert made.title == "Halfway(rank=3)"
        rebuilt = Intervention.from_spec(made.spec(), SITE, made.released().state_dict())
        assert torch.equal(rebuilt(pairs()[0]), made(pairs()[0]))
    finally:
        del Intervention.registry["Halfway"]


def test_a_user_s_class_may_hand_its_parent_s_options_on() -> None:
    class Softer(LowRankSubspace):
        def __init__(self, site: SiteInfo, share: float = 0.5, **kwargs: Any) -> None:
            super().__init__(site, **kwargs)
            self.share = share

    class Fixed(LowRankSubspace):
        def __init__(self, site: SiteInfo, **kwargs: Any) -> None:
            super().__init__(site, rank=3, **kwargs)

    class Plain(MaskedNeurons):
        pass

    try:
        made = Softer(SITE, share=0.25, rank=3)
        assert made.spec() == {"name": "Softer", "share": 0.25, "rank": 3}
        rebuilt = Intervention.from_spec(made.spec(), SITE, made.released().state_dict())
        assert torch.equal(rebuilt(*pairs()), made(*pairs()))
        with pytest.raises(
            IITKitError, match=r"Softer has no option 'ranq'\. Did you mean 'rank'\? It has: share, rank"
        ):
            Intervention.from_spec({"name": "Softer", "ranq": 3}, SITE)
        with pytest.raises(
            IITKitError, match=r"multiple values .*: Fixed gives its parent what it also takes: name it"
        ):
            Intervention.from_spec(Fixed(SITE).spec(), SITE)
        assert Plain(SITE, edit="zero").spec() == {"name": "Plain", "gate": "sigmoid", "edit": "zero"}
    finally:
        for name in ("Softer", "Fixed", "Plain"):
            del Intervention.registry[name]


def test_a_user_s_class_that_keeps_nothing_is_told_how() -> None:
    class Forgetful(Intervention):
        def __init__(self, site: SiteInfo, rank: int = 2) -> None:
            super().__init__(LowRankRotation(site, rank), All(rank), Zero())

    try:
        with pytest.raises(
            IITKitError,
            match=r"^Forgetful does not keep its option 'rank': hand it on, super\(\).__init__\(…, rank=rank\)",
        ):
            Forgetful(SITE).spec()
    finally:
        del Intervention.registry["Forgetful"]


SPECS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Vanilla": (lambda: Vanilla(), {"name": "Vanilla"}),
    "rank": (lambda: LowRankSubspace(SITE), {"name": "LowRankSubspace", "rank": 1}),
    "frozen": (lambda: LowRankSubspace(SITE, 2, frozen=True), {"name": "LowRankSubspace", "rank": 2, "frozen": True}),
    "blocks": (
        lambda: RotatedSubspace(SITE, {"a": 2, "b": [5]}),
        {"name": "RotatedSubspace", "coordinates": {"a": 2, "b": [5]}},
    ),
    "gate": (
        lambda: MaskedNeurons(SITE, edit="zero"),
        {"name": "MaskedNeurons", "gate": "sigmoid", "edit": "zero"},
    ),
    "composed": (
        lambda: Composed(SITE, edit={"name": "Noise", "sigma": 1.0}),
        {
            "name": "Composed",
            "space": {"name": "Identity"},
            "mask": {"name": "All"},
            "edit": {"name": "Noise", "sigma": 1.0, "seed": 0},
        },
    ),
    "in Python": (
        lambda: Intervention(LowRankRotation(SITE, 4), Blocks(4, {"a": 1, "b": 2}), Swap()),
        {
            "name": "Composed",
            "space": {"name": "LowRankRotation", "rank": 4},
            "mask": {"name": "Blocks", "blocks": {"a": 1, "b": 2}},
            "edit": {"name": "Swap"},
        },
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_specs(case: str) -> None:
    make, expected = SPECS[case]
    made = make()
    assert made.spec() == expected
    made.spec().clear()
    inner = made.spec()
    for value in inner.values():
        if isinstance(value, dict):
            value["x"] = 1  # a caller's changes stay the caller's
    assert made.spec() == expected
    rebuilt = Intervention.from_spec(json.loads(json.dumps(expected)), SITE, made.released().state_dict())
    block = made.blocks[0] if made.blocks else None
    given = pairs() if made.needs_source else pairs()[:1]
    assert torch.equal(rebuilt(*given, block=block), made.eval()(*given, block=block))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "space": ({"space": {"name": "PAC"}}, "space 'PAC' is not registered. Did you mean 'PCA'? Known: FreeProjection"),
    "mask": ({"mask": {"name": "Sigmoyd"}}, "mask 'Sigmoyd' is not registered. Did you mean 'Sigmoid'?"),
    "edit": ({"edit": {"name": "Zeros"}}, "edit 'Zeros' is not registered. Did you mean 'Zero'?"),
    "option": (
        {"space": {"name": "PCA", "rnk": 2}},
        "PCA has no option 'rnk'. Did you mean 'rank'? It has: rank, standardise",
    ),
    "no options": ({"edit": {"name": "Swap", "x": 1}}, "Swap has no option 'x'. It has none"),
    "missing": ({"mask": {"name": "Indices"}}, "Indices needs the option 'indices'"),
    "text": ({"edit": "Zero"}, "edit 'Zero': expected a name and options, e.g. {name: Swap}"),
    "width": ({"space": {"name": "LowRankRotation", "rank": 7}}, "rank 7: expected 1 to the site's width 6"),
    "indices": (
        {"space": {"name": "LowRankRotation", "rank": 2}, "mask": {"name": "Indices", "indices": [2]}},
        "indices: coordinate 2: expected 0 to 1",
    ),
    "no input": ({"edit": {"name": "LowRankUpdate"}}, "LoRA reads the module's input, and the site has none"),
    "skip": ({"edit": {"name": "Skip"}}, "the site has width 6 and no known input: Skip needs both alike"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parts_are_refused(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(IITKitError, match=f"^{re.escape(message)}"):
        Composed(SITE, **options)


def test_an_input_of_another_width_is_refused() -> None:
    with pytest.raises(IITKitError, match="the site has width 6 and an input of width 24: Skip needs both alike"):
        Intervention.from_spec({"name": "Skip"}, SiteInfo(6, input_width=24))
    made = LoRA(SiteInfo(6, input_width=24))
    with pytest.raises(IITKitError, match=r"LoRA needs the module's input of shape \(5, 24\), given shape \(5, 6\)"):
        made(pairs()[0], inputs=pairs()[0])
    rebuilt = Intervention.from_spec(made.spec(), SITE, made.released().state_dict())  # the artifact knows it
    assert torch.equal(rebuilt(pairs()[0], inputs=torch.ones(5, 24)), pairs()[0])


def test_no_default_is_handed_on_to_another_class() -> None:
    # jsonargparse gives the default class' defaults to whatever class a config names instead, where the names are alike
    default = options_of(LowRankSubspace)
    for name, kind in Intervention.registry.items():
        for option, parameter in options_of(kind).items():
            if option in default and kind.__module__.startswith("iitkit."):
                assert parameter.default is default[option].default, (name, option)
    for name, rank in (("LowRankSubspace", 1), ("PCASubspace", 8), ("LoReFT", 4), ("NoDiReFT", 4), ("LoRA", 4)):
        assert Intervention.from_spec({"name": name}, SiteInfo(9, input_width=9)).spec()["rank"] == rank
    assert "rank" not in MaskedSubspace(SITE).spec()
    assert MaskedSubspace(SITE).space.size == 6
