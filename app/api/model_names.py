"""The names by which clients may ask for the served model."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import ModelNotFoundError
from app.settings import split_list


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The served model's name, such as `stabilityai/sdxl-turbo`, and other models' names that stand for it."""

    served: str
    aliases: Sequence[str]

    @classmethod
    def of(cls, served: str, setting: str) -> "ModelNames":
        """Make the names from `TURBO_MODEL_ALIASES`; an alias that is the served name is left out."""
        aliases = [] if setting == "none" else split_list(setting)
        return cls(served, [alias for alias in dict.fromkeys(aliases) if alias != served])

    @property
    def short(self) -> str:
        """The last part of the served model's name."""
        return self.served.rstrip("/").rpartition("/")[2]

    def has(self, name: str) -> bool:
        return name in ("", self.served, self.short, *self.aliases)

    def check(self, name: str | None) -> None:
        """Check a model's name as a client sends it; None and an empty name mean the served model.

        Raises:
            ModelNotFoundError: The name is another model's.
        """
        if name is not None and not self.has(name):
            raise ModelNotFoundError(self.reason, param="model")

    @property
    def reason(self) -> str:
        """Why another name is rejected, and which names work."""
        aliases = f" {', '.join(self.aliases)} stand for it." if self.aliases else ""
        return f"The served model is {self.served}. Send this name or none.{aliases}"
