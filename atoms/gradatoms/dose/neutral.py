"""Prompts about nothing in particular, on which strengths are set, and as many that no strength has seen."""

from __future__ import annotations

from importlib.resources import files

_LINES = tuple((files("gradatoms") / "data" / "neutral.txt").read_text(encoding="utf-8").splitlines())

CALIBRATING = _LINES[0::2]
"""48 prompts that strengths are calibrated on."""
UNSEEN = _LINES[1::2]
"""48 others of the same kind."""
TOKENS = 8
"""Tokens of continuation that the effect on a prompt is the mean over.

How much the effect of an atom differs from prompt to prompt decides how well a strength carries over. SmolLM2, 8 atoms at
α = 0.3: the standard deviation over prompts is 0.87 of the mean with 1 token, 0.54 with 4, 0.42 with 8, 0.34 with 16, 0.30 with 32. With
48 prompts on either side the ratio of two means then has a relative standard error √(2/48) times that: 0.18, 0.11, 0.09,
0.07, 0.06. In random halves of the 96 prompts a strength set on one half for 0.5 nats came within 20 % on the other in 80 % of 2,400
cases with 1 token, 93 % with 4, 98.7 % with 8, 98.8 % with 16, 99.8 % with 24. Eight cost half as much as sixteen.

From ``CALIBRATING`` to ``UNSEEN``, 40 other atoms: 97.5 % within 20 %, the ratio 0.91 ± 0.065 over atoms. The 0.09 is the two
sets' own difference, about one standard error, and the same for every atom.
"""
