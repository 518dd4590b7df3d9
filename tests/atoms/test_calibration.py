"""The search meets its budget in few tries; the slope at zero is that of autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatoms import calibration, injection
from gradatoms.calibration import calibrate_all, linear, mean_kl
from gradatoms.errors import ConfigError
from gradatoms.hooking import edit_output
from gradatoms.lookahead import lookahead
from gradatoms.models import LoadedModel

HOOK = "blocks.1.hook_resid_post"
TEXTS = ("The capital of France is", "The capital of Japan is", "hot", "x", "Two plus two is four, and three")
PAIRS = [(k, c) for k in range(4) for c in range(k, 5)]


def ids_of(loaded: LoadedModel) -> list[list[int]]:
    return [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]


def directions(n: int, d: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


# The effect


def test_the_effect_is_that_of_the_lookahead(architecture: LoadedModel) -> None:
    v, alpha = directions(5, 32), np.asarray([0.1, -0.2, 0.3, 0.4, 0.5])
    hook, contexts = architecture.hook(HOOK), ids_of(architecture)
    found = mean_kl(architecture, hook, v, contexts, PAIRS, alpha=alpha)
    np.testing.assert_allclose(
        found[:4], lookahead(architecture, hook, v, contexts, PAIRS, alpha=alpha).kl[:4], atol=1e-5
    )
    assert np.isnan(found[4])


# The search


@pytest.mark.parametrize("budget", [0.003, 0.1, 0.5])
def test_all_directions_meet_the_budget(architecture: LoadedModel, budget: float) -> None:
    v, hook, contexts = directions(4, 32), architecture.hook(HOOK), ids_of(architecture)
    calls: list[tuple[int, int]] = []
    found = calibrate_all(
        architecture, hook, v, contexts, PAIRS, kl=budget, progress=lambda _s, done, total: calls.append((done, total))
    )
    assert found.reached.all() and (found.alpha > 0).all() and found.tries.mean() < 7
    kl = lookahead(architecture, hook, v, contexts, PAIRS, alpha=found.alpha).kl
    np.testing.assert_allclose(kl, budget, rtol=0.03)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-2)
    assert calls[-1] == (4, 4) and sorted(calls) == calls


def test_a_direction_alone_gets_the_strength_it_gets_among_others(tiny: LoadedModel) -> None:
    v, hook, contexts = directions(4, 32), tiny.hook(HOOK), ids_of(tiny)
    together = calibrate_all(tiny, hook, v, contexts, PAIRS, kl=0.1, tolerance=1e-3)
    for k in range(4):
        alone = calibrate_all(
            tiny, hook, v[k : k + 1], contexts, [(0, c) for d, c in PAIRS if d == k], kl=0.1, tolerance=1e-3
        )
        assert alone.alpha[0] == pytest.approx(together.alpha[k], rel=5e-3)


def test_smollm2_meets_the_budget_in_few_tries(smollm2: LoadedModel) -> None:
    v, hook, contexts = directions(4, 576), smollm2.hook(smollm2.default_hook()), ids_of(smollm2)[:3]
    pairs = [(k, c) for k in range(4) for c in range(3)]
    start = np.sqrt(2 * 0.5 / linear(smollm2, hook, v, contexts, [(k, 0) for k in range(4)]).fisher)
    found = calibrate_all(smollm2, hook, v, contexts, pairs, kl=0.5, start=start)
    assert found.reached.all() and found.tries.mean() <= 5
    np.testing.assert_allclose(mean_kl(smollm2, hook, v, contexts, pairs, alpha=found.alpha), 0.5, rtol=0.025)


def test_a_budget_out_of_reach_and_no_contexts(tiny: LoadedModel) -> None:
    v, hook, contexts = directions(5, 32), tiny.hook(HOOK), ids_of(tiny)
    calls: list[tuple[int, int]] = []
    found = calibrate_all(
        tiny, hook, v, contexts, PAIRS, kl=100, most=0.5, progress=lambda _s, done, total: calls.append((done, total))
    )
    assert found.alpha[:4].tolist() == [0.5] * 4 and not found.reached.any()
    assert np.isnan(found.alpha[4]) and np.isnan(found.kl[4]) and found.tries[4] == 0
    assert (found.kl[:4] > 0).all() and calls[-1] == (4, 4)
    nothing = calibrate_all(tiny, hook, v, contexts, [], kl=0.1)
    assert np.isnan(nothing.alpha).all() and not nothing.reached.any()


@pytest.mark.parametrize("first", [1e-4, 0.3, 4.0, float("nan")])
def test_any_start_ends_at_the_same_strength(tiny: LoadedModel, first: float) -> None:
    v, hook, contexts = directions(4, 32), tiny.hook(HOOK), ids_of(tiny)
    usual = calibrate_all(tiny, hook, v, contexts, PAIRS, kl=0.05, tolerance=1e-3)
    found = calibrate_all(tiny, hook, v, contexts, PAIRS, kl=0.05, tolerance=1e-3, start=np.full(4, first))
    np.testing.assert_allclose(found.alpha, usual.alpha, rtol=5e-3)


@pytest.mark.parametrize("setting", ["kl", "most", "tolerance"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_settings_that_are_not_positive_are_refused(tiny: LoadedModel, setting: str, value: float) -> None:
    settings = {"kl": 0.1} | {setting: value}
    with pytest.raises(ConfigError, match=f"above 0.*{value}"):
        calibrate_all(tiny, tiny.hook(HOOK), directions(1, 32), ids_of(tiny), [(0, 0)], **settings)


def curve(alpha: np.ndarray, shape: str) -> np.ndarray:
    """Effects as they may be: quadratic, flat at last, falling after a peak, with a jump, not a number far out."""
    if shape == "quadratic":
        return 3 * alpha**2
    if shape == "flat":
        return 2 * alpha**2 / (alpha**2 + 0.5)
    if shape == "peak":
        return np.where(alpha < 1, 0.8 * alpha**2, 0.8 / alpha)
    if shape == "jump":
        return np.where(alpha < 0.31, 1e-3, 10.0) * alpha
    return np.where(alpha < 0.5, alpha**2, np.nan)


@pytest.mark.parametrize("shape", ["quadratic", "flat", "peak", "jump", "nan"])
@pytest.mark.parametrize("start", [1e-3, 0.1, 0.9])
def test_the_bracket_closes_on_the_first_crossing(shape: str, start: float) -> None:
    search = calibration.Search(1, 0.2, 4.0, 0.02, np.asarray([start]))
    low, high = 0.0, np.inf
    for _ in range(60):
        tried = search.alpha.copy()
        assert low < tried[0] < high
        search.tell(np.asarray([0]), curve(tried, shape))
        if search.done[0]:
            break
        assert search.low[0] >= low and search.high[0] <= high, "an end of the bracket moved outwards"
        low, high = float(search.low[0]), float(search.high[0])
    assert search.done[0] and search.reached[0]
    assert search.tries[0] < (40 if shape == "jump" else 12)
    if shape == "jump":
        assert search.alpha[0] == pytest.approx(0.31, rel=1e-3)
    else:
        assert search.kl[0] == pytest.approx(0.2, rel=0.02) and search.alpha[0] < 1


# The slope


def test_the_slope_is_that_of_autograd(architecture: LoadedModel) -> None:
    v, hook, contexts = directions(3, 32), architecture.hook(HOOK), ids_of(architecture)
    found = linear(architecture, hook, v, contexts, [(0, 0), (0, 4), (1, 3)])

    def log_p(alpha: torch.Tensor, k: int, context: list[int]) -> torch.Tensor:
        def step(h: torch.Tensor) -> torch.Tensor:
            last = h[:, -1:] + alpha * h[:, -1:].norm() * torch.from_numpy(v[k])
            return torch.cat([h[:, :-1], last], dim=1)

        with edit_output(hook.module, step):
            return architecture.model(input_ids=torch.tensor([context])).logits[0, -1].log_softmax(-1)

    for k, chosen in ((0, (0, 4)), (1, (3,))):
        slopes, fishers = [], []
        for c in chosen:
            zero = torch.zeros(())
            slope = torch.autograd.functional.jacobian(lambda a, k=k, c=c: log_p(a, k, contexts[c]), zero)
            p = log_p(zero, k, contexts[c]).exp()
            slopes.append(slope.numpy())
            fishers.append(float((p * slope**2).sum() - (p * slope).sum() ** 2))
        np.testing.assert_allclose(found.slope[k], np.mean(slopes, axis=0), atol=1e-3, rtol=1e-3)
        assert found.fisher[k] == pytest.approx(np.mean(fishers), rel=1e-3)
    assert not found.slope[2].any() and found.fisher[2] == 0


def test_a_short_step_moves_as_the_slope_says(architecture: LoadedModel) -> None:
    v, hook, contexts = directions(4, 32), architecture.hook(HOOK), ids_of(architecture)
    slope = linear(architecture, hook, v, contexts, PAIRS)
    alpha = 2e-3
    up, down = (lookahead(architecture, hook, v, contexts, PAIRS, alpha=a).log_ratio for a in (alpha, -alpha))
    difference = (up - down) / (2 * alpha)
    np.testing.assert_allclose(difference, slope.slope, atol=5e-3 * float(np.abs(slope.slope).max()))
    small = 0.03 / np.sqrt(slope.fisher)
    kl = mean_kl(architecture, hook, v, contexts, PAIRS, alpha=small)
    np.testing.assert_allclose(kl / (small**2 * slope.fisher / 2), 1, atol=0.1)


def test_without_forward_derivatives_a_difference_takes_their_place(
    architecture: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    v, hook, contexts = directions(4, 32), architecture.hook(HOOK), ids_of(architecture)
    exact = linear(architecture, hook, v, contexts, PAIRS)

    def refuse(*_args: object) -> torch.Tensor:
        raise NotImplementedError("no forward derivative")

    monkeypatch.setattr(calibration, "inject_with", refuse)
    found = linear(architecture, hook, v, contexts, PAIRS)
    np.testing.assert_allclose(found.slope, exact.slope, atol=2e-2 * float(np.abs(exact.slope).max()))
    np.testing.assert_allclose(found.fisher, exact.fisher, rtol=2e-2)


def test_the_effect_alone_is_never_held_for_all_directions(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    plain = injection._log_p
    monkeypatch.setattr(injection, "_log_p", lambda x: rows.append(len(x)) or plain(x))
    mean_kl(tiny, tiny.hook(HOOK), directions(300, 32), ids_of(tiny), [(k, 0) for k in range(300)], alpha=0.1)
    assert max(rows) == injection.ROWS and sum(rows) == 300 + 1 + 1
