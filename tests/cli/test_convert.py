"""``iitkit convert`` and ``iitkit merge``: what they write, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from byhand import relative
from families import build
from foreign import network
from running import iitkit
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer

import iitkit as package

PYVENE = Path(__file__).resolve().parents[1] / "hub" / "pyvene"


def vectors(folder: Path, name: str = "block_output.1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.randn(32, generator=torch.Generator().manual_seed(0))}, folder / "v.safetensors")
    return folder


def test_there_and_back(shallow_gpt2: str, tmp_path: Path) -> None:
    source, artifact, file = vectors(tmp_path / "vectors"), tmp_path / "artifact", tmp_path / "v.gguf"
    ran = iitkit("convert", str(source), str(artifact), "--base", shallow_gpt2)
    assert ran.code == 0, ran.err
    assert "block_output_1: Addition(take='vector') at layer 1 block_output, position all" in ran.out
    ran = iitkit("convert", str(artifact), str(file), "--strength=2")
    assert ran.code == 0, ran.err
    assert ran.out == f"control vector: {file}\n"
    ran = iitkit("convert", str(file), str(tmp_path / "again"), "--base", shallow_gpt2)
    assert ran.code == 0, ran.err
    first = package.load(artifact).interventions["block_output_1"].state_dict()["edit.vector"]
    second = package.load(tmp_path / "again").interventions["layer_1"].state_dict()["edit.vector"]
    assert torch.equal(second, 2 * first)
    assert package.load(artifact).config["converted"] == "vectors"


def test_merged_models_are_written(shallow_gpt2: str, tmp_path: Path) -> None:
    source, artifact = vectors(tmp_path / "vectors", "mlp_output.1"), tmp_path / "artifact"
    assert iitkit("convert", str(source), str(artifact), "--base", shallow_gpt2).code == 0
    ran = iitkit("merge", str(artifact), str(tmp_path / "merged"), "--base", shallow_gpt2, "--strength=-1")
    assert ran.code == 0, ran.err
    model, tokenizer = package.load_base(shallow_gpt2)
    merged, _ = package.load_base(tmp_path / "merged")
    inputs = tokenizer("When Mary went home", return_tensors="pt")
    with torch.no_grad():
        with package.intervening(model, package.load(artifact).alignment(), strength=-1.0, where="all"):
            expected = model(**inputs).logits
        assert relative(merged(**inputs).logits, expected) <= 1e-5
    ran = iitkit("merge", str(artifact), str(tmp_path / "merged"), "--base", shallow_gpt2)
    assert ran.code == 2
    assert "is there already" in ran.err


def test_where_it_is_placed_is_said(shallow_gpt2: str, tmp_path: Path) -> None:
    source = str(vectors(tmp_path / "vectors"))
    ran = iitkit("convert", source, str(tmp_path / "a"), "--base", shallow_gpt2, "--position=last")
    assert ran.code == 0, ran.err
    assert package.load(tmp_path / "a").config["placements"]["block_output_1"]["position"] == "last"
    network("gpt2").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    heads = (str(PYVENE / "gpt2_heads"), str(tmp_path / "b"), "--base", str(tmp_path / "base"), "--trust")
    ran = iitkit("convert", *heads, "--head=1", "--position=[1,3]")
    assert ran.code == 0, ran.err
    (placement,) = package.load(tmp_path / "b").config["placements"].values()
    assert (placement["head"], placement["position"]) == (1, [1, 3])


def test_another_network_of_the_kind_may_be_merged_into(shallow_gpt2: str, tmp_path: Path) -> None:
    artifact, other = tmp_path / "artifact", tmp_path / "other"
    assert (
        iitkit("convert", str(vectors(tmp_path / "v", "mlp_output.1")), str(artifact), "--base", shallow_gpt2).code == 0
    )
    tiny_model("gpt2", seed=7).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.warns(UserWarning, match="this model has other weights"):
        ran = iitkit("merge", str(artifact), str(tmp_path / "merged"), "--base", str(other))
    assert ran.code == 0, ran.err
    (model, tokenizer), (merged, _) = package.load_base(str(other)), package.load_base(tmp_path / "merged")
    inputs = tokenizer("When Mary went home", return_tensors="pt")
    with torch.no_grad():
        with package.intervening(model, package.load(artifact).alignment(), where="all"):
            expected = model(**inputs).logits
        assert relative(merged(**inputs).logits, expected) <= 1e-5


def test_biases_that_would_be_lost_in_saving_are_told_of(tmp_path: Path) -> None:
    """Qwen2's class has no bias at o_proj, and no switch for one."""
    base, artifact = tmp_path / "base", tmp_path / "artifact"
    tokenizer = tiny_tokenizer()
    build("qwen2", vocab_size=len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    (tmp_path / "v").mkdir()
    save_file({"attention_output.1": torch.ones(16)}, tmp_path / "v" / "v.safetensors")
    assert iitkit("convert", str(tmp_path / "v"), str(artifact), "--base", str(base)).code == 0
    ran = iitkit("merge", str(artifact), str(tmp_path / "merged"))
    assert ran.code == 2
    assert "Qwen2ForCausalLM has no place for the biases that were merged" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "base", "v"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((str(PYVENE / "gpt2_low_rank"), "out", "--base", "BASE"), "is a pickle, which may come from anyone"),
        ((str(PYVENE / "gpt2_low_rank"), "out", "--base", "BASE", "--trust=true"), "width 32"),
        (("VECTORS", "out"), "base is missing: which network was it made for?"),
        (("VECTORS", "out", "--base", "BASE", "--strength=2"), "strength: only a .gguf file has it"),
        (("VECTORS", "out", "--base", "BASE", "--boundary=hard"), "boundary: VECTORS holds vectors"),
        (("VECTORS", "out.gguf"), "is no artifact"),
        (("VECTORS", "out.gguf", "--base", "BASE"), "base: a .gguf file needs none: leave it out"),
        (("VECTORS", "out.gguf", "--trust=true"), "trust: a .gguf file needs none"),
        (("VECTORS",), "to is missing"),
        ((str(PYVENE / "gpt2_low_rank"), "out", "--base", "BASE", "--trust", "false"), "is a pickle"),
        ((str(PYVENE / "gpt2_low_rank"), "out", "--base", "BASE", "--trust"), "width 32"),
        (("--trust", str(PYVENE / "gpt2_low_rank"), "out", "--base", "BASE"), "width 32"),
        ((str(PYVENE / "gpt2_low_rank"), "--trust", "out", "--base", "BASE"), "width 32"),
        ((str(PYVENE / "gpt2_low_rank"), "out", "--trust", "true", "--base", "BASE"), "width 32"),
        (("VECTORS", "out.gguf", "--trust"), "trust: a .gguf file needs none"),
    ],
)
def test_refused(
    options: tuple[str, ...], said: str, shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(vectors(tmp_path / "vectors"))
    filled = [word.replace("BASE", shallow_gpt2).replace("VECTORS", folder) for word in options]
    ran = iitkit("convert", *filled)
    assert ran.code == 2, ran.out
    assert said.replace("VECTORS", folder) in ran.err
    assert len(ran.err.strip().splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]


def test_the_residual_stream_is_not_merged(shallow_gpt2: str, tmp_path: Path) -> None:
    source, artifact = vectors(tmp_path / "vectors"), tmp_path / "artifact"
    assert iitkit("convert", str(source), str(artifact), "--base", shallow_gpt2).code == 0
    ran = iitkit("merge", str(artifact), str(tmp_path / "merged"), "--base", shallow_gpt2)
    assert ran.code == 2
    assert "the residual stream, not a linear module's own output" in ran.err
    assert not (tmp_path / "merged").exists()
