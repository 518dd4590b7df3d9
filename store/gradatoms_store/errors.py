"""Errors of the gradient store.

Each inherits the matching builtin, so that a caller may catch either, and each message is one line: what was
expected, what came, what to do next.
"""


class StoreError(Exception):
    """Any failure of the gradient store, also one that has no closer class: no space, an I/O error, a held lock."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no gradient store at this path."""


class StoreExistsError(StoreError, FileExistsError):
    """A new store was to be made at a path that exists."""


class StoreFormatError(StoreError, ValueError):
    """The content on disk is damaged, foreign, or of a future version; the message names the file and the field."""


class StoreMismatchError(StoreError, ValueError):
    """A store is used with another model, hook, dtype, ...; the message lists each differing field with both values."""


class StoreValueError(StoreError, ValueError):
    """A value given by the caller is wrong: NaN gradients, wrong shapes, an unknown hook, a row that is not there."""
