"""The one definition of every config: pydantic and yaml only, imported by every other room and importing none."""
