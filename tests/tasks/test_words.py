"""The word lists under datasets/words: counts, uniqueness, and that every config loads."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset

ROOT = Path(__file__).parents[2] / "datasets"
WORDS = ROOT / "words"
COLUMNS = {
    "adjectives": ["adjective", "sentiment"],
    "capitals": ["country", "capital"],
    "cities": ["city", "country", "continent", "language"],
    "colours": ["colour"],
    "events": ["event"],
    "names": ["name", "gender"],
    "nouns": ["singular", "plural"],
    "objects": ["object"],
    "places": ["place"],
    "things": ["thing"],
    "verbs": ["singular", "plural"],
}
LEAST = {
    "adjectives": 60,
    "capitals": 100,
    "cities": 250,
    "colours": 12,
    "events": 70,
    "names": 260,
    "nouns": 110,
    "objects": 45,
    "places": 45,
    "things": 40,
    "verbs": 40,
}


def read(config: str) -> list[dict[str, str]]:
    text = (WORDS / f"{config}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def column(config: str, key: str) -> list[str]:
    return [row[key] for row in read(config)]


def test_every_list_is_described() -> None:
    assert {path.stem for path in WORDS.glob("*.jsonl")} == set(COLUMNS) == set(LEAST)
    readme = (WORDS / "README.md").read_text(encoding="utf-8")
    for config in COLUMNS:
        assert f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}.jsonl\n" in readme
        assert f"| `{config}` | `{config}.jsonl` | " in readme
        assert f"- **{config}**: " in readme


@pytest.mark.parametrize("config", COLUMNS)
def test_rows(config: str) -> None:
    rows = read(config)
    assert len(rows) >= LEAST[config]
    assert all(list(row) == COLUMNS[config] for row in rows)
    for row in rows:
        for word in row.values():
            assert word.isascii(), word
            assert all(part.isalpha() for part in word.split(" ")), word
            assert " " not in word or config == "capitals" or word in ("North America", "South America"), word


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


@pytest.mark.parametrize(("config", "key"), [("colours", "colour"), ("things", "thing"), ("verbs", "plural")])
def test_lists_of_words(config: str, key: str) -> None:
    found = column(config, key)
    assert found == sorted(set(found))


def test_adjectives_are_balanced() -> None:
    rows = read("adjectives")
    good, bad = ([row["adjective"] for row in rows if row["sentiment"] == kind] for kind in ("positive", "negative"))
    assert len(good) == len(bad)
    assert len(rows) == len(set(good + bad)) == len(good) + len(bad)
    assert rows == sorted(rows, key=lambda row: (row["sentiment"], row["adjective"]))


def test_verbs_have_both_forms() -> None:
    for row in read("verbs"):
        assert row["singular"] in (row["plural"] + "s", row["plural"] + "es")
    assert {"singular": "watches", "plural": "watch"} in read("verbs")


def test_capitals() -> None:
    rows = read("capitals")
    countries, capitals = column("capitals", "country"), column("capitals", "capital")
    assert countries == sorted(set(countries))
    assert len(set(capitals)) == len(rows)
    assert not set(countries) & set(capitals)
    for country, capital in {"Australia": "Canberra", "Turkey": "Ankara", "Brazil": "Brasilia"}.items():
        assert {"country": country, "capital": capital} in rows


def test_cities() -> None:
    rows = read("cities")
    cities = column("cities", "city")
    assert cities == sorted(set(cities))
    continents = {"Africa", "Asia", "Europe", "North America", "South America"}
    assert set(column("cities", "continent")) == continents
    of_country: dict[str, set[str]] = {}
    for row in rows:
        of_country.setdefault(row["country"], set()).add(row["continent"])
    assert all(len(found) == 1 for found in of_country.values())
    assert len(of_country) >= 60
    languages = set(column("cities", "language"))
    assert len(languages) >= 30
    assert not languages & set(of_country)
    assert not (languages | set(of_country)) & continents
    assert {row["language"] for row in rows if row["country"] == "Switzerland"} == {"French", "German", "Italian"}
    capitals = {row["capital"]: row["country"] for row in read("capitals")}
    for row in rows:  # the two lists agree
        assert capitals.get(row["city"], row["country"]) == row["country"]


@pytest.mark.parametrize("config", COLUMNS)
def test_config_loads(config: str, tmp_path: Path) -> None:
    data = load_dataset(str(WORDS.resolve()), config, split="train", cache_dir=str(tmp_path))
    assert data.to_list() == read(config)


def test_no_python_files() -> None:
    assert not list(ROOT.rglob("*.py"))
