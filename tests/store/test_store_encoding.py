"""Directions on disk and back, against numpy's own casts."""

from __future__ import annotations

import numpy as np
import pytest

from gradatoms_store.encoding import directions_to_float32, split_norm

D = 64


def finite(dtype: str) -> np.ndarray:
    """Every finite float16 or bfloat16 as float32, in rows of D."""
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(np.float16) if dtype == "float16" else (bits.astype(np.uint32) << 16).view(np.float32)
    values = values[np.isfinite(values)].astype(np.float32)
    return values[: len(values) // D * D].reshape(-1, D)


@pytest.mark.parametrize("rows", [None, np.random.default_rng(0).permutation(900)])
def test_every_float16_is_widened_exactly(rows: np.ndarray | None) -> None:
    exact = finite("float16")
    stored = exact.astype(np.float16)
    found = directions_to_float32(stored, "float16", rows=rows)
    wanted = exact if rows is None else exact[rows]
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_every_bfloat16_is_widened_exactly() -> None:
    exact = finite("bfloat16")
    stored = (exact.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(directions_to_float32(stored, "bfloat16").view(np.uint32), exact.view(np.uint32))
    order = np.array([5, 5, 0])
    found = directions_to_float32(stored, "bfloat16", rows=order)
    np.testing.assert_array_equal(found.view(np.uint32), exact[order].view(np.uint32))


@pytest.mark.parametrize(("dtype", "ulp"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8), ("float32", 2.0**-24)])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_directions_are_rounded_to_the_nearest(dtype: str, ulp: float, kind: type) -> None:
    rng = np.random.default_rng(1)
    raw = (rng.standard_normal((500, D)) * 10.0 ** rng.uniform(-5, 0, (500, D))).astype(kind)
    stored, norms = split_norm(raw, dtype)
    exact = raw.astype(np.float64)
    length = np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose(norms, length, rtol=1e-7)
    unit = exact / length[:, None]
    error = np.abs(directions_to_float32(stored, dtype).astype(np.float64) - unit)
    half_step = ulp / 2 * 2.0 ** np.ceil(np.log2(np.abs(unit) + 1e-300))
    smallest = 2.0**-25 if dtype == "float16" else 0.0  # half of float16's smallest step
    assert (error <= np.maximum(half_step, smallest) * 1.001 + 1e-12).all()
    if dtype == "float16":
        same = (stored == unit.astype(np.float32).astype(np.float16)).mean()
        assert same > 0.999


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1.0, 1e4, 1e30])
def test_scale_does_not_touch_directions(dtype: str, scale: float) -> None:
    raw = np.random.default_rng(2).standard_normal((50, D)).astype(np.float32)
    one, _ = split_norm(raw, dtype)
    other, norms = split_norm(raw * np.float32(scale), dtype)
    step = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-6}[dtype]
    a, b = directions_to_float32(one, dtype), directions_to_float32(other, dtype)
    np.testing.assert_allclose(a, b, rtol=step, atol=1e-7)
    np.testing.assert_allclose(norms, np.linalg.norm(raw.astype(np.float64), axis=1) * scale, rtol=1e-6)


def test_zero_and_signs() -> None:
    raw = np.zeros((3, D), np.float32)
    raw[1, 0], raw[2, 3] = -2.0, -1e-20
    for dtype in ("float16", "bfloat16", "float32"):
        stored, norms = split_norm(raw, dtype)
        found = directions_to_float32(stored, dtype)
        np.testing.assert_array_equal(norms[:2], [0, 2])
        assert norms[2] == pytest.approx(1e-20)
        np.testing.assert_array_equal(found[0], 0)
        assert found[1, 0] == found[2, 3] == -1
