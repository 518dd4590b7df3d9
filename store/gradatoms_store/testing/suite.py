"""What the suites share: tests that pytest collects from a subclass, and that run without it too."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class RuleBrokenError(AssertionError):
    """Something is not as `FORMAT.md` demands."""


def demand(holds: bool, rule: str) -> None:
    """Fail unless a rule holds.

    Raises:
        RuleBrokenError: it does not.
    """
    if not holds:
        raise RuleBrokenError(rule)


class Suite:
    """Base of the suites. A subclass whose name begins with `Test` is collected by pytest; `failures` needs no pytest.

    Each method `test_...` takes `tmp_path`, an empty folder, and at most one more parameter, `case`, whose values
    `cases` gives.
    """

    def cases(self, test: str) -> Sequence[str]:
        """Names of the cases that a test with a parameter `case` is run for."""
        raise NotImplementedError(test)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Called by pytest for each test."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases(metafunc.function.__name__))

    @classmethod
    def failures(cls, folder: Path, select: str = "") -> dict[str, Exception]:
        """Run the suite without pytest.

        Args:
            folder: gets a folder for each test.
            select: regular expression that is searched in the names of tests; others are not run.

        Returns:
            Name of each failed test, as in `test_refuses[shard: chunked]`, with what it raised.
        """
        found: dict[str, Exception] = {}
        for number, (name, arguments) in enumerate(cls._tests()):
            full = "".join([name, *(f"[{case}]" for case in arguments.values())])
            if re.search(select, full) is None:
                continue
            own = folder / str(number)
            own.mkdir()
            try:
                getattr(cls(), name)(own, **arguments)
            except Exception as error:
                found[full] = error
        return found

    @classmethod
    def _tests(cls) -> Iterator[tuple[str, dict[str, str]]]:
        for name in sorted(dir(cls)):
            if name.startswith("test_"):
                has_cases = "case" in inspect.signature(getattr(cls, name)).parameters
                yield from ((name, {"case": case}) for case in cls().cases(name)) if has_cases else [(name, {})]
