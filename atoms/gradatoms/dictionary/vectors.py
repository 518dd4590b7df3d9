"""Atoms as plain vectors: a safetensors file for any tool, or a control vector that llama.cpp loads.

An atom is a unit direction of the residual stream. It steers by h ← h + α·‖h‖·atom, where h is the activation at its
hook and α is in units of ‖h‖; +atom lowers the loss of the examples it is active on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save_file

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import SIGN
from gradatoms.dictionary.provenance import store_of
from gradatoms.errors import ConfigError, GradAtomsError, OutputExistsError
from gradatoms.files import save_whole
from gradatoms.labels.evidence import Evidence
from gradatoms.labels.label import load_labels
from gradatoms.labels.storage import load_evidence
from gradatoms_store import ACTIVATION, Store, StoreError

UNIT_OF_STRENGTH = "norm of h at the hook: h + alpha * norm(h) * atom"
NORM_ROWS = 4096
"""Rows of a store that the typical ‖h‖ is taken from, at most."""


def export_vector(atoms: Atoms, path: str | Path, chosen: Sequence[int] = ()) -> dict[str, Any]:
    """Write atoms as they are into one safetensors file: float32, unit norm.

    The file's metadata are what ``about`` tells, as texts; numbers and tables in JSON.

    Args:
        chosen: atoms, each a tensor ``atom_N`` of shape (d,); none for all, as one tensor ``W_dec`` of shape
            (n_atoms, d).

    Returns:
        ``path``, ``tensors`` (names), ``d``, and ``note``.

    Raises:
        OutputExistsError: ``path`` exists.
        ConfigError: no such atom.
    """
    rows = {f"atom_{n}": atoms[n].direction for n in chosen} or {"W_dec": atoms.W_dec}
    tensors = {name: np.ascontiguousarray(row, dtype=np.float32) for name, row in rows.items()}
    metadata = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in about(atoms, chosen).items()
    }
    path = new_file(path)
    save_whole(path, lambda partial: save_file(tensors, partial, metadata))
    note = f"{len(chosen) or len(atoms)} unit vectors; strength in units of ‖h‖"
    return {"path": str(path), "tensors": list(tensors), "d": int(atoms.W_dec.shape[1]), "note": note}


def export_gguf(atoms: Atoms, path: str | Path, atom: int, *, norm: float | int | None = None) -> dict[str, Any]:
    """Write one atom as a control vector for ``llama-cli --control-vector`` (and ``-scaled``).

    The file holds one float32 tensor ``direction.{il}`` of shape (d,), norm·atom. llama.cpp adds scale·direction.{il}
    to the residual stream behind its block ``il``, at every position. ``il`` counts from 0, as TransformerLens does:

        blocks.{i}.hook_resid_post → direction.{i};  blocks.{i}.hook_resid_pre → direction.{i-1}, the same place

    There is no direction.0: llama.cpp adds nothing behind its first block, and refuses a file with that tensor.

    Source: llama.cpp. ``common_control_vector_load_one`` (common/common.cpp) keeps direction.N at offset d·(N−1) and
    takes only one-dimensional F32 tensors of that name; ``llama_adapter_cvec::apply`` (src/llama-adapter.cpp) gives
    block ``il`` what lies at offset d·(il−1), from il = 1 on; so N = il. The graphs of its models call
    ``build_cvec(cur, il)`` on what a block has added to the stream, before it is named ``l_out``. The keys
    ``controlvector.model_hint`` and ``layer_count`` (directions in the file) are as ``export_gguf`` of repeng
    (repeng/extract.py) writes them; llama.cpp reads neither. Measured with llama.cpp and SmolLM2-135M (8-bit), an atom
    of blocks.14.hook_resid_post of length 40: the next token's distribution is that of the vector added behind block 14
    (KL 0.002 nats), not behind 13 (0.03) or 15 (0.04).

    Args:
        norm: length of the direction: a typical ‖h‖ at the hook, so that scale 1 is α = 1. Default: the median ‖h‖ of
            the store that the atoms were fitted on, where it keeps activations and is in its place; else 1, and scale s
            adds a vector of length s.

    Returns:
        ``path``, ``tensor``, ``layer`` (il), ``norm``, ``norm_from`` (``given``, ``store`` or ``unknown``), ``d``,
        ``note``.

    Raises:
        OutputExistsError: ``path`` exists.
        ConfigError: no such atom, a norm that is not positive, or a hook behind which llama.cpp adds no vector.
    """
    direction, layer = atoms[atom].direction, _llama_layer(atoms.hook)
    if norm is not None and not (norm > 0 and math.isfinite(norm)):
        raise ConfigError(f"expected a norm above 0, got {norm}; give a typical ‖h‖ at {atoms.hook}")
    source, length = ("unknown", 1.0) if norm is None else ("given", float(norm))
    if norm is None and (measured := _typical_norm(atoms)) is not None:
        source, length = "store", measured
    facts = about(atoms, [atom])
    facts |= {"norm": length, "norm_from": source}

    def write(partial: Path) -> None:
        writer = GGUFWriter(partial, "controlvector")
        try:
            if hint := _model_hint(atoms):
                writer.add_string("controlvector.model_hint", hint)
            writer.add_uint32("controlvector.layer_count", 1)
            writer.add_name(facts["labels"].get(str(atom)) or f"gradient atom {atom}")
            writer.add_uint32("gradatoms.atom", atom)
            for key, value in facts.items():
                writer.add_string(
                    f"gradatoms.{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                )
            writer.add_tensor(f"direction.{layer}", np.asarray(length * direction, dtype=np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    path = new_file(path)
    save_whole(path, write)
    note = f"direction.{layer}; scale 1 is α = 1, with ‖h‖ = {length:.4g}"
    if source == "unknown":
        note = f"direction.{layer} of length 1: ‖h‖ is not known, scale s adds a vector of length s; see --norm"
    found: dict[str, Any] = {"path": str(path), "tensor": f"direction.{layer}", "layer": layer, "norm": length}
    return found | {"norm_from": source, "d": len(direction), "note": note}


def about(atoms: Atoms, chosen: Sequence[int] = ()) -> dict[str, Any]:
    """What a reader of a few vectors has to know; what is not known has no key.

    Args:
        chosen: the atoms to tell of; none for all.

    Returns:
        ``model`` and ``model_sha``, ``hook`` (TransformerLens), ``hf_module`` (where the store is at hand), ``layer``,
        ``sign_convention``, ``norm`` (1), ``strength_unit``, ``labels`` (atom → text), ``strengths`` (atom → the α > 0
        whose mean KL in the atom's own contexts is ``strength_kl`` nats). The keys of tables are texts, as in JSON.
    """
    model, wanted = atoms.config.get("model", {}), set(chosen) or set(range(len(atoms)))
    store = _store(atoms)
    evidence, settings = kept_evidence(atoms)
    labels = load_labels(atoms.path) if atoms.path else {}
    strengths = {n: e.injected.alpha for n, e in evidence.items() if n in wanted and e.injected}
    facts: dict[str, Any] = {
        "exported_by": "gradatoms",
        "input_kind": "activation_gradient",
        "model": model_name(atoms),
        "model_sha": model.get("sha"),
        "hook": atoms.hook,
        "hf_module": store.header.hook(atoms.hook).hf_name if store else None,
        "layer": layer_of(atoms.hook),
        "sign_convention": SIGN,
        "norm": 1,
        "strength_unit": UNIT_OF_STRENGTH,
        "strengths": {str(n): alpha for n, alpha in strengths.items() if math.isfinite(alpha)},
        "strength_kl": settings.get("kl"),
        "labels": {str(n): label.label for n, label in sorted(labels.items()) if n in wanted},
    }
    return {key: value for key, value in facts.items() if value is not None}


def new_file(path: str | Path) -> Path:
    """``path``, with its folder made.

    Raises:
        OutputExistsError: it is taken.
    """
    path = Path(path)
    if path.exists():
        raise OutputExistsError(f"expected a new path, {path} exists; choose another or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def layer_of(hook: str) -> int | None:
    """The block that a TransformerLens hook is in, from 0."""
    block = re.match(r"blocks\.(\d+)\.", hook)
    return int(block[1]) if block else None


def model_name(atoms: Atoms) -> str | None:
    """The model's name as recorded; of a folder or file only the last part, since the rest is of one machine."""
    name = atoms.config.get("model", {}).get("name")
    if name and (PurePath(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()):
        return PurePath(name).name
    return str(name) if name else None


def kept_evidence(atoms: Atoms) -> tuple[dict[int, Evidence], dict[str, Any]]:
    """Atom → evidence and how it was made; empty where the atoms have none."""
    path = atoms.path / "evidence.h5" if atoms.path else None
    if path is None or not path.exists():
        return {}, {}
    gathered = load_evidence(path)
    return {e.atom: e for e in gathered.evidence}, gathered.about


def _llama_layer(hook: str) -> int:
    """The ``il`` of llama.cpp whose output is the hook; see ``export_gguf``."""
    site = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
    if site is None:
        raise ConfigError(
            f"expected atoms of the residual stream, such as blocks.14.hook_resid_post, got {hook}; "
            "llama.cpp adds a control vector there only"
        )
    layer = int(site[1]) - (site[2] == "pre")
    if layer < 1:
        raise ConfigError(
            f"expected a hook behind the second block or a later one, got {hook}; "
            "llama.cpp adds no control vector there"
        )
    return layer


def _model_hint(atoms: Atoms) -> str:
    """``llama`` for LlamaForCausalLM: how llama.cpp names most architectures; empty if none is recorded."""
    architecture = str(atoms.config.get("model", {}).get("architecture", ""))
    return re.sub(r"(ForCausalLM|LMHeadModel)$", "", architecture).lower()


def _store(atoms: Atoms) -> Store | None:
    """The store that the atoms were fitted on; None where it is not in its place, or lacks the hook."""
    try:
        store = store_of(atoms)
    except (GradAtomsError, StoreError):  # an export does without it
        return None
    return store if atoms.hook in store.hooks else None


def _typical_norm(atoms: Atoms) -> float | None:
    """Median ‖h‖ of rows of the store; None without a store that keeps activations."""
    store = _store(atoms)
    if store is None or atoms.hook + ACTIVATION not in store.hooks or not store.n_rows:
        return None
    rows = np.unique(np.linspace(0, store.n_rows - 1, NORM_ROWS).astype(np.int64))
    median = float(np.median(store.read(atoms.hook + ACTIVATION, rows, fields=()).norms))
    return median if median > 0 and math.isfinite(median) else None
