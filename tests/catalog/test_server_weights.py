"""The catalog of atoms of weight gradients: its pages say ‖W‖ and documents, and steering leaves the weights as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_fixtures import HOSTILE, SCRIPT, Served, labelled_folder, served

from gradatoms.dictionary.base import Atoms
from gradatoms.gradients.weight_harvest import WeightConfig, harvest_weights
from gradatoms.models import LoadedModel
from gradatoms.weight_steps import Way, WeightStep, atom_step

ATOMS = "0,1"
STEER = {"prompt": "The capital", "atoms": ATOMS, "alpha_0": "0.02", "alpha_1": "-0.01", "auto": "0", "max_tokens": "4"}


@pytest.fixture(scope="module")
def of_weights(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = labelled_folder(
        small_folder,
        tmp_path_factory.mktemp("weights"),
        lambda loaded, examples, out, config: harvest_weights(loaded, examples, out, config, WeightConfig()),
    )
    with served(folder, model=small_folder) as found:
        yield found


def events(site: Served, **changes: str) -> list[dict[str, object]]:
    with site.client() as client:
        found = client.post("/steer/stream", data=STEER | changes, headers={"x-token": site.token})
    assert found.status_code == 200, found.text
    return [json.loads(line) for line in found.text.splitlines()]


@pytest.mark.parametrize("path", ["/", "/atom/0", "/gradient", f"/steer?atoms={ATOMS}"])
def test_pages_speak_of_weights(of_weights: Served, path: str) -> None:
    with of_weights.client() as client:
        text = client.get(path).text
    assert text.rstrip().endswith("</html>") and "‖h‖" not in text and "Foil" not in text
    assert ("‖W‖" in text) == path.startswith(("/atom", "/steer"))


@pytest.mark.parametrize("way", ["natural", "sqrt", "documents"])
def test_a_step_streams_both_texts_and_is_taken_back(of_weights: Served, way: str) -> None:
    plain = [e for e in events(of_weights, way=way, alpha_0="0.5") if e["kind"] == "plain"][-1]
    found = events(of_weights, way=way, auto="1", kl="0.05")
    assert found[0]["kl"] == pytest.approx(0.05, rel=0.1)
    first, second = found[0]["alpha"]  # type: ignore[misc]
    assert first == pytest.approx(-2 * second, rel=1e-2)
    assert [e["kind"] for e in found[-2:]] == ["effects", "end"] and not found[-1]["cut"]
    assert [e for e in found if e["kind"] == "plain"][-1] == plain


def test_a_step_is_made_once_while_only_its_strength_changes(
    of_weights: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, str]] = []

    def counted(loaded: LoadedModel, atoms: Atoms, atom: int, way: Way) -> WeightStep:
        made.append((atom, way))
        return atom_step(loaded, atoms, atom, way)

    monkeypatch.setattr("gradatoms.catalog.wheel.atom_step", counted)
    events(of_weights, way="sqrt")  # whatever was kept before is of another way from here on
    made.clear()
    first = events(of_weights, way="documents")
    assert made == [(0, "documents"), (1, "documents")]
    assert events(of_weights, way="documents") == first
    events(of_weights, way="documents", alpha_0="0.05")
    assert len(made) == 2
    events(of_weights, way="sqrt")
    events(of_weights, way="documents", atoms="1", alpha_0="0.02")
    assert made[2:] == [(0, "sqrt"), (1, "sqrt"), (1, "documents")]


def test_a_strength_is_of_the_step_as_it_is(of_weights: Served) -> None:
    weak, strong = (events(of_weights, alpha_0=a, alpha_1="0")[0] for a in ("0.01", "0.04"))
    assert weak["alpha"] == [0.01, 0.0] and float(str(weak["kl"])) < float(str(strong["kl"]))


def test_a_way_that_is_none_is_refused(of_weights: Served) -> None:
    with of_weights.client() as client:
        found = client.post("/steer", data=STEER | {"way": "x", "token": of_weights.token})
    assert found.status_code == 400 and "expected way natural, sqrt, documents" in found.text


def test_a_text_and_its_documents(of_weights: Served) -> None:
    """A document of the store is, of all, what makes itself likelier most, or near it; its text is escaped."""
    asked = {"prompt": HOSTILE[0].prompt, "target": HOSTILE[0].target, "token": of_weights.token}
    with of_weights.client() as client:
        found = client.post("/gradient", data=asked)
    assert found.status_code == 200 and "share an atom with it" in found.text
    likelier = found.text.split("Make it likelier")[1].split("Make it less likely")[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; is" in likelier
    assert '<th class="number">score</th>' in likelier
    assert SCRIPT not in found.text and "<img" not in found.text
