"""The library's errors. Each message is one line: what was expected, what came, what to do next."""

from __future__ import annotations


class GradAtomsError(Exception):
    """Base of every error that the library raises on purpose."""


class ExampleError(GradAtomsError, ValueError):
    """An example, or a file of examples, cannot be used."""


class UnusableExampleError(ExampleError):
    """An example is well formed, but not with this model, objective or positions."""


class ModelLoadError(GradAtomsError, OSError):
    """A model or its tokenizer cannot be found or read."""


class HookError(GradAtomsError, KeyError):
    """A hook name does not exist on the model."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class ConfigError(GradAtomsError, ValueError):
    """A setting is out of range, unknown, or contradicts another."""


class GradientError(GradAtomsError, ValueError):
    """A gradient is not finite, or cannot be taken."""


class ModelMismatchError(GradAtomsError, ValueError):
    """An artifact was made with another model than the one at hand."""


class AtomsFormatError(GradAtomsError, ValueError):
    """An ``.atoms`` folder is missing, damaged, incomplete or from a newer version."""


class OutputExistsError(GradAtomsError, FileExistsError):
    """The output path is taken; nothing was overwritten."""
