"""``atoms harvest --space weights``: curvature, components, and a store with one row a document.

The store's folder also holds ``curvature.safetensors`` (whole eigenbases), ``projection.safetensors`` (the kept components) and
``weights.json`` (modules, and the parameters that no row holds). Until the store is complete the curvature lies beside it, as
``NAME.gstore.curvature.safetensors``, so that a harvest that was interrupted goes on in the same components.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gradatoms.errors import ConfigError
from gradatoms.examples import Example
from gradatoms.files import write_json
from gradatoms.gradients.curvature import Curvature, CurvatureConfig, curvature_about, fit_curvature
from gradatoms.gradients.harvest import HarvestReport, harvest, taken
from gradatoms.gradients.linear import LinearSite, find_linear, uncovered
from gradatoms.gradients.plan import HarvestPlan
from gradatoms.gradients.projection import FILE, Projection, ProjectionConfig, eigen_projection, random_projection
from gradatoms.gradients.ranks import Ranks
from gradatoms.gradients.task import HarvestConfig, require_document_rows
from gradatoms.gradients.weights import Weights
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent

CURVATURE = "curvature.safetensors"
ABOUT = "weights.json"


@dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """Whose weight gradients are harvested, and in which components."""

    modules: tuple[str, ...] = ()
    """Globs, ends of names, or ``all``; empty for LoRA's A and B where there is an adapter, else query and value projections."""
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    curvature: CurvatureConfig = field(default_factory=CurvatureConfig)
    sketch: int = 16
    """Directions a side of the sketch of whole gradients, from which norms and coherence are read; 0 for none."""

    def __post_init__(self) -> None:
        if self.sketch < 0:
            raise ConfigError(f"expected a sketch of 0 or more directions, got {self.sketch}")


def harvest_weights(
    loaded: LoadedModel,
    examples: Sequence[Example],
    out: str | Path,
    config: HarvestConfig,
    weights: WeightConfig,
    *,
    curvature: str | Path | None = None,
    resume: bool = False,
    reference: LoadedModel | None = None,
    shard: tuple[int, int] | None = None,
    ranks: Ranks | None = None,
    progress: Progress = silent,
    planned: Callable[[HarvestPlan], None] | None = None,
) -> HarvestReport:
    """Write one row a document to the store ``out``; arguments as for ``harvest``.

    Args:
        curvature: a file of another store's, so that rows of both are in the same components; None measures it here.

    Raises:
        ConfigError: no such module, or a curvature of other modules or weights; otherwise as ``harvest``.
    """
    out, ranks = Path(out), ranks or Ranks.here()
    require_document_rows(config, ranks)
    if out.exists() and not resume and shard is None:
        raise taken(out)
    if shard is not None and curvature is None and weights.projection.kind == "eigen":
        raise ConfigError(
            "expected --curvature with --shard, so that all jobs have the same components, got none; harvest a part without --shard "
            "first and name its curvature.safetensors"
        )
    sites = find_linear(loaded, weights.modules)
    with ranks.group():
        path = None
        if weights.projection.kind == "eigen":
            path = (
                Path(curvature)
                if curvature is not None
                else _measured(loaded, examples, sites, out, weights, ranks, progress)
            )
        made = _weights(loaded, sites, weights, path)
        report = harvest(
            loaded, examples, out, config, resume=resume, reference=reference, weights=made, shard=shard, ranks=ranks,
            progress=progress, planned=planned,
        )  # fmt: skip
        if ranks.rank == 0:
            _keep(loaded, out, made, weights, path, own=curvature is None)
    return report


def _measured(
    loaded: LoadedModel,
    examples: Sequence[Example],
    sites: Sequence[LinearSite],
    out: Path,
    weights: WeightConfig,
    ranks: Ranks,
    progress: Progress,
) -> Path:
    """The file with the curvature of these documents, which the first rank measures if there is none."""
    beside, inside = out.with_name(f"{out.name}.{CURVATURE}"), out / CURVATURE
    about = curvature_about(loaded, examples, sites, weights.curvature)
    where: Path | None = None
    if ranks.rank == 0:
        where = next((p for p in (inside, beside) if p.exists() and Curvature.load(p).is_of(about)), None)
        if where is None:
            where = beside
            fit_curvature(loaded, examples, sites, weights.curvature, progress=progress).save(beside)
    found: Path | None = ranks.from_first(where)
    assert found is not None
    return found


def _weights(loaded: LoadedModel, sites: Sequence[LinearSite], weights: WeightConfig, path: Path | None) -> Weights:
    if path is None:
        return Weights(tuple(sites), random_projection(sites, weights.projection), weights.sketch)
    curvature = Curvature.load(path)
    names = [s.name for s in sites]
    if [m.name for m in curvature.modules] != names or curvature.about.get("model") != loaded.fingerprint.sha:
        raise ConfigError(
            f"expected curvature of these {len(names)} modules of {loaded.fingerprint.name} ({loaded.fingerprint.sha}), {path} is of "
            f"{len(curvature.modules)} of model {curvature.about.get('model')}; leave it out to measure it here"
        )
    return Weights(tuple(sites), eigen_projection(curvature, weights.projection), weights.sketch)


def _keep(
    loaded: LoadedModel, out: Path, made: Weights, weights: WeightConfig, path: Path | None, *, own: bool
) -> None:
    """Leave with the store what its rows are to be read with."""
    made.projection.save(out / FILE)
    if path is not None and path != out / CURVATURE:
        if own:
            path.replace(out / CURVATURE)
        else:
            shutil.copyfile(path, out / CURVATURE)
    left = uncovered(loaded, made.sites)
    reasons: dict[str, int] = {}
    for item in left:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    modules = [
        {"name": m.name, "components": len(m.scale), "share_of_eigenvalues": None if m.share != m.share else m.share}
        for m in made.projection.modules
    ]
    config = {
        "projection": asdict(weights.projection),
        "curvature": asdict(weights.curvature),
        "sketch": weights.sketch,
    }
    write_json(
        out / ABOUT,
        {
            "modules": modules, "config": config, "not_covered": [asdict(item) for item in left], "not_covered_by_reason": reasons,
        },
    )  # fmt: skip


def projection_of(store: Path) -> Projection:
    """The components of a store's rows.

    Raises:
        AtomsFormatError: it is no store of weight gradients, or the harvest was not finished.
    """
    return Projection.load(store / FILE)
