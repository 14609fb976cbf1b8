"""What the sections of `qa.yaml` have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings that cannot change, in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
