"""Tells a listener which spans coding spends its time on.

The codec names each span where it happens, `with phase("transform"):`. Without a listener, this costs no more than to
enter an empty context. The spans are "load" (weights, sessions, tables), "transform" (g_a and h_a, g_s, the gradient of
effort), "entropy path" (h_s and the context model), and inside the entropy path "rANS" (the entropy coder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias

Listener: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Takes the name of a span and returns a context; the span happens inside this context."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_UNHEARD = nullcontext()


def phase(name: str) -> AbstractContextManager[None]:
    """A context whose inside is the span `name`. A span inside another one does not count as part of the outer one."""
    listener = _listener.get()
    return _UNHEARD if listener is None else listener(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside this context, `listener` is told the spans that this thread goes through."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
