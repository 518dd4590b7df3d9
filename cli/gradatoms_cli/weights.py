"""Weight space: ``atoms steer --weights``, ``attribute``, ``audit`` and ``diff``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatoms_cli.output import bars, emit, printable

if TYPE_CHECKING:
    from gradatoms.weight_steps import Way


def step_weights(
    folder: Path,
    chosen: Sequence[tuple[int, float]],
    prompt: str | None,
    *,
    strength: float | None,
    kl: float,
    way: Way,
    adapter: Path | None,
    rank: int,
    seed: int | None,
    max_tokens: int,
    model: str | None,
    as_json: bool,
) -> None:
    """``atoms steer --weights``: a step of the weights, whose strength is set on neutral prompts."""
    from gradatoms.adapters import export_adapter
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.dictionary.provenance import load_model_of
    from gradatoms.dose.neutral import CALIBRATING
    from gradatoms.errors import OutputExistsError
    from gradatoms.steering import Meter
    from gradatoms.weight_steps import atom_step, calibrate_step, generate_stepped, require_weights, step_effect

    if adapter is not None and adapter.exists():
        raise OutputExistsError(f"expected a new path, {adapter} exists; choose another or remove it")
    atoms = load_atoms(folder)
    require_weights(atoms)
    loaded = load_model_of(atoms, model)
    with bars() as progress:
        steps = [atom_step(loaded, atoms, atom, way, progress=progress) for atom, _ in chosen]
    step = steps[0].mixed([(s, w) for s, (_, w) in zip(steps[1:], chosen[1:], strict=True)])
    meter = Meter(loaded, CALIBRATING, tokens=8, batch=48)
    if strength is None:
        alpha, effect = calibrate_step(meter, loaded, step, kl)
    else:
        alpha, effect = strength, step_effect(meter, loaded, step, strength)
    value: dict[str, Any] = {"alpha": alpha, "kl": effect, "way": way, "plain": None, "steered": None}
    lines = [f"α {alpha:.5f} ‖W‖ ({way}), KL {effect:.2f} nats a token on neutral prompts"]
    if prompt is not None:
        found = generate_stepped(loaded, step, prompt, alpha=alpha, max_tokens=max_tokens, seed=seed)
        value |= asdict(found) | {"kl": effect}
        lines += [f"plain:   {printable(prompt + found.plain)}", f"steered: {printable(prompt + found.steered)}"]
    if adapter is not None:
        value["adapter"] = export_adapter(loaded, step, alpha, adapter, rank=rank)
        lines.append(f"{adapter}: {value['adapter']['note']}")
    emit(value, "\n".join(lines), as_json=as_json)
