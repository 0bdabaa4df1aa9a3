"""Clients: whether they repeat a rejected request, when, and when they give up."""

import math
import random
from dataclasses import dataclass

_BACKOFF_S, _MOST_BACKOFF_S = 0.5, 8.0
"""openai-python's delays between attempts when the answer has no usable `Retry-After`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client's rules. It makes at most `attempts`, and begins none after `patience_s` seconds."""

    attempts: int = 1
    honours_retry_after: bool = True
    patience_s: float = math.inf

    def waits_s(self, attempt: int, since_s: float, retry_after_s: int, chance: random.Random) -> float | None:
        """Return the seconds until the next attempt; None if the client gives up.

        `attempt` counts from 1. The first attempt was `since_s` seconds ago. `retry_after_s` is 0 without the header.
        """
        if attempt >= self.attempts:
            return None
        if self.honours_retry_after and retry_after_s:
            wait_s = float(retry_after_s)
        else:
            wait_s = min(_BACKOFF_S * 2.0 ** (attempt - 1), _MOST_BACKOFF_S) * chance.uniform(0.75, 1.0)
        return wait_s if since_s + wait_s <= self.patience_s else None


ONCE = Client()
PATIENT = Client(attempts=1000, patience_s=60.0)
"""Honours `Retry-After` for a minute."""
SDK = Client(attempts=3)
"""openai-python with its defaults: two more attempts."""
IMPATIENT = Client(attempts=1000, patience_s=60.0, honours_retry_after=False)
"""Asks again and again for a minute."""
