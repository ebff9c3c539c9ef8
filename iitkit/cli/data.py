"""``iitkit data``: what a user should know of the pairs before any training; saving and pushing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import iitkit
import iitkit.tasks  # makes the tasks known by their short names
from iitkit.causal import CausalModel
from iitkit.causal.writing import to_mapping
from iitkit.cli.callbacks import judged, write_text
from iitkit.cli.files import config_names
from iitkit.cli.parser import Parser
from iitkit.cli.training import prepared
from iitkit.data import CompletionDataModule, CounterfactualDataModule
from iitkit.data.base import PromptDataModule
from iitkit.data.card import Card, hypothesis
from iitkit.data.drawn import TaskPairs
from iitkit.data.export import rows_of
from iitkit.data.folder import write_dataset
from iitkit.data.report import as_plain, data_report
from iitkit.data.sharing import push_dataset
from iitkit.errors import IITKitError, choices
from iitkit.models.load_errors import causes
from iitkit.modules import InterventionModule, ReFT

LONGEST = 20_000
"""Characters of YAML that a dataset's README shows at most."""


class Inspection(LightningCLI):
    """Builds module and data of a config; no trainer, and no base model unless it is asked for."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__(
            InterventionModule,
            PromptDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"prog": "iitkit data"},
            run=False,
            args=list(arguments),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what only this command has."""
        parser.add_argument(
            "--with_model", type=bool, default=False, help="run the base model: its accuracy by template and value"
        )
        parser.add_argument("--most", type=int | None, default=None, help="prompts of each split that it runs; all")
        # a config may hold it: it is of fit and test, and the data do not depend on it
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="not read: of fit, validate and test")
        parser.add_argument("--save", type=str | None, default=None, help="folder for the pairs, as a Hub dataset")
        parser.add_argument("--format", type=str, default="jsonl", help="of its files: jsonl or parquet")
        parser.add_argument(
            "--push", type=str | None, default=None, help="Hub dataset, user/name, to push the pairs to"
        )
        parser.add_argument("--private", type=bool, default=False, help="whether a repo that is made is private")

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot be, before anything is built."""
        for key in ("model", "data"):
            if self.config.get(key) is None:
                raise IITKitError(f"no {key}: give --config NAME.yaml, e.g. {choices(config_names())}")
        most = self.config.get("most")
        if most is not None and (most < 1 or not self.config.get("with_model")):
            raise IITKitError(f"--most {most}: expected 1 or more, and --with_model true that reads it")
        if self.config.get("private") and not self.config.get("push"):
            raise IITKitError("--private is of a dataset that is pushed: give --push user/name")
        if self.config.get("format") not in ("jsonl", "parquet"):
            raise IITKitError(f"--format {self.config.get('format')!r}: expected jsonl or parquet")

    def instantiate_classes(self) -> None:
        """Let what our classes say of their arguments through: jsonargparse wraps it in a report of its own."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            for link in causes(error):
                if isinstance(link, IITKitError):
                    raise IITKitError(str(link)) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """There is nothing to train."""
        return None


def run(command: str, arguments: Sequence[str]) -> None:
    """Report on the pairs of a config, or on its prompts and completions.

    Args:
        command: ``data``.
        arguments: what follows it.

    Raises:
        IITKitError: see :class:`iitkit.data.CounterfactualDataModule`.
    """
    rest = ["--with_model=true" if argument in ("--with-model", "--with_model") else argument for argument in arguments]
    if rest != list(arguments) and "--with_model=true" in rest:  # a bare flag; its value may still follow
        at = rest.index("--with_model=true")
        if at + 1 < len(rest) and rest[at + 1] in ("true", "false"):
            rest[at : at + 2] = [f"--with_model={rest[at + 1]}"]
    cli = Inspection(prepared(rest))
    module, data, config = cli.model, cli.datamodule, cli.config
    assert isinstance(module, InterventionModule)
    root = Path(config.get("trainer.default_root_dir") or "runs/iitkit")
    if isinstance(data, CompletionDataModule):
        for option in ("with_model", "save", "push"):
            if config.get(option):
                raise IITKitError(f"--{option} is of pairs: completions are read from a file and are as they are there")
        if not isinstance(module, ReFT):
            raise IITKitError(f"{type(module).__name__} is trained on pairs: choose data CounterfactualDataModule")
        data.bind(module)
        _reported(data.report(), root)
        return
    if not isinstance(data, CounterfactualDataModule):
        raise IITKitError(f"data {type(data).__name__}: expected CounterfactualDataModule or CompletionDataModule")
    runs = bool(config.get("with_model")) or data.only_correct
    data.bind(module, model=runs)
    found = judged(data, module, config.get("most"), data.splits) if config.get("with_model") else {}
    write_text(root / "data_report.json", json.dumps(as_plain(data, found), indent=2, ensure_ascii=False) + "\n")
    _reported(data_report(data, found), root)
    if config.get("save") or config.get("push"):
        folder = save(data, Path(config.get("save") or root / "dataset"), config.get("format"), config.get("push"))
        print(f"dataset: {folder}", flush=True)
        if config.get("push"):
            commit = push_dataset(folder, config["push"], private=config["private"])
            print(f"pushed: {config['push']} at {commit}", flush=True)


def _reported(text: str, root: Path) -> None:
    """Print a report and write it."""
    print(text, flush=True)
    write_text(root / "data_report.txt", text + "\n")
    print(f"report: {root / 'data_report.txt'}", flush=True)


def save(data: CounterfactualDataModule, folder: Path, format: Any, repo_id: str | None) -> Path:
    """Write a data module's pairs of the first epoch as a dataset."""
    model = data.source.model if isinstance(data.source, TaskPairs) else None
    splits = {
        split: rows_of(data.pools[split], data.pairs(split), data.variables, model, truths(data, split))
        for split in data.splits
    }
    card = Card(
        title=f"Counterfactual pairs: {data.source.name}",
        description=(data.task.__doc__ or "").split("\n")[0] if data.task is not None else "",
        hypothesis="" if model is None else hypothesis(model) + as_yaml(model),
        seed=data.seed,
        settings={"prefix": data.prefix, "variables": ", ".join(data.variables), "iitkit": iitkit.__version__},
        repo_id=repo_id,
    )
    return write_dataset(folder, splits, card, format)


def as_yaml(model: CausalModel) -> str:
    """Return a model as a block of YAML that ``CausalModel.from_yaml`` reads; nothing where that would be long."""
    try:
        text = yaml.safe_dump(
            to_mapping(model), allow_unicode=True, sort_keys=False, default_flow_style=None, width=120
        )
    except IITKitError:  # an open variable, or a table too large to be listed
        return ""
    return "" if len(text) > LONGEST else f"\n\nThe same as a file that iitkit reads:\n\n```yaml\n{text}```"


def truths(data: CounterfactualDataModule, split: str) -> list[str]:
    """Return each prompt's label of a split's pool, as far as prompts were kept."""
    every = data.source.truths(split)
    kept = data.kept(split)
    return every if kept is None else [every[i] for i in kept.tolist()]
