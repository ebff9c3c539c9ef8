"""A task in YAML alone: by hand, in a file, and through the command line."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from running import files, iitkit, said

from iitkit.causal.written import KEYS
from iitkit.errors import IITKitError
from iitkit.tasks import Task
from iitkit.tasks.written import OF_THE_TASK, Hypothesis

NOUNS = ["actor", "boy", "012", "duke", "guy", "king", "lord", "monk", "yes", "son"]
MODEL: dict[str, Any] = {
    "prompt": ["The {subject} hurt", "A {subject} saw", "One {subject} hit"],
    "output": "reflexive",
    "variables": {"noun": NOUNS, "plural": [False, True]},
    "mechanisms": {
        "subject": "f'{noun}s' if plural else noun",
        "reflexive": {"of": "plural", "table": {False: " himself", True: " themselves"}},
    },
}
OPTIONS: dict[str, Any] = {"split_by": ["noun"], "held_out_templates": 1}


def answers(task: Task, **inputs: list[Hashable]) -> list[str]:
    return task.model.answers(task.model.run(inputs), task.model.output)


def test_by_hand() -> None:
    task = Hypothesis(**MODEL, **OPTIONS)
    assert answers(task, noun=["boy", "012"], plural=[True, False]) == [" themselves", " himself"]
    setting = task.model.run({"noun": ["boy", "012"], "plural": [True, True]})
    assert [text.text for text in task.model.render(setting, np.array([0, 2]))] == ["The boys hurt", "One 012s hit"]
    assert task.name == "Hypothesis"
    assert (task.split_by, task.held_out_templates) == (("noun",), 1)
    assert (task.templates(held_out=False), task.templates(held_out=True)) == ([0, 1], [2])
    found = task.split(np.random.default_rng(0))
    assert [len(found[split]["noun"]) for split in ("train", "validation", "test")] == [6, 2, 2]
    assert not set(found["train"]["noun"].tolist()) & set(found["test"]["noun"].tolist())


def test_combinations_and_a_name() -> None:
    task = Hypothesis(**MODEL, split_by=[["noun", "plural"]], name="Reflexive")
    assert (task.split_by, task.name, task.held_out_templates) == ((("noun", "plural"),), "Reflexive", 0)


def test_its_arguments_are_the_keys_of_a_file() -> None:
    assert list(inspect.signature(Hypothesis.__init__).parameters) == ["self", *_order(), "file"]


def _order() -> list[str]:
    return [*KEYS, *OF_THE_TASK]


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "reflexive.yaml"
    file.write_text(yaml.safe_dump({**MODEL, **OPTIONS, "name": "Reflexive"}), encoding="utf-8")
    task = Hypothesis(file=str(file))
    assert answers(task, noun=["boy", "012"], plural=[True, False]) == [" themselves", " himself"]
    assert (task.name, task.split_by, task.held_out_templates) == ("Reflexive", ("noun",), 1)
    task = Hypothesis(file=str(file), held_out_templates=2, split_by=[["noun", "plural"]], name="Other")
    assert (task.name, task.split_by, task.held_out_templates) == ("Other", (("noun", "plural"),), 2)


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"file": "x.yaml"},
        "Hypothesis: given file and prompt, output, variables, mechanisms: say the model in one place",
    ),
    ({"prompt": None}, "a causal model needs prompt: it is missing"),
    ({"split_by": ["nuon"]}, "Hypothesis.split_by 'nuon' is no variable. Did you mean 'noun'?"),
    ({"split_by": "noun"}, "Hypothesis.split_by: given 'noun', expected a list of names, or of lists of names"),
    ({"split_by": [[1]]}, "Hypothesis.split_by: given [[1]], expected a list of names"),
    ({"split_by": ["subject"]}, "'subject' is computed, so its values cannot be dealt out"),
    ({"held_out_templates": 3}, "Hypothesis: 3 held-out templates of 3: at least one must be left"),
    ({"held_out_templates": -1}, "Hypothesis.held_out_templates: given -1, expected a number of templates"),
    ({"held_out_templates": True}, "Hypothesis.held_out_templates: given True, expected a number of templates"),
    # what YAML leaves of bare words
    (
        {"variables": {"noun": ["boy", True], "plural": [False, True]}},
        "variable 'noun' has the value True beside text: quote",
    ),
    (
        {"variables": {"noun": ["boy", "man"], "plural": [False, "yes"]}},
        "variable 'plural' has the value False beside text",
    ),
    (
        {"prompt": "The {noun} {plural}"},
        "variable 'plural' would put the word False into the prompt: quote it (YAML reads",
    ),
    (
        {"mechanisms": {"subject": "noun", "reflexive": {"of": "plural", "table": {False: " a", True: True}}}},
        "variable 'reflexive' has the value True beside text: quote it",
    ),
    (
        {"mechanisms": {"subject": "noun", "reflexive": {"of": "plural", "table": {False: False, True: True}}}},
        "label False of variable 'reflexive' is a bool, expected a string: quote it",
    ),
    (
        {"mechanisms": {"subject": "noun", "reflexive": {"of": "plural", "table": {"no": " a", "yes": " b"}}}},
        "has an entry for plural = 'no', which 'plural' never is. What is text: quote it",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(change)[:40] for change, _ in WRONG])
def test_wrong_tasks(change: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError) as caught, warnings.catch_warnings(action="error"):
        Hypothesis(**{**MODEL, **OPTIONS, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    with pytest.raises(IITKitError, match=r"no file .*task\.yaml: give a YAML file"):
        Hypothesis(file=str(file))
    for text, message in (
        ("[1]", "task.yaml: expected the keys prompt, output, "),
        ("promt: x", "task.yaml: no key 'promt'. Did you mean 'prompt'?"),
        ("prompt: '{a}'", "task.yaml: a causal model needs output: it is missing"),
        ("prompt: '{a}'\noutput: yes", "task.yaml, line 2: bare yes is a boolean to YAML"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(IITKitError) as caught:
            Hypothesis(file=str(file))
        assert message in str(caught.value)


# --- through the command line ---

CONFIG = """\
seed_everything: 0
model:
  class_path: DAS
  init_args:
    base: {base}
    alignment:
      number: {{layer: 1, position: subject, intervention: {{rank: 2}}}}
    optimizer: {{class_path: Adam, init_args: {{lr: 0.05}}}}
data:
  class_path: CounterfactualDataModule
  init_args:
    task:
      class_path: Hypothesis
      init_args:
        prompt: ["The {{subject}} hurt", "A {{subject}} saw", "One {{subject}} hit"]
        output: reflexive
        variables:
          noun: [actor, boy, "012", duke, guy, king, lord, monk, "yes", "null"]
          plural: [false, true]
        mechanisms:
          subject: "f'{{noun}}s' if plural else noun"
          number: {{of: plural, table: {{false: "1", true: "on"}}}}
          reflexive: >-
            ' himself' if number == '1' else ' themselves'
        surface: {{" himself": [" himself", " Himself"], " themselves": " themselves"}}
        constraints: {{no_duke: noun != 'duke'}}
        split_by: [noun]
        held_out_templates: 1
    sizes: {{train: 16, validation: 8, test: 8, test_templates: 8}}
    batch_size: 8
trainer: {{max_epochs: 1, default_root_dir: {root}, num_sanity_val_steps: 0}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shallow_gpt2: str) -> Path:
    folder = tmp_path_factory.mktemp("written")
    file = folder / "hypothesis.yaml"
    file.write_text(CONFIG.format(base=shallow_gpt2, root=folder / "run"), encoding="utf-8")
    return file


def test_a_run_and_its_config(config: Path, tmp_path: Path) -> None:
    """What the run wrote down as its config is the same hypothesis: quoted words are still words."""
    ran = iitkit("fit", "--config", config)
    assert ran.code == 0, ran.err
    assert "trained, test_templates" in ran.out
    written = config.parent / "run" / "config.yaml"
    task = yaml.safe_load(written.read_text(encoding="utf-8"))["data"]["init_args"]["task"]["init_args"]
    given = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["init_args"]["task"]["init_args"]
    assert {key: value for key, value in task.items() if value is not None} == given
    again = iitkit("fit", "--config", written, f"--trainer.default_root_dir={tmp_path / 'again'}")
    assert again.code == 0, again.err
    one, other = (folder / "metrics.json" for folder in (config.parent / "run", tmp_path / "again"))
    assert one.read_text(encoding="utf-8") == other.read_text(encoding="utf-8")


REFUSED = {
    "--data.task.outptu=x": "Hypothesis has no key 'outptu'. Did you mean 'output'?",
    "--data.task.output=numbr": "'numbr' is no variable. Did you mean 'number'?",
    "--data.task.mechanisms.reflexive=number.upper()": "mechanism 'reflexive', 'number.upper()', column 1: a call of",
    "--data.task.mechanisms.reflexive=' a' if numbr else ' b'": "parent 'numbr' is no variable. Did you mean 'number'?",
    "--data.task.mechanisms.reflexive=[3]": "mechanism 'reflexive': given [3], expected an expression (in quotes) or",
    "--data.task.mechanisms.number={of: plural, tabel: {}}": "'number' has no key 'tabel'. Did you mean 'table'?",
    "--data.task.mechanisms.number.table.yes=x": "'table.yes' cannot be set by itself: give the whole mechanism",
    "--data.task.variables.noun=dog": "variables.noun: given 'dog', expected the list of its values",
    "--data.task.variables.noun=[yes, boy]": "variable 'noun' has the value True beside text: quote it",
    "--data.task.variables.noun=[a, b]": "no word of 'noun' (2 words) is left for the",
    "--data.task.constraints.no_duke=noun": "a constraint is true or false, this is 'actor'",
    "--data.task.constraints.no_duke=noun == 'cow'": "no input satisfies the constraint no_duke",
    "--data.task.prompt=The {nuon}": "prompt: slot 'nuon' is no variable. Did you mean 'noun'?",
    "--data.task.split_by=[nuon]": "Hypothesis.split_by 'nuon' is no variable. Did you mean 'noun'?",
    "--data.task.held_out_templates=3": "Hypothesis: 3 held-out templates of 3",
    "--data.task.file=other.yaml": "Hypothesis: given file and prompt, output, variables,",
}


@pytest.mark.parametrize("option", REFUSED)
def test_refused_in_a_line(config: Path, tmp_path: Path, option: str) -> None:
    root = tmp_path / "run"
    ran = iitkit("fit", "--config", config, f"--trainer.default_root_dir={root}", option)
    assert REFUSED[option] in said(ran)
    assert files(root) == []


def test_options_change_the_hypothesis(config: Path, tmp_path: Path) -> None:
    """Every key of it is an option, as of any other task."""
    ran = iitkit(
        *("fit", "--config", config, f"--trainer.default_root_dir={tmp_path}", "--trainer.fast_dev_run=true"),
        *(
            '--data.task.variables.noun=["01", "02", "03", "04", "05", "06", "07", "08", "09"]',
            "--data.task.name=Digits",
        ),
        "--data.task.mechanisms.subject={'01': 'one'}[noun] if noun == '01' and not plural else f'{noun}{plural}'",
    )
    assert ran.code == 0, ran.err
    assert any(f"{prefix} 0{digit}" in ran.out for prefix in ("The", "A") for digit in range(2, 10))


def test_a_file_of_its_own(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = yaml.safe_load(config.read_text(encoding="utf-8"))
    task = written["data"]["init_args"]["task"]
    Path("my_task.yaml").write_text(yaml.safe_dump(task["init_args"]), encoding="utf-8")
    task["init_args"] = {"file": "my_task.yaml"}
    Path("config.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    ran = iitkit(
        "fit", "--config", "config.yaml", f"--trainer.default_root_dir={tmp_path}", "--trainer.fast_dev_run=true"
    )
    assert ran.code == 0, ran.err
    Path("my_task.yaml").write_text("prompt: [The {x}", encoding="utf-8")
    ran = iitkit("fit", "--config", "config.yaml", f"--trainer.default_root_dir={tmp_path}")
    assert "my_task.yaml, line 1: expected ',' or ']', but got '{' (text with brackets" in said(ran)
