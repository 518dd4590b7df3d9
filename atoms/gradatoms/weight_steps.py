"""Steer in weight space: an atom of weight gradients as a step θ + α v of the weights, both signs, alone or with others.

Three ways from an atom to v (``Way``):

    natural     Q_S (d / √(λ+ε)) Q_Aᵀ: the natural-gradient step, from the kept components
    sqrt        Q_S (√(λ+ε) ∘ d) Q_Aᵀ: the atom as a gradient, from the kept components (the paper's way, arXiv 2603.14665)
    documents   −Σ_i c_i (F + ε)⁻¹ G_i: the mean of its documents' raw gradients, weighted by their codes, under the inverse of the
                damped curvature of the whole space

d the atom, a unit row of pushes, so +v lowers the loss of the atom's documents. α is in units of ‖W‖, the Frobenius norm of the
modules' weights together: the step is α‖W‖ v/‖v‖.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from gradatoms.calibration import Search
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.provenance import folder_of, require_same_model, store_of
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.gradients.batches import by_budget, pad
from gradatoms.gradients.curvature import Curvature
from gradatoms.gradients.linear import LinearSite, linear_sites
from gradatoms.gradients.passes import WatchedPass, raw_gradients
from gradatoms.gradients.projection import FILE, Projection, dense
from gradatoms.gradients.sequences import tokenize_usable
from gradatoms.gradients.task import example_of
from gradatoms.gradients.tuning import document_tokens
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms.steering import Meter, Steered, generate
from gradatoms_store import Store

Way = Literal["natural", "sqrt", "documents"]
WAYS: tuple[str, ...] = get_args(Way)
START = 2e-3
"""Strength that a search begins with, in units of ‖W‖."""
MOST = 20.0
"""Furthest strength of a search."""
DOCUMENTS = 128
"""Documents of largest code that a step of way ``documents`` is made of."""


@dataclass(frozen=True)
class WeightStep:
    """A direction of the weights of some modules, of Frobenius norm 1 over all of them together."""

    parts: dict[str, torch.Tensor]
    """(d_out, d_in) by module, on the CPU."""

    @classmethod
    def of(cls, parts: Mapping[str, torch.Tensor]) -> WeightStep:
        """Brought to norm 1.

        Raises:
            ConfigError: it is zero, or not finite.
        """
        norm = float(sum(float(p.double().square().sum()) for p in parts.values())) ** 0.5
        if not norm > 0 or norm == float("inf"):
            raise ConfigError(f"expected a step with a direction, its norm is {norm}")
        return cls({name: (p / norm).float().cpu() for name, p in parts.items()})


def blend(steps: Sequence[tuple[WeightStep, float | int]]) -> tuple[WeightStep, float]:
    """Σ w v over several steps, as a step of norm 1, and the norm that it had.

    Raises:
        ConfigError: it is zero.
    """
    parts: dict[str, torch.Tensor] = {}
    for step, weight in steps:
        for name, part in step.parts.items():
            parts[name] = parts[name] + weight * part if name in parts else weight * part
    norm = float(sum(float(p.double().square().sum()) for p in parts.values())) ** 0.5
    return WeightStep.of(parts), norm


def require_weights(atoms: Atoms) -> Projection:
    """The components that atoms of weight gradients are made of.

    Raises:
        ConfigError: atoms of activation gradients; AtomsFormatError: their folder lacks the components.
    """
    if atoms.space != "weights":
        raise ConfigError(
            f"expected atoms of weight gradients (atoms harvest --space weights), these are of activations at {atoms.hook}; steer "
            "without --weights"
        )
    return Projection.load(folder_of(atoms) / FILE)


def random_step(atoms: Atoms, way: Way = "natural", seed: int = 0) -> WeightStep:
    """A Gaussian direction of the kept components, taken back to the weights as an atom is: the null of a step.

    Raises:
        ConfigError: of way ``documents``, which has no components; as ``require_weights``.
    """
    if way == "documents":
        raise ConfigError("expected way natural or sqrt of a random direction, got documents")
    projection = require_weights(atoms)
    noise = np.random.default_rng([seed, 1]).standard_normal(projection.d).astype(np.float32)
    return WeightStep.of(dense(projection.unproject(noise, way)))


def atom_step(
    loaded: LoadedModel,
    atoms: Atoms,
    atom: int,
    way: Way = "natural",
    *,
    store_path: str | Path | None = None,
    documents: int = DOCUMENTS,
    progress: Progress = silent,
) -> WeightStep:
    """The step of one atom.

    Args:
        store_path: the store, where it has moved; way ``documents`` reads examples and curvature from it.
        documents: how many, of largest code, for way ``documents``.

    Raises:
        ConfigError: no such atom or way, atoms of activations, or an atom without documents.
        AtomsFormatError: components, codes, store or curvature are not at hand; ModelMismatchError: other weights.
    """
    if way not in WAYS:
        raise ConfigError(f"expected a way of {', '.join(WAYS)}, got {way!r}")
    require_same_model(atoms, loaded)
    projection = require_weights(atoms)
    index = atoms[atom].index
    if way != "documents":
        return WeightStep.of(dense(projection.unproject(atoms.W_dec[index], way)))
    store = store_of(atoms, store_path)
    column = load_codes(folder_of(atoms) / "codes.h5").tocsc()[:, [index]].tocoo()
    order = np.argsort(-column.data)[:documents]
    if not len(order) or not column.data[order[0]] > 0:
        raise ConfigError(f"expected documents that atom {index} is active on, there are none; choose another")
    return documents_step(loaded, store, column.coords[0][order], column.data[order], progress=progress)


def documents_step(
    loaded: LoadedModel, store: Store, rows: np.ndarray, weights: np.ndarray, *, progress: Progress = silent
) -> WeightStep:
    """−Σ_i w_i (F + ε)⁻¹ G_i / ‖row_i‖ of some rows' documents: each counts as its unit row does in the dictionary.

    Args:
        rows: row numbers of the store; weights: w, one each.

    Raises:
        AtomsFormatError: the store has no curvature (random components, or an unfinished harvest).
    """
    hook = store.hooks[0]
    path = Path(store.path) / "curvature.safetensors"
    if not path.exists():
        raise AtomsFormatError(
            f"expected the curvature of the store at {path}, found none; steer by another way, or harvest with --projection eigen"
        )
    curvature = Curvature.load(path)
    sites = sites_of(loaded, [m.name for m in curvature.modules])
    norms = store.read(hook, rows, fields=("example",)).norms
    ids = store.rows["example"][rows]
    weight = {int(i): float(w / n) for i, w, n in zip(ids, weights, norms, strict=True) if n > 0}
    examples = [(record.id, example_of(record)) for record in store.iter_examples() if record.id in weight]
    sequences, _ = tokenize_usable(loaded, [e for _, e in examples], objective=store.header.objective)
    branches = [branch for one in sequences for branch in one]
    take = WatchedPass(loaded, sites)
    total = [torch.zeros(s.d_out, s.d_in, device=loaded.device) for s in sites]
    done = 0
    for group in by_budget(branches, document_tokens(loaded)):
        w = np.asarray([weight[examples[b.example][0]] for b in group], dtype=np.float32)
        for part, found in zip(total, raw_gradients(take, pad(group, loaded.device), w), strict=True):
            part += found
        done += len(group)
        progress("gradients", done, len(branches))
    parts = {s.name: -curvature.of(s.name).precondition(g.cpu()) for s, g in zip(sites, total, strict=True)}
    return WeightStep.of(parts)


def sites_of(loaded: LoadedModel, names: Sequence[str]) -> list[LinearSite]:
    """The modules of these names.

    Raises:
        ConfigError: the model lacks one.
    """
    known = linear_sites(loaded)
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(
            f"expected {loaded.fingerprint.name} to have {missing[0]} (and {len(names) - 1} more modules), it has no such linear module; "
            "load the model, and the adapter, that the gradients were taken of"
        )
    return [known[name] for name in names]


@contextmanager
def applied_step(loaded: LoadedModel, step: WeightStep, alpha: float | int) -> Iterator[None]:
    """While open the weights are θ + α‖W‖ v; afterwards, also on exceptions, they are what they were to the last bit."""
    sites = sites_of(loaded, list(step.parts))
    with torch.no_grad():
        kept = [site.weight.clone() for site in sites]
    scale = float(alpha) * weight_norm(sites)
    try:
        with torch.no_grad():
            for site in sites:
                weight = site.weight
                weight += (scale * step.parts[site.name]).to(weight.device, weight.dtype)
        yield
    finally:
        with torch.no_grad():
            for site, before in zip(sites, kept, strict=True):
                site.weight.copy_(before)


def weight_norm(sites: Sequence[LinearSite]) -> float:
    """‖W‖: the Frobenius norm of the modules' weights together."""
    return sum(float(site.weight.double().square().sum()) for site in sites) ** 0.5


def step_effect(meter: Meter, loaded: LoadedModel, step: WeightStep, alpha: float | int) -> float:
    """Mean KL(plain ‖ stepped) on a meter's prompts, nats a token."""
    return float(meter.under(lambda _: applied_step(loaded, step, alpha)).mean())


def calibrate_step(
    meter: Meter,
    loaded: LoadedModel,
    step: WeightStep,
    kl: float | int,
    *,
    sign: int = 1,
    most: float = MOST,
    tolerance: float = 0.05,
) -> tuple[float, float]:
    """The α whose effect on the meter's prompts is ``kl`` nats, and the effect that it has.

    Args:
        sign: −1 looks among negative strengths, away from the atom; the α that comes back is negative then.
        most: furthest strength; where even that has a smaller effect it comes back.

    Raises:
        ConfigError: ``kl`` or ``most`` is not positive.
    """
    if not kl > 0 or not most > 0:
        raise ConfigError(f"expected a KL budget and a furthest strength above 0, got {kl} and {most}")
    search = Search(1, float(kl), float(most), float(tolerance), np.asarray([min(START, most)]))
    while not search.done.all():
        search.tell(np.arange(1), np.asarray([step_effect(meter, loaded, step, sign * float(search.alpha[0]))]))
    return sign * float(search.alpha[0]), float(search.kl[0])


def generate_stepped(
    loaded: LoadedModel,
    step: WeightStep,
    prompt: str,
    *,
    alpha: float | int | None = None,
    kl: float | int = 0.5,
    max_tokens: int = 24,
    seed: int | None = None,
) -> Steered:
    """Continuations of ``prompt`` without and with a step of the weights.

    Args:
        alpha: strength in units of ‖W‖; None finds the one whose KL on this prompt is ``kl`` nats.
        seed: sample both with this seed, at temperature 1; None is greedy.
    """
    if not prompt:
        raise ConfigError("expected a prompt of at least one character, got an empty one")
    meter = Meter(loaded, [prompt])
    if alpha is None:
        alpha, effect = calibrate_step(meter, loaded, step, kl)
    else:
        effect = step_effect(meter, loaded, step, alpha)
    plain = generate(loaded, prompt, max_tokens, seed=seed)
    with applied_step(loaded, step, alpha):
        steered = generate(loaded, prompt, max_tokens, seed=seed)
    return Steered(float(alpha), effect, plain, steered)
