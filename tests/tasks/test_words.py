"""The word lists under datasets/words: counts, uniqueness, and that every config loads."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset

ROOT = Path(__file__).parents[2] / "datasets"
WORDS = ROOT / "words"
COLUMNS = {"names": ["name", "gender"], "nouns": ["singular", "plural"], "places": ["place"], "objects": ["object"]}


def read(config: str) -> list[dict[str, str]]:
    text = (WORDS / f"{config}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def column(config: str, key: str) -> list[str]:
    return [row[key] for row in read(config)]


@pytest.mark.parametrize(("config", "least"), [("names", 260), ("nouns", 110), ("places", 45), ("objects", 45)])
def test_rows(config: str, least: int) -> None:
    rows = read(config)
    assert len(rows) >= least
    assert all(list(row) == COLUMNS[config] for row in rows)
    assert all(word.isascii() and word.isalpha() for row in rows for word in row.values())


def test_names_are_unique_and_balanced() -> None:
    rows = read("names")
    female, male = ([row["name"] for row in rows if row["gender"] == gender] for gender in ("female", "male"))
    assert len(female) == len(male) >= 130
    assert len(rows) == len(female) + len(male)
    assert len(set(female + male)) == len(rows)  # also: no name has both genders
    assert all(name.istitle() for name in female + male)
    assert rows == sorted(rows, key=lambda row: (row["gender"], row["name"]))


def test_nouns_differ_in_number() -> None:
    singular, plural = column("nouns", "singular"), column("nouns", "plural")
    assert len(set(singular + plural)) == 2 * len(singular)  # unique, and no plural equals a singular
    assert singular == sorted(singular)


def test_places_and_objects() -> None:
    places, objects = column("places", "place"), column("objects", "object")
    assert len(set(places + objects)) == len(places) + len(objects)
    assert places == sorted(places)
    assert objects == sorted(objects)
    assert not [word for word in objects if word[0] in "aeiou"]  # "a", not "an"


@pytest.mark.parametrize("config", COLUMNS)
def test_config_loads(config: str, tmp_path: Path) -> None:
    data = load_dataset(str(WORDS.resolve()), config, split="train", cache_dir=str(tmp_path))
    assert data.to_list() == read(config)


def test_no_python_files() -> None:
    assert not list(ROOT.rglob("*.py"))
