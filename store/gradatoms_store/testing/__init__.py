"""Conformance suites for `FORMAT.md`: subclass `ReaderSuite` or `WriterSuite`, and pytest runs every rule of the page.

    from gradatoms_store.testing import ReaderSuite

    class TestMyReader(ReaderSuite):
        refusals = (MyError,)

        def open(self, path):
            return MyAdapter(path)  # directions(hook), norms(hook), rows(), examples()

pytest is not needed: `TestMyReader.failures(folder)` runs the same tests. `check_store` checks one store that is there,
and `PlainReader` reads one, both by h5py and the page alone.
"""

from gradatoms_store.testing.plain import PlainReader
from gradatoms_store.testing.reading import ContentSuite, OpenStore, ReaderSuite
from gradatoms_store.testing.rules import check_store, check_tidy
from gradatoms_store.testing.samples import sample_header, sample_unit
from gradatoms_store.testing.suite import RuleBrokenError, Suite
from gradatoms_store.testing.writing import WriterSuite

__all__ = [
    "ContentSuite",
    "OpenStore",
    "PlainReader",
    "ReaderSuite",
    "RuleBrokenError",
    "Suite",
    "WriterSuite",
    "check_store",
    "check_tidy",
    "sample_header",
    "sample_unit",
]
