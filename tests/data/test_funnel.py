"""The funnel adds up, in numbers and in the picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from algorist import store
from algorist.data import funnel
from algorist.data.funnel import Funnel, Step
from algorist.data.picture import picture
from algorist.records import Preference, Verdict


def test_every_step_adds_up_and_agrees_with_the_records(smoke_run: Path) -> None:
    found = funnel.collect(smoke_run)
    steps = {(step.lane, step.name): step for step in found.steps}
    for step in found.steps:
        assert step.entered == step.left + sum(step.dropped.values()) and min(step.dropped.values(), default=1) > 0
    right = sum(verdict.right is True for verdict in store.read(smoke_run / "verdicts", Verdict))
    assert steps["rollouts", "judged right"].left == right
    assert steps["rollouts", "judged right"].entered == steps["set of midtrain", "examples chosen"].entered == 240
    pairs = len(store.read(smoke_run / "sets" / "dpo", Preference))
    assert steps["set of dpo", f"rollouts in {pairs} preferences"].entered == 240
    assert steps["set of sft", "in the tokens of the model"].left == store.manifest(smoke_run / "sft" / "data").rows


def test_what_is_written_is_the_same_funnel_three_times(smoke_run: Path) -> None:
    found = funnel.collect(smoke_run)
    assert (smoke_run / "funnel.txt").read_text(encoding="utf-8") == funnel.text_of(smoke_run)
    raw = json.loads((smoke_run / "funnel.json").read_text(encoding="utf-8"))
    assert [step["left"] for step in raw["steps"]] == [step.left for step in found.steps]
    texts = [node.text or "" for node in ET.parse(smoke_run / "funnel.svg").iter() if node.tag.endswith("text")]
    for step in found.steps:
        assert any(text.startswith(f"{step.left:,} of {step.entered:,}") for text in texts), step


def test_a_bar_is_as_long_as_what_it_counts() -> None:
    drawn = picture(
        [("first <&>", "problems", {"a": 50}, 150), ("second", "problems", {f"r{i}": 1 for i in range(12)}, 38)]
    )
    bars = [
        node.attrib for node in ET.fromstring(drawn).iter() if node.tag.endswith("rect") and node.get("height") == "18"
    ]
    kept, lost, second, *rest = (float(bar["width"]) for bar in bars)
    assert kept == pytest.approx(3 * lost) and kept + lost == pytest.approx(560)
    assert second == pytest.approx(560 * 38 / 200, abs=0.01) and len(rest) == 12
    assert "first &lt;&amp;&gt;" in drawn and "for 5 other reasons" in drawn


def test_half_a_run_has_a_funnel_too(tmp_path: Path) -> None:
    assert funnel.collect(tmp_path) == Funnel((), ()) and funnel.text_of(tmp_path) == ""
    assert Step.of("x", "y", {"b": 1, "a": 1, "c": 2, "none": 0}, 3) == Step("x", "y", 7, {"c": 2, "a": 1, "b": 1}, 3)
