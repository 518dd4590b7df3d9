"""Atoms on the Hugging Face hub, or in a shared folder of the same layout.

What travels is a list of known files: weights, codes, metrics, evidence, labels, the projector and a model card. The
catalog index, logs and whatever else lies in the folder stay. Places on this machine (where the store was, where a model
lies) are cut to their last component in every JSON and YAML file.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import h5py
import yaml

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import SIGN, load_atoms
from gradatoms.errors import AtomsFormatError, ConfigError, OutputExistsError

FILES = (
    "config.yaml",
    "cfg.json",
    "sae_weights.safetensors",
    "codes.h5",
    "metrics.json",
    "evidence.h5",
    "labels.jsonl",
    "labels.null.jsonl",
    "scores.json",
    "README.md",
    "projector/*.safetensors",
    "projector/*.json",
)
"""What travels; no other file is sent or kept."""


def push(
    atoms_folder: str | Path, repo: str, *, private: bool = True, token: str | None = None, revision: str | None = None
) -> str:
    """Send a dictionary to the hub, or copy it to a folder; a model card is written if the folder has no README.md.

    ``evidence.h5`` and ``labels.jsonl`` quote the examples that the atoms were learned from: they become readable for
    whoever can read the repo.

    Args:
        repo: ``name/of-the-repo``, made if absent; or a folder: one that exists, or a path that starts with ``.``, ``/``,
            ``~`` or ``file:``.
        private: only you and your organisation can read it. A repo that is public already is refused, not filled.
        token: of the hub; default the one that ``hf auth login`` keeps.
        revision: a branch of the repo, made if absent.

    Returns:
        the address of the repo, or the path of the folder.

    Raises:
        AtomsFormatError: no complete ``.atoms`` folder.
        OutputExistsError: the folder to copy to exists and is not empty.
        ConfigError: no such name, no permission, or no network.
    """
    source, folder = Path(atoms_folder), _local(repo, revision)
    atoms = load_atoms(source)
    if not (source / "config.yaml").is_file():
        raise AtomsFormatError(f"expected an .atoms folder to push, {source} holds a dictionary of another library")
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"expected a new or empty folder, {folder} is taken; choose another or remove it")
    with _beside(folder or Path(tempfile.gettempdir()) / "atoms") as partial:
        stage = partial / "atoms"
        _copy_known(source, stage)
        for path in stage.rglob("*"):
            _forget_places(path)
        if not (stage / "README.md").exists():
            card = _card(load_atoms(stage), repo if folder is None else folder.name, stage)
            (stage / "README.md").write_text(card, encoding="utf-8")
        if folder is None:
            return _upload(stage, repo, private, token, revision, len(atoms))
        _into_place(stage, folder)
        return str(folder)


def pull(repo: str, out: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch a dictionary from the hub, or from a folder that ``push`` filled, into the new folder ``out``.

    It is opened and its HDF5 files are looked through before it is put in place; a failed pull leaves nothing.

    Args:
        repo: as for ``push``; also a repo or folder with one SAELens dictionary.
        revision: branch, tag or commit.

    Raises:
        OutputExistsError: ``out`` exists.
        AtomsFormatError: what is there is no complete dictionary, or not to be trusted.
        ConfigError: no such repo, no permission, or no network.
    """
    out, folder = Path(out), _local(repo, revision)
    if out.exists():
        raise OutputExistsError(f"expected a new path, {out} exists; choose another or remove it")
    if folder is not None and not folder.is_dir():
        raise AtomsFormatError(f"expected a folder with atoms at {folder}, found nothing; push some there first")
    with _beside(out) as partial:
        stage = partial / "atoms"
        _copy_known(folder or _download(repo, partial / "hub", revision, token), stage)
        try:
            load_atoms(stage)
            for path in stage.glob("*.h5"):
                _require_plain(path)
        except AtomsFormatError as error:
            said = str(error).replace(str(stage), repo)
            raise AtomsFormatError(f"expected complete atoms in {repo}, got: {said}") from error
        _into_place(stage, out)
    return out


def _local(repo: str, revision: str | None) -> Path | None:
    """The folder that ``repo`` means; None for one on the hub."""
    path = Path(re.sub("^file:(//)?", "", repo)).expanduser()
    if not (repo.startswith((".", "/", "~", "file:")) or path.exists()):
        return None
    if revision is not None:
        raise ConfigError(f"expected no revision with a folder, got {revision!r} for {path}; leave it out")
    return path


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder on the disk of ``path``, gone afterwards."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=above))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _into_place(stage: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        stage.rename(out)  # takes the place of an empty folder, and of nothing else
    except OSError as error:
        raise OutputExistsError(f"expected a new path, {out} was made meanwhile; choose another") from error


def _copy_known(source: Path, stage: Path) -> None:
    """Copy the files of ``FILES``; contents only, so that modes are those of new files."""
    stage.mkdir()
    for path in [*source.iterdir(), *(source / "projector").glob("*")]:
        name = path.relative_to(source)
        if path.is_file() and any(fnmatch(name.as_posix(), pattern) for pattern in FILES):
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, stage / name)


def _forget_places(path: Path) -> None:
    """Cut local paths in a YAML, JSON or JSON-lines file to their last component."""

    def as_json(value: Any) -> str:
        return json.dumps(value, indent=1, ensure_ascii=False)

    if path.suffix == ".yaml":
        config = _without_places(yaml.safe_load(path.read_text(encoding="utf-8")))
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(as_json(_without_places(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for row in rows:  # a label's words are left alone
            if isinstance(row.get("teacher"), str):
                kind, colon, model = row["teacher"].partition(":")
                row["teacher"] = kind + colon + _last_component(model, named=True) if colon else kind
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _without_places(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _without_places(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_places(v, key) for v in value]
    return _last_component(value, named=key in ("path", "name", "model_name")) if isinstance(value, str) else value


def _last_component(text: str, *, named: bool) -> str:
    """``text``, or its last component if it is an absolute path, or (``named``: it names a file) one that exists here."""
    if PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    place = text.startswith(("/", "~/", "./", "../")) or (named and "/" in text and Path(text).exists())
    return PurePosixPath(text).name if place else text


def _require_plain(path: Path) -> None:
    """Refuse an HDF5 file from elsewhere that would read other files or run a filter."""

    def refuse(name: str, what: str) -> None:
        raise AtomsFormatError(f"expected plain data in {path}, got {what} at {name!r}; do not use it")

    def look(group: h5py.Group) -> None:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                refuse(name, "a link")
            item = group[name]
            if isinstance(item, h5py.Group):
                if hash(item.id) in seen:
                    refuse(name, "a group inside itself")
                seen.add(hash(item.id))
                look(item)
            elif not isinstance(item, h5py.Dataset):
                refuse(name, "a named type")
            elif item.is_virtual or item.external:
                refuse(name, "data in other files")
            elif item.id.get_create_plist().get_nfilters():
                refuse(name, "a filter")

    seen: set[int] = set()
    try:
        with h5py.File(path, "r") as file:
            seen.add(hash(file["/"].id))
            look(file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise AtomsFormatError(
            f"expected an HDF5 file at {path}, got {type(error).__name__}: {_line(error)}"
        ) from error


def _card(atoms: Atoms, name: str, folder: Path) -> str:
    """The model card: what the atoms are, their metrics beside the nulls, and how to open them."""
    config = atoms.config
    model, method = config.get("model", {}).get("name"), config.get("fit", {}).get("method", "unknown")
    front: dict[str, Any] = {
        "library_name": "gradatoms",
        "tags": ["gradatoms", "gradient-atoms", "dictionary-learning", "interpretability", "sae-lens"],
    }
    if model and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        front["base_model"] = model
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "",
        f"# {name}", "",
        f"{len(atoms)} gradient atoms of {model or 'an unnamed model'} at `{atoms.hook}`, learned by `{method}`: a sparse "
        "dictionary of the directions that training examples push the residual stream in.",
        "", f"Sign: {SIGN}.", "",
    ]  # fmt: skip
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")).get("metrics", {}) if path.exists() else {}
    if metrics:
        lines += ["| metric | value | null | better | unit | n |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {key} | {_shown(m.get('value'))} | {_shown(m.get('null'))} | {m.get('better')} | {m.get('unit')} | {m.get('n')} |"
            for key, m in metrics.items()
        ]
        lines += [
            "",
            "Null: the same number where there is nothing to find; `metrics.json` says what was shuffled.",
            "",
        ]
    lines += [
        "```python", "from gradatoms.dictionary.hub import pull", "from gradatoms.dictionary.io import load_atoms", "",
        f'atoms = load_atoms(pull("{name}", "{name.rsplit("/")[-1]}.atoms"))',
        "codes = atoms.encode(pushes)  # unit pushes, -gradient/norm, of shape (rows, d)", "```", "",
        "The folder also opens with `sae_lens.SAE.load_from_disk`; `cfg.json` says whether the codes are the same there.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _upload(stage: Path, repo: str, private: bool, token: str | None, revision: str | None, n_atoms: int) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _asking(repo, revision):
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        public = not api.repo_info(repo).private
    if private and public:
        raise ConfigError(
            f"expected a private repo, {repo} is public; push with private=False if all may read it, or name another"
        )
    with _asking(repo, revision):
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        said = f"Push {n_atoms} gradient atoms"
        api.upload_folder(repo_id=repo, folder_path=stage, revision=revision, commit_message=said)
    return address


def _download(repo: str, folder: Path, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    folder.mkdir()
    with _asking(repo, revision):
        snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=list(FILES), token=token)
    return folder


@contextmanager
def _asking(repo: str, revision: str | None) -> Iterator[None]:
    """Whatever goes wrong with the hub becomes one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    where = repo if revision is None else f"{repo} at {revision}"
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"expected a repo such as you/facts-atoms, got {repo!r}: {_line(error)}") from error
    except Exception as error:  # the client's errors differ by transport
        causes = _causes(error)
        codes = (getattr(getattr(cause, "response", None), "status_code", None) for cause in causes)
        status = next((code for code in codes if code is not None), None)
        if status in (401, 403):
            advice = "log in with `hf auth login`, or give a token that may"
            raise ConfigError(f"expected permission for {where}, the hub answered {status}; {advice}") from error
        if status == 404:
            raise ConfigError(
                f"expected {where} on the hub, it has none, or one that you may not see; check the name and the token"
            ) from error
        raise ConfigError(
            f"expected {constants.ENDPOINT} to answer for {where}, got {type(causes[-1]).__name__}: "
            f"{_line(causes[-1])}; try again, or name a folder (./{repo.rsplit('/')[-1]})"
        ) from error


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it came from, the first cause last."""
    found = [error]
    while (below := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(below)
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
