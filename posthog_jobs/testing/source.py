"""What can be tested, made into what `posthog_jobs_apps` can name."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from itertools import count
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: A module, the name or the path of one, or a mapping of what one would export.
App: TypeAlias = "ModuleType | str | PathLike[str] | Mapping[str, Any]"

_numbers: Final = count(1)


@contextmanager
def loadable(app: App) -> Iterator[str]:
    """Give the name or path under which an app can be loaded meanwhile.

    An app is a module; a mapping, or a module that was never imported, is made one of its own.
    """
    if isinstance(app, str):
        yield app
    elif isinstance(app, PathLike):
        yield str(Path(fspath(app)).absolute())
    elif isinstance(app, ModuleType) and sys.modules.get(app.__name__) is app:
        yield app.__name__
    else:
        number = next(_numbers)
        name = f"posthog_jobs_tested_{number}.app_{number}"
        module = ModuleType(name)
        exports = vars(app) if isinstance(app, ModuleType) else app
        vars(module).update({"__file__": None, **exports})
        sys.modules[name] = module
        try:
            yield name
        finally:
            del sys.modules[name]
