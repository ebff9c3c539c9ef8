"""``iitkit sites``: the table of components, from the config alone."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from families import build, decoder

from iitkit.cli import main
from iitkit.errors import IITKitError
from iitkit.models import loading
from iitkit.models.anatomy import COMPONENTS, locate
from iitkit.models.sites import OUTSIDE, Site
from iitkit.models.skeleton import skeleton
from iitkit.models.table import rows


def table(text: str) -> dict[str, list[str]]:
    """Component → its cells, of the rows of a printed table."""
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1:] for line in cells if line and line[0] in COMPONENTS}


def test_the_default_sizes_of_a_model_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "gpt2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "GPT2LMHeadModel: layers 0 to 11, hidden size 768"
    found = table(out)
    assert found["embeddings"] == ["transformer.wte", "output", "768"]
    assert found["block_output"] == ["0–11", "transformer.h.{layer}", "output", "768"]
    assert found["value_output"] == ["0–11", "transformer.h.{layer}.attn.c_attn", "output [1536…]", "768"]
    assert found["head_value_output"] == ["0–11", "transformer.h.{layer}.attn.c_attn", "output [1536…]", "64", "12"]
    assert found["head_query_output"][2] == "output [0…]"
    assert found["attention_weight"] == ["0–11", "transformer.h.{layer}.attn", "attention probabilities", "keys", "12"]
    assert found["mlp_hidden"] == ["0–11", "transformer.h.{layer}.mlp.c_proj", "input", "3072"]
    assert found["logits"] == ["(the network)", "output", "50257"]
    assert out.splitlines()[-1] == "no router_input, router_output: GPT2MLP is no mixture of experts with a router"
    assert set(found) == set(COMPONENTS) - {"router_input", "router_output"}


def test_a_folder_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("gemma2").config.save_pretrained(tmp_path)
    assert main(["sites", str(tmp_path)]) == 0
    found = table(capsys.readouterr().out)
    assert found["head_key_output"] == ["0–2", "model.layers.{layer}.self_attn.k_proj", "output", "6", "2"]
    assert found["attention_value_output"] == ["0–2", "model.layers.{layer}.self_attn.o_proj", "input", "24"]
    model = skeleton(str(tmp_path))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_hub_id_needs_its_configuration_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("name not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit, copy = "0123456789" * 4, tmp_path / "models--user--model"
    build("qwen3").config.save_pretrained(copy / "snapshots" / commit)  # no weights: the Hub's other files are absent
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text(commit)
    assert main(["sites", "user/model"]) == 0
    found = table(capsys.readouterr().out)
    assert found["head_query_output"] == ["0–2", "model.layers.{layer}.self_attn.q_proj", "output", "6", "4"]
    assert [path.name for path in (copy / "snapshots" / commit).iterdir()] == ["config.json"]


def test_every_row_is_a_site() -> None:
    model = decoder("mixtral")
    found = rows(model)
    assert {row[0] for row in found} == set(COMPONENTS) - {"mlp_activation", "mlp_hidden"}
    for component, layers, path, _, width, heads in found:
        layer = None if component in OUTSIDE else 1
        location = locate(model, Site(layer, component))
        assert layers == ("" if layer is None else "0–2")
        if path != "(the network)":
            assert model.get_submodule(path.format(layer=1)) is location.module
        assert width == ("keys" if component == "attention_weight" else str(location.width))
        assert heads == (str(location.heads) if component.startswith("head_") or width == "keys" else "")


def test_layers_that_differ_have_rows_of_their_own() -> None:
    model = build("llama", num_hidden_layers=4)
    block = model.get_submodule("model.layers.2")
    narrow = build("llama", num_key_value_heads=4).get_submodule("model.layers.2.self_attn.k_proj")
    block.get_submodule("self_attn").k_proj = narrow
    found = [row[1:] for row in rows(model) if row[0] == "key_output"]
    path = "model.layers.{layer}.self_attn.k_proj"
    assert found == [("0–1, 3", path, "output", "8", ""), ("2", path, "output", "16", "")]


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        assert main(["sites", *arguments]) == 2
        return capsys.readouterr().err

    assert said() == "iitkit: sites: expected one model, given nothing: iitkit sites gpt2\n"
    assert said("gpt2", "llama") == "iitkit: sites: expected one model, given gpt2, llama: iitkit sites gpt2\n"
    assert "given --layers: iitkit sites gpt2" in said("--layers")
    assert said(str(tmp_path / "none")) == (
        f"iitkit: base '{tmp_path / 'none'}': no such folder. Check the path, or give a Hub id such as user/model.\n"
    )
    assert "'t5' is no causal language model that can be built" in said("t5")
    assert main(["sites", "--help"]) == 0
    assert "MODEL is a Hub id, a folder, or a model type" in capsys.readouterr().out

    def unreachable(*_: object, **__: object) -> None:
        raise IITKitError("base 'lama': the Hub could not be reached.")

    monkeypatch.setattr(loading, "_resolve", unreachable)
    with pytest.raises(IITKitError, match=r"base 'lama': the Hub could not be reached\. Did you mean 'llama'"):
        skeleton("lama")


def test_nothing_is_drawn_for_a_skeleton() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    skeleton("gpt_neox")
    assert torch.equal(torch.get_rng_state(), before)
