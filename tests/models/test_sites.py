"""Sites and placements as a user writes them."""

from __future__ import annotations

import pytest

from iitkit.errors import IITKitError
from iitkit.interventions import LowRankSubspace, SiteInfo, Vanilla
from iitkit.models.sites import Placement, Site


def test_a_site_says_where_it_is() -> None:
    assert str(Site(3)) == "layer 3 block_output"
    assert str(Site(0, "mlp_input")) == "layer 0 mlp_input"
    assert str(Site(module="transformer.h.1.mlp", side="input")) == "transformer.h.1.mlp (input)"
    assert Site(3).position == -1


def test_a_placement_from_plain_values() -> None:
    found = Placement.from_plain("number", {"layer": 2, "position": ["subject.first", -1], "intervention": {"rank": 3}})
    assert (found.layer, found.component, found.variable, found.module) == (2, "block_output", "number", None)
    assert found.position == ["subject.first", -1]
    made = found.build(SiteInfo(8))
    assert isinstance(made, LowRankSubspace)
    assert made.spec() == {"name": "LowRankSubspace", "rank": 3}
    site = found.site
    assert (site.layer, site.component, site.position, site.module, site.side) == (
        2, "block_output", ["subject.first", -1], None, "output",
    )  # fmt: skip


def test_what_a_placement_may_leave_out() -> None:
    found = Placement.from_plain("a", {"layer": 0})
    assert (found.position, found.variable) == ("last", "a")
    assert found.build(SiteInfo(8)).spec() == {"name": "LowRankSubspace", "rank": 1}
    named = Placement.from_plain("a", {"layer": 0, "variable": "b", "intervention": {"name": "Vanilla"}})
    assert named.variable == "b"
    assert isinstance(named.build(SiteInfo(8)), Vanilla)
    factory = Placement.from_plain("a", Placement(layer=1, intervention=lambda site: LowRankSubspace(site, rank=5)))
    assert factory.variable == "a"
    assert factory.build(SiteInfo(8)).spec()["rank"] == 5


def test_a_placement_writes_itself_down() -> None:
    layer = Placement.from_plain("a", {"layer": 4, "component": "mlp_output", "position": "f2+l1"})
    assert layer.where() == {"layer": 4, "component": "mlp_output", "position": "f2+l1", "variable": "a"}
    module = Placement.from_plain("a", {"module": "h.1", "side": "input"})
    assert module.where() == {"module": "h.1", "side": "input", "position": "last", "variable": "a"}
    for one in (layer, module):
        assert Placement.from_plain("a", one.where()).where() == one.where()


def test_the_callers_mapping_is_left_alone() -> None:
    plain = {"layer": 2, "intervention": {"rank": 3}}
    Placement.from_plain("a", plain)
    assert plain == {"layer": 2, "intervention": {"rank": 3}}


def test_mistakes_in_a_placement() -> None:
    with pytest.raises(
        IITKitError, match=r"alignment\.a has no key 'positon'\. Did you mean 'position'\? It has: layer"
    ):
        Placement.from_plain("a", {"layer": 1, "positon": "last"})
    for neither_or_both in ({}, {"layer": 1, "module": "h.1"}, {"component": "mlp_output"}):
        with pytest.raises(IITKitError, match=r"alignment\.a: give either layer \(with a component\) or module"):
            Placement.from_plain("a", neither_or_both)
    with pytest.raises(IITKitError, match="rank 9: expected 1 to the site's width 8"):
        Placement.from_plain("a", {"layer": 1, "intervention": {"rank": 9}}).build(SiteInfo(8))
