"""Every error octavo raises on purpose, as one tree.

    OctavoError
    ├── ConfigError          a model_config.json or an option with an impossible value
    │   └── RatioError       a compression ratio this model cannot serve
    ├── CheckpointError      a checkpoint folder that is incomplete, wrong or not available
    ├── ContextError         a compressed context that is damaged, foreign or unusable
    ├── PromptError          a prompt that is malformed
    │   ├── PromptTooLongError   a prompt beyond the decoder's positions
    │   └── TemplateError        messages that a chat template cannot render
    ├── InputError           a text or file that cannot be read as text
    ├── StoreError           a store, or an entry of it, that is not there or cannot be used
    ├── TrainingError        a recipe or a training run that cannot continue
    ├── EvaluationError      a task, method or set of rows that cannot be evaluated
    └── MissingExtraError    an optional dependency that is not installed

Each message says what was given, what was expected and what to do. All of them are `ValueError`s
too, except `MissingExtraError`, which is an `ImportError`.
"""


class OctavoError(Exception):
    """The root of the tree: `except OctavoError` catches everything octavo raises on purpose."""


class ConfigError(OctavoError, ValueError):
    """A configuration value that cannot work."""


class RatioError(ConfigError):
    """A compression ratio this model cannot serve."""


class CheckpointError(OctavoError, ValueError):
    """A checkpoint that is incomplete, inconsistent or not available."""


class ContextError(OctavoError, ValueError):
    """A compressed context that is damaged, made by another compressor, or unusable here."""


class PromptError(OctavoError, ValueError):
    """A malformed prompt."""


class PromptTooLongError(PromptError):
    """A prompt that does not fit the decoder; nothing is ever cut off silently."""


class TemplateError(PromptError):
    """Messages that the decoder's chat template refuses, or a template that does not work."""


class InputError(OctavoError, ValueError):
    """A text or file that cannot be read as text."""


class StoreError(OctavoError, ValueError):
    """A store, or an entry of it, that is not there or cannot be used."""


class TrainingError(OctavoError, ValueError):
    """A recipe or a training run that cannot continue."""


class EvaluationError(OctavoError, ValueError):
    """A task, method or set of rows that cannot be evaluated."""


class MissingExtraError(OctavoError, ImportError):
    """An optional dependency is missing; the message holds the `pip install` that cures it."""
