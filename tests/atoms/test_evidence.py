"""Evidence and trials of a small dictionary: what is shown, what is kept back, what is on disk, what a kill costs."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.pushes import held_out_mask
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.examples import Example, read_examples
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.task import HarvestConfig
from gradatoms.labels import gather as gathering
from gradatoms.labels.evidence import Evidence, Shown, Trial, Trials
from gradatoms.labels.gather import gather
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.labels.places import Places
from gradatoms.labels.storage import Gathered, load_evidence, save_evidence
from gradatoms.lookahead import lookahead
from gradatoms.models import LoadedModel, load_model
from gradatoms_store import Store, open_store

CONFIG = EvidenceConfig(kl=0.05, contexts=2, tokens=5, random=3, chunk=3)


@pytest.fixture(scope="module")
def small(small_folder: Path) -> LoadedModel:
    return load_model(str(small_folder), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture(scope="module")
def store(small: LoadedModel, folder: Path) -> Store:
    harvest(small, read_examples("builtin:corrections", limit=64), folder / "s.gstore", HarvestConfig())
    return open_store(folder / "s.gstore")


@pytest.fixture(scope="module")
def atoms(store: Store, folder: Path) -> Atoms:
    return fit_store(store.path, folder / "x.atoms", OnlineConfig(n_atoms=5, epochs=2), checks=False)[0]


@pytest.fixture(scope="module")
def gathered(small: LoadedModel, atoms: Atoms, store: Store, folder: Path) -> Gathered:
    codes = load_codes(folder / "x.atoms" / "codes.h5")
    return gather(small, atoms, codes, store, folder / "evidence.h5", CONFIG)


def by_prompt(store: Store) -> dict[str, Example]:
    return {e.prompt: Example(prompt=e.prompt, target=e.target, foil=e.foil) for e in store.examples}


def test_what_is_shown_was_fitted_and_what_is_tested_was_not(gathered: Gathered, store: Store) -> None:
    held = held_out_mask(store, 0.25, 0)
    place = {record.id: record.prompt for record in store.examples}
    fitted_prompts = {place[int(e)] for e in store.rows["example"][~held]}
    held_prompts = {place[int(e)] for e in store.rows["example"][held]}
    assert not fitted_prompts & held_prompts
    for evidence in (*gathered.evidence, *gathered.null_evidence):
        shown = [e.prompt for e in (*evidence.top, *evidence.active, *evidence.near)]
        assert shown and set(shown) <= fitted_prompts
    for trials in (*gathered.trials, *gathered.null_trials):
        tested = [t.prompt for t in (*trials.active, *trials.weak, *trials.inactive)]
        assert tested and set(tested) <= held_prompts
    assert not {"concept"} & {f.name for kind in (Evidence, Shown) for f in fields(kind)}


def test_examples_are_sorted_by_code_and_near_misses_are_inactive(
    gathered: Gathered, atoms: Atoms, store: Store, folder: Path
) -> None:
    codes = load_codes(folder / "x.atoms" / "codes.h5")
    place = {record.id: record.prompt for record in store.examples}
    row_of = {place[int(e)]: i for i, e in enumerate(store.rows["example"])}
    for evidence in gathered.evidence:
        weights = [e.weight for e in evidence.top]
        assert weights == sorted(weights, reverse=True) and all(w > 0 for w in weights)
        for e in (*evidence.top, *evidence.active):
            assert codes[row_of[e.prompt], evidence.atom] == pytest.approx(e.weight)
        assert all(codes[row_of[e.prompt], evidence.atom] == 0 and e.weight == 0 for e in evidence.near)
        assert evidence.density == pytest.approx(
            (codes[np.flatnonzero(~held_out_mask(store, 0.25, 0))].tocsc()[:, [evidence.atom]].nnz)
            / int((~held_out_mask(store, 0.25, 0)).sum())
        )


def test_the_injection_is_the_lookahead_at_the_budget(gathered: Gathered, atoms: Atoms, small: LoadedModel) -> None:
    for evidence in gathered.evidence:
        moved = evidence.injected
        assert moved is not None and moved.active.kl == pytest.approx(CONFIG.kl, rel=0.1)
        contexts = [small.tokenizer(p).input_ids for p in dict.fromkeys(e.prompt for e in evidence.top)][:2]
        pairs = [(0, c) for c in range(len(contexts))]
        hook, v = small.hook(atoms.hook), atoms.W_dec[[evidence.atom]]
        for sign, found in ((1, moved.active), (-1, moved.active_minus)):
            shift = lookahead(small, hook, v, contexts, pairs, alpha=sign * moved.alpha)
            assert found.kl == pytest.approx(float(shift.kl[0]), rel=0.1)
            assert found.entropy == pytest.approx(float(shift.entropy[0]), abs=0.05)
            top = float(shift.delta_p[0].max())
            assert found.promoted[0].delta_p == pytest.approx(top, rel=0.15)  # gathered in bfloat16
            assert len(found.promoted) == len(found.demoted_ratio) == 5
        assert moved.linear_cosine_small > 0.99  # the prediction holds where the step is small
        assert moved.own_gain is not None and moved.own_gain_minus is not None
        assert moved.own_gain > moved.own_gain_minus


def test_an_atom_gains_more_on_its_own_examples(gathered: Gathered) -> None:
    gains = np.asarray([(e.injected.own_gain, e.injected.other_gain) for e in gathered.evidence if e.injected], float)
    assert gains[:, 0].mean() > gains[:, 1].mean()


def test_hard_negatives_share_the_prompt_and_leave_the_atom_alone(
    gathered: Gathered, atoms: Atoms, small: LoadedModel, store: Store, tmp_path: Path
) -> None:
    trials = [(t.atom, x) for t in gathered.trials for x in (*t.active, *t.weak) if x.other]
    assert trials
    known = by_prompt(store)
    for _, trial in trials:
        assert known[trial.prompt].target == trial.target != trial.other
    examples = [Example(prompt=x.prompt, target=x.other) for _, x in trials]
    harvest(small, examples, tmp_path / "n.gstore", HarvestConfig(hooks=(atoms.hook,)))
    found = open_store(tmp_path / "n.gstore")
    (batch,) = found.batches(atoms.hook, 4096, fields=("example",))
    codes = atoms.encode(-batch.gradients)
    values = [float(codes[row, trials[int(e)][0]]) for row, e in enumerate(batch.rows["example"])]
    assert np.mean([v < 0.02 for v in values]) > 0.9  # stored in float16, taken in bfloat16


def test_concepts_are_in_the_trials_only(gathered: Gathered, store: Store) -> None:
    names = {record.concept for record in store.examples}
    assert all(t.concept in names and 0 < t.concept_share <= 1 for t in gathered.trials)
    assert not any(t.concept for t in gathered.null_trials)
    assert set(gathered.about["concepts"]) == names


def test_what_foretells_the_effect_is_a_cosine(gathered: Gathered) -> None:
    known = [t.foretold for t in gathered.trials if t.foretold]
    assert known and all(-1 <= getattr(f, x.name) <= 1 for f in known for x in fields(f))


def test_evidence_comes_back(gathered: Gathered, folder: Path, tmp_path: Path) -> None:
    assert load_evidence(folder / "evidence.h5") == gathered
    odd = replace(
        gathered.evidence[0],
        injected=None,
        top=(Shown("Was ist\nHeiß?", " ß🧪", None, 0.5), Shown("", "", "", 0.25, 3, "ض")),
        coherence=None,
        stability=0.5,
    )
    kept = Gathered([odd], [Trials(atom=0, active=(Trial("p", "t", "", 1.0),))], [], [], {"kl": 0.5})
    save_evidence(tmp_path / "e.h5", kept)
    assert load_evidence(tmp_path / "e.h5") == kept
    save_evidence(tmp_path / "e.h5", Gathered([], [], [], []))
    assert load_evidence(tmp_path / "e.h5").evidence == []


def test_damaged_evidence_is_refused(gathered: Gathered, tmp_path: Path) -> None:
    path = tmp_path / "evidence.h5"
    save_evidence(path, gathered)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(AtomsFormatError, match=r"evidence\.h5"):
        load_evidence(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["trials/active/prompt"]
    with pytest.raises(AtomsFormatError, match="atoms label") as error:
        load_evidence(path)
    assert "\n" not in str(error.value)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 1
    with pytest.raises(AtomsFormatError, match="format"):
        load_evidence(path)


def test_a_stopped_gathering_goes_on(
    gathered: Gathered, small: LoadedModel, atoms: Atoms, store: Store, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    codes, path = load_codes(folder / "x.atoms" / "codes.h5"), tmp_path / "evidence.h5"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "lookahead" and done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(small, atoms, codes, store, path, CONFIG, progress=stop)
    assert not path.exists() and len(list((tmp_path / "evidence.partial").glob("0*.h5"))) == 1
    ran: list[range] = []
    chunk = gathering._Work.chunk

    def counted(self: gathering._Work, members: range) -> Gathered:
        ran.append(members)
        return chunk(self, members)

    monkeypatch.setattr(gathering._Work, "chunk", counted)
    assert gather(small, atoms, codes, store, path, CONFIG) == gathered
    assert ran == [range(3, 6), range(6, 8)]
    assert not (tmp_path / "evidence.partial").exists()


@pytest.mark.parametrize("changes", [{"kl": 0.0}, {"contexts": 0}, {"random": 1}, {"chunk": 0}])
def test_settings_are_checked(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes)).replace("kl", "KL")):
        EvidenceConfig(**changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def everywhere(small: LoadedModel, folder: Path) -> Store:
    """Rows at every position, of examples with a target of several tokens."""
    examples = read_examples("builtin:corrections", limit=4)
    harvest(small, examples, folder / "all.gstore", HarvestConfig(positions="all"))
    return open_store(folder / "all.gstore")


def test_places_show_what_came_before_and_what_was_to_follow(everywhere: Store, small: LoadedModel) -> None:
    places = Places(everywhere, small, range(everywhere.n_rows))
    kinds = set()
    for row in range(everywhere.n_rows):
        shown, example = places.shown(row, 0.5), places.example(row)
        context = small.decode(list(places.context(row)))
        text = example.prompt + example.target
        assert text.startswith(context) and shown.position == places.position(row)
        if shown.marked:  # within the prompt
            kinds.add("within")
            assert (shown.prompt, shown.target) == (example.prompt, example.target)
            assert context.endswith(shown.marked) and not places.is_last(row)
        elif shown.prompt == example.prompt:
            kinds.add("last")
            assert (context, shown.target) == (example.prompt, example.target) and places.is_last(row)
        else:
            kinds.add("behind")
            assert shown.prompt == context and text.startswith(context + shown.target)
    assert kinds == {"within", "last", "behind"}
