"""Evaluation: how often a model is right, and whether two are equally good.

Importing this package makes lm_eval know two models, `tilewise` for texts and `tilewise-vlm` for texts and pictures.
They are registered by name, so neither lm_eval's heavy parts nor torch are loaded before one is used. Without lm_eval,
which is an extra, everything that does not need it works.
"""

from __future__ import annotations

from pathlib import Path

TASKS = Path(__file__).parent / "tasks"
"""Folder of the tasks that ship with the package, in lm_eval's form."""

MODELS = {
    "tilewise": "tilewise.evals.models:TextModel",
    "tilewise-vlm": "tilewise.evals.models:PictureModel",
}


def _register() -> None:
    try:
        import lm_eval.models  # noqa: F401  # first: its own models come only into a registry that is empty
        from lm_eval.api.registry import model_registry
    except ModuleNotFoundError:
        return
    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


_register()
