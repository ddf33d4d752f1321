"""What a set says of itself is what is in it, and the Hub's own reader understands the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from algorist import store
from algorist.data import cards, sets
from algorist.data.curate import Dpo, Sft
from curation import draw, problem, told, world, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all four sets."""
    folder = tmp_path_factory.mktemp("cards")
    write_run(folder, *world(160), shards=2)
    for name in sets.SETS:
        draw(folder, name, {"dpo": Dpo(levels=(), max_auc=1.0), "sft": Sft(keep_easier=1.0)}.get(name))
    return folder


def card(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / "sets" / name / "card.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sets.SETS)
def test_a_card_counts_what_is_there(root: Path, name: sets.Name) -> None:
    found, records = card(root, name), store.read(root / "sets" / name, sets.KIND[name])
    manifest = store.manifest(root / "sets" / name)
    assert (found["rows"], found["id"], found["set"]) == (len(records), manifest.id, name)
    assert found["problems"] == len({one.problem_id for one in records})
    for column in ("source", "level", "domain", "licence"):
        values = [getattr(one, column) for one in records]
        assert found[column] == {one: values.count(one) for one in set(values)}
    assert sum(found["pass_rate"].values()) == len(records)
    assert found["dropped"] == manifest.dropped
    assert found["parents"] == {part: store.manifest(root / part).id for part in found["parents"]}
    assert list(found["parents"].values()) == list(manifest.parents)
    entered = found["entered"]["count"]
    assert entered == len(store.read(root / "problems" if name == "rlvr" else root / "rollouts", _kind(name)))


def _kind(name: str) -> type:
    from algorist.records import Problem, Rollout

    return Problem if name == "rlvr" else Rollout


def test_lengths_are_those_of_the_responses(root: Path) -> None:
    lengths = sorted(one.num_tokens for one in store.read(root / "sets" / "midtrain", sets.KIND["midtrain"]))
    found = card(root, "midtrain")["tokens"]["response"]
    assert (found["0 %"], found["100 %"], found["mean"]) == (
        lengths[0],
        lengths[-1],
        round(sum(lengths) / len(lengths)),
    )
    assert found["50 %"] == lengths[(len(lengths) - 1) // 2]
    assert set(card(root, "dpo")["tokens"]) == {"chosen", "rejected"} and card(root, "rlvr")["tokens"] == {}


@pytest.mark.parametrize("name", sets.SETS)
def test_the_hub_reads_the_front_matter(root: Path, name: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    front = hub.DatasetCard((root / "sets" / name / "README.md").read_text(encoding="utf-8")).data.to_dict()
    assert front["license"] == ["mit"] and front["size_categories"] == ["n<1K"]
    assert front["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}]
    assert front["tags"][-1] == name


def test_the_page_shows_the_tables(root: Path) -> None:
    page = (root / "sets" / "dpo" / "README.md").read_text(encoding="utf-8")
    titles = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert titles == ["Levels", "Domains", "Sources", "Licences", "Lengths", "Pass rates", "What form alone tells",
                      "Left out", "Settings", "Drawn from"]  # fmt: skip
    assert "| **all of these** |" in page and "| `dpo.max_auc` | `1.0` |" in page
    dpo = card(root, "dpo")
    assert f"| entered | {dpo['entered']['count']:,} |" in page and f"| kept | {2 * dpo['rows']:,} |" in page
    assert "| `sft.level_weights.high_school` | `2.0` |" in (root / "sets/sft/README.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        assert not line.startswith("|") or line.endswith(" |"), "no cell breaks out of its row"


def test_an_empty_set_has_a_card_too(tmp_path: Path) -> None:
    write_run(tmp_path, [problem(1)], [told(problem(1), False)])
    for name in ("midtrain", "dpo"):
        assert draw(tmp_path, name) == []  # type: ignore[arg-type]
        assert card(tmp_path, name)["rows"] == 0 and (tmp_path / "sets" / name / "README.md").exists()


def test_hostile_names_stay_in_their_cells(tmp_path: Path) -> None:
    odd = problem(1, domain="a | b\n## c", source="x\n---\n|", licence="CC BY | me")
    write_run(tmp_path, [odd], [told(odd, True)])
    draw(tmp_path, "midtrain")
    page = (tmp_path / "sets" / "midtrain" / "README.md").read_text(encoding="utf-8")
    assert "| a \\| b ## c | 1 | 100.0 % |" in page and "| x --- \\| |" in page and 'license: ["other"]' in page


def test_licences_are_spelled_as_the_hub_spells_them() -> None:
    assert cards.licences({"MIT": 3, "Apache 2.0": 1, "cc-by-4.0": 1}) == ["apache-2.0", "cc-by-4.0", "mit"]
    assert cards.licences({"MIT License": 1, "": 2, "of my own": 1}) == ["mit", "other", "unknown"]


def test_many_sources_are_summed_up(tmp_path: Path) -> None:
    problems = [problem(number, source=f"source {number:02}") for number in range(40)]
    write_run(tmp_path, problems, [told(each, True) for each in problems])
    draw(tmp_path, "midtrain")
    page = (tmp_path / "sets" / "midtrain" / "README.md").read_text(encoding="utf-8")
    assert "| 11 others | 11 | 27.5 % |" in page and len(card(tmp_path, "midtrain")["source"]) == 40
