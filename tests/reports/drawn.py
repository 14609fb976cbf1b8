"""The figures that a module draws, as matplotlib has them, for tests that look at more than the file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure


def remember_figures(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Figure]:
    """A list to which every figure is added that the module saves from now on."""
    figures: list[Figure] = []
    save = module.save_figure

    def remember(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(module, "save_figure", remember)
    return figures
