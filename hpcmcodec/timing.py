"""Where coding spends its time: its phases, told to whoever listens.

The codec names what it does where it does it, `with phase("transform"):`. Nobody listens unless asked to, and then a
phase costs what entering an empty context does. Phases: "load" (weights, sessions, tables), "transform" (g_a and h_a,
g_s, the gradient of effort), "entropy path" (h_s and the context model), "rANS" (the entropy coder, inside of it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias

Listener: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Is told a phase's name; the phase happens inside of the context that it gives."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_UNHEARD = nullcontext()


def phase(name: str) -> AbstractContextManager[None]:
    """What happens inside belongs to phase `name`; one inside another is no part of it."""
    listener = _listener.get()
    return _UNHEARD if listener is None else listener(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """`listener` is told the phases that this thread goes through inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
