"""JSON files that a parser chokes on, or that say what cannot be."""

from __future__ import annotations

import json
from typing import Any

from forge import HOOKS, Forge, attack, attacks


def _text(forge: Forge, change: Any) -> None:
    """Change the sidecar's text, whatever becomes of its digest."""
    forge.sidecar.write_bytes(change(forge.sidecar.read_text()).encode("utf-8", "surrogatepass"))


attacks(
    _text,
    json_empty=(lambda _: "",),
    json_cut=(lambda text: text[:-20],),
    json_list=(lambda text: f"[{text}]",),
    json_null=(lambda _: "null",),
    json_deep=(lambda text: text.replace('"rows":', '"deep": ' + "[" * 100_000 + "]" * 100_000 + ', "rows":'),),
    json_rather_deep=(lambda text: text.replace('"rows":', '"deep": ' + "[" * 800 + "]" * 800 + ', "rows":'),),
    json_deep_objects=(
        lambda text: text.replace('"rows":', '"deep": ' + '{"a":' * 900 + "1" + "}" * 900 + ', "rows":'),
    ),
    json_long_integer=(lambda text: text.replace('"rows": 16', '"rows": ' + "9" * 10_000),),
    json_rather_long_integer=(lambda text: text.replace('"rows": 16', '"rows": ' + "9" * 4000),),
    json_negative=(lambda text: text.replace('"rows": 16', '"rows": -16'),),
    json_float=(lambda text: text.replace('"rows": 16', '"rows": 16.0'),),
    json_overflow=(lambda text: text.replace('"min": ', '"min": 1e999, "x": '),),
    json_nan=(lambda text: text.replace('"rows": 16', '"rows": NaN'),),
    json_infinity=(lambda text: text.replace('"rows": 16', '"rows": -Infinity'),),
    json_twice=(lambda text: text.replace('"rows": 16', '"rows": 99, "rows": 16'),),
    json_twice_within=(lambda text: text.replace('"zeros":', '"zeros": 99, "zeros":'),),
    json_many_keys=(
        lambda text: text.replace('"rows":', ",".join(f'"{n:x}":0' for n in range(1_000_000)) + ',"rows":'),
    ),
    json_many_lists=(lambda text: text.replace('"rows":', '"x": [' + "[]," * 4_000_000 + '[]], "rows":'),),
    json_many_numbers=(lambda text: text.replace('"rows":', '"x": [' + "1e9," * 4_000_000 + '1], "rows":'),),
    json_wide_text=(lambda text: text.replace('"rows":', '"x": "🧪' + "a" * 16_000_000 + '", "rows":'),),
    json_half_character=(lambda text: text.replace('"concept":', '"\\ud800":'),),
    json_zero_byte=(lambda text: text.replace('"rows":', "\0"),),
    json_of_32_megabytes=(lambda text: text + " " * 2**25,),
)


@attack
def json_not_utf8(forge: Forge) -> None:
    forge.sidecar.write_bytes(forge.sidecar.read_bytes().replace(b"concept", b"conc\xffpt"))


@attack
def json_utf16(forge: Forge) -> None:
    forge.sidecar.write_bytes(forge.sidecar.read_text().encode("utf-16"))


@attack
def json_of_a_terabyte(forge: Forge) -> None:
    with open(forge.sidecar, "r+b") as file:
        file.truncate(2**40)


def _sidecar(name: str, **changes: Any) -> None:
    attacks(lambda forge: forge.edit(**changes), **{name: ()})


_sidecar("sidecar_unknown_key", **{"\x1b[31m\n": 0})
_sidecar("sidecar_long_key", **{"k" * 1_000_000: 0})
_sidecar("sidecar_path_traversal", file="../../outside.h5")
_sidecar("sidecar_absolute_path", file="/etc/passwd")
_sidecar("sidecar_of_another_shard", file="00000.h5")
_sidecar("sidecar_of_future_version", schema_version=999)
_sidecar("sidecar_of_version_1", schema_version=1)
_sidecar("sidecar_of_huge_version", schema_version=2**62)
_sidecar("sidecar_of_another_store", fingerprint="0" * 32)
_sidecar("sidecar_units_taken", units=[0, 1])
_sidecar("sidecar_units_beyond", units=[2**62])
_sidecar("sidecar_units_twice", units=[2, 2])
_sidecar("sidecar_units_million", units=list(range(1_000_000, 2_000_000)))
_sidecar("sidecar_rows_huge", rows=2**62)
_sidecar("sidecar_rows_more", rows=17)
_sidecar("sidecar_examples_huge", examples=2**62)
_sidecar("sidecar_segment_rows_zero", segment_rows=0)
_sidecar("sidecar_segment_rows_huge", segment_rows=2**62)
_sidecar("sidecar_segment_rows_one", segment_rows=1)
_sidecar("sidecar_example_offset_huge", example_offset=2**63 - 1)
_sidecar("sidecar_structure_other", structure="0" * 32)
_sidecar("sidecar_nan_losses_more", nan_losses=17)


@attack
def sidecar_norms_inverted(forge: Forge) -> None:
    norms = json.loads(forge.sidecar.read_text())["norms"]
    norms[HOOKS[0]] |= {"min": 5.0, "max": -5.0}
    forge.edit(norms=norms)


@attack
def sidecar_quantiles_unknown(forge: Forge) -> None:
    norms = json.loads(forge.sidecar.read_text())["norms"]
    norms[HOOKS[0]]["quantiles"] = {"much": 1.0, "1e9": 2.0}
    forge.edit(norms=norms)


@attack
def sidecar_concepts_more_than_rows(forge: Forge) -> None:
    forge.edit(concepts={"x": 2**62})


def _header(name: str, **changes: Any) -> None:
    attacks(lambda forge: forge.edit_header(**changes), **{name: ()})


def _hooks(*names: str, d: Any = 6) -> list[dict[str, Any]]:
    return [{"name": name, "hf_name": "x", "d": d} for name in names]


_header("header_of_future_version", schema_version=999)
_header("header_hook_parent", hooks=_hooks("..", HOOKS[1]))
_header("header_hook_slash", hooks=_hooks("../../etc", HOOKS[1]))
_header("header_hook_zero_byte", hooks=_hooks("a\0b", HOOKS[1]))
_header("header_hook_empty", hooks=_hooks("", HOOKS[1]))
_header("header_hook_line_break", hooks=_hooks("a\n\x1b[31mb", HOOKS[1]))
_header("header_hook_long", hooks=_hooks("h" * 1_000_000, HOOKS[1]))
_header("header_hook_odd_unicode", hooks=_hooks("a\u202e\u0301", HOOKS[1]))
_header("header_hook_twice", hooks=_hooks(HOOKS[0], HOOKS[0]))
_header("header_hooks_many", hooks=_hooks(*(f"h{number}" for number in range(50_000))))
_header("header_d_zero", hooks=_hooks(*HOOKS, d=0))
_header("header_d_huge", hooks=_hooks(*HOOKS, d=2**62))
_header("header_d_bool", hooks=_hooks(*HOOKS, d=True))
_header("header_model_nested", model={"name": {"a": []}})
_header("header_n_units_small", n_units=1)
_header("header_dtype_object", dtype="object")
