"""Atoms in the form in which Neuronpedia tells of features.

The names of the fields are those of the tables ``Neuron``, ``Activation`` and ``Explanation`` of its database
(apps/webapp/prisma/schema.prisma of hijohnnylin/neuronpedia), which SAEDashboard's export fills too
(sae_dashboard/neuronpedia/neuronpedia_export.py). A field for which there is nothing here is left out, never guessed:
histograms, correlated neurons, ids, authors, and the strength to steer with, which Neuronpedia does not count in ‖h‖.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.vectors import about, kept_evidence, layer_of, model_name, new_file
from gradatoms.errors import ConfigError
from gradatoms.files import save_whole
from gradatoms.labels.evidence import Evidence, Shown
from gradatoms.labels.label import Label, load_labels
from gradatoms.models import load_tokenizer

SOURCE_SET = "gradient-atoms"
MEANING = {
    "activations": "the code of the atom at the position of one gradient; 0 elsewhere means not measured",
    "pos_values, neg_values": "mean change of log-probability, in nats, when +atom is injected in contexts that it is "
    "active in; not the logit lens",
    "frac_nonzero": "share of the rows fitted on that the atom is active on",
    "vector": "the atom, of norm 1",
}

Tokens = Callable[[str, bool], list[str]]
"""The tokens of a text; with special tokens, or without."""


def export_neuronpedia(
    atoms: Atoms, path: str | Path, chosen: Sequence[int] = (), *, model: str | None = None
) -> dict[str, Any]:
    """Write one JSON file: ``about`` (what was exported, and what the numbers mean) and ``features``, one line an atom.

    A feature has ``modelId``, ``layer`` (``14-gradient-atoms``), ``index``, ``sourceSetName``, ``hookName``,
    ``hasVector``, ``vector`` (d numbers), and where the atom is labelled ``vectorLabel`` and ``explanations``. With
    evidence it also has ``frac_nonzero``, ``maxActApprox``, ``pos_str``, ``pos_values``, ``neg_str``, ``neg_values``,
    ``topkCosSimIndices``, ``topkCosSimValues`` (other atoms) and ``activations``: ``tokens``, ``values`` (as many),
    ``maxValue``, ``maxValueTokenIndex``, ``minValue``. The text of an activation is prompt and target; the token of the
    gradient's position carries the code. An example whose token is not found again in its text is left out.

    Args:
        chosen: atoms; none for all.
        model: where the model's tokenizer lies, if it has moved.

    Returns:
        ``path``, ``features`` and ``activations`` (how many), ``note``.

    Raises:
        OutputExistsError: ``path`` exists.
        ConfigError: no such atom, no layer in the hook's name, or no model known.
        ModelLoadError: the evidence has texts, and the model's tokenizer is not there.
    """
    name, layer = model_name(atoms) or model, layer_of(atoms.hook)
    if name is None:
        raise ConfigError("expected atoms that know their model, these do not; name it with --model")
    if layer is None:
        raise ConfigError(f"expected a hook in a layer, such as blocks.14.hook_resid_post, got {atoms.hook}")
    for atom in chosen:
        atoms[atom]
    place = {"modelId": PurePath(name).name.lower(), "layer": f"{layer}-{SOURCE_SET}"}
    evidence, _ = kept_evidence(atoms)
    labels = load_labels(atoms.path) if atoms.path else {}
    wanted = list(chosen) or list(range(len(atoms)))
    texts = any(evidence[n].top or evidence[n].active for n in wanted if n in evidence)
    split = _splitter(str(model or atoms.config["model"]["name"])) if texts else None
    counts = {"features": len(wanted), "activations": 0}

    def lines() -> Iterator[str]:
        for n in wanted:
            feature = _feature(atoms, n, place, evidence.get(n), labels.get(n), split)
            counts["activations"] += len(feature.get("activations", ()))
            yield json.dumps(feature, ensure_ascii=False, allow_nan=False)

    def write(partial: Path) -> None:
        head = json.dumps(about(atoms, chosen) | {"meaning": MEANING}, ensure_ascii=False, allow_nan=False)
        with partial.open("w", encoding="utf-8") as file:
            for i, line in enumerate(lines()):
                file.write(f",\n{line}" if i else f'{{"about": {head},\n"features": [\n{line}')
            file.write("\n]}\n")

    path = new_file(path)
    save_whole(path, write)
    return {"path": str(path), **counts, "note": f"{counts['features']} features, {counts['activations']} activations"}


def _feature(
    atoms: Atoms, n: int, place: dict[str, str], item: Evidence | None, label: Label | None, split: Tokens | None
) -> dict[str, Any]:
    here = place | {"index": str(n)}
    feature: dict[str, Any] = here | {"sourceSetName": SOURCE_SET, "hookName": atoms.hook, "hasVector": True}
    feature["vector"] = [float(str(x)) for x in atoms.W_dec[n]]  # the shortest text that is the same float32
    if label:
        said = {"description": label.label, "explanationModelName": label.teacher}
        said |= {"notes": label.sentence} if label.sentence else {}
        feature |= {"vectorLabel": label.label, "explanations": [here | said]}
    if item is None:
        return feature
    shown = sorted((*item.top, *item.active), key=lambda e: -e.weight)
    found = [_activation(e, split) for e in shown] if split else []
    feature |= {
        "frac_nonzero": item.density,
        "maxActApprox": max((e.weight for e in shown), default=0.0),
        "topkCosSimIndices": [a.atom for a in item.neighbours],
        "topkCosSimValues": [a.cosine for a in item.neighbours],
        "activations": [here | a for a in found if a],
    }
    if item.injected:
        up, down = item.injected.active.promoted_ratio, item.injected.active.demoted_ratio
        feature |= {"pos_str": [t.token for t in up], "pos_values": [t.log_ratio for t in up]}
        feature |= {"neg_str": [t.token for t in down], "neg_values": [t.log_ratio for t in down]}
    return feature


def _activation(shown: Shown, split: Tokens) -> dict[str, Any] | None:
    """The example as tokens with the code at the gradient's position; None where that is not found.

    Prompt and target are tokenised apart, as the harvest does, or as one text where there is no prompt. The position is
    the last token of the prompt, unless a token before it is marked.
    """
    before = split(shown.prompt, True) if shown.prompt else []
    tokens, at = before + split(shown.target, not before), len(before) - 1
    if shown.marked:
        whole, at = split(shown.prompt + shown.target, True), shown.position
        tokens = next((t for t in (tokens, whole) if 0 <= at < len(t) and t[at] == shown.marked), [])
    if not tokens or at < 0:
        return None
    values = [0.0] * len(tokens)
    values[at] = shown.weight
    found = {"tokens": tokens, "values": values, "maxValue": max(values)}
    return found | {"maxValueTokenIndex": values.index(max(values)), "minValue": min(values)}


def _splitter(model: str) -> Tokens:
    tokenizer = load_tokenizer(model)

    def split(text: str, special: bool) -> list[str]:
        ids = tokenizer(text, add_special_tokens=special).input_ids
        return [str(tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]

    return split
