"""From the name of a module, or a path, to an app's definition."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import re
import sys
import traceback
from os.path import normpath
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Final

from posthog_jobs.apps.definition import define_app
from posthog_jobs.apps.manifest import FILE, NO_MANIFEST, Manifest
from posthog_jobs.errors import AppLoadError

if TYPE_CHECKING:
    from posthog_jobs.apps.definition import AppDefinition

#: What the `main` of PostHog's own apps ends with.
_JAVASCRIPT: Final = frozenset({".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx"})

logger = logging.getLogger(__name__)

_APP_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,199}\Z")

_loaded: Final[dict[str, AppDefinition]] = {}
_lock: Final = RLock()


def load_app(source: str) -> AppDefinition:
    """Import an app and check what it exports, once per process.

    Args:
        source: an importable module (`myapps.teapot`), the path of a `.py` file, or the path
            of a folder with an `__init__.py`, or with a `plugin.json` whose `main` names the
            file.

    Returns:
        The app's definition. Its name is `name` in `plugin.json`, where there is one, else
        that of the module, file or folder.

    Raises:
        AppLoadError: there is no such module or file, it raises when imported, or it exports
            what no app may export.
    """
    with _lock:
        if not _is_path(source):
            if source not in _loaded:
                _loaded[source] = _load_module(source)
            return _loaded[source]
        try:
            path = Path(source).expanduser()
            if path.name == "__init__.py":
                path = path.parent
            key = str(path.resolve())
            if key not in _loaded:
                _loaded[key] = _load_path(source, path)
        except (OSError, ValueError, RuntimeError) as error:
            # no such user, no permission, a loop of links, a name that no file can have
            raise AppLoadError(f"{source!r} cannot be read: {error}; check the path") from None
        return _loaded[key]


def resolved(source: str) -> str:
    """Return a source as it reads in whichever folder a process runs: a path in full."""
    return str(Path(source).expanduser().resolve()) if _is_path(source) else source


def _is_path(source: str) -> bool:
    return source.endswith(".py") or source.startswith(("~", ".")) or "/" in source


def _load_module(name: str) -> AppDefinition:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise AppLoadError(
                f"there is no module {name!r}; check the spelling, install the package, or put its "
                "folder on PYTHONPATH"
            ) from None
        raise _import_failed(name, error) from error
    except (AppLoadError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _import_failed(name, error) from error
    manifest = NO_MANIFEST
    if module.__file__:
        file = Path(module.__file__)
        is_package = hasattr(module, "__path__")
        manifest = _manifest(file.parent) if is_package else _manifest_of(file)
    app_name = _app_name(manifest, name.rpartition(".")[2], name)
    return define_app(app_name, name, vars(module), manifest)


def _load_path(source: str, path: Path) -> AppDefinition:
    if not path.exists():
        raise AppLoadError(f"there is no file or folder {source!r}; check the path")
    manifest = _manifest(path) if path.is_dir() else _manifest_of(path)
    main = path
    if path.is_dir():
        main = path / ("__init__.py" if manifest.main is None else manifest.main)
    if main.suffix in _JAVASCRIPT:
        raise AppLoadError(
            f'{str(main)!r} is not a Python file; port the app, and name its Python file as "main" '
            f"in its {FILE}"
        )
    if not main.is_file() or path.resolve() not in (main.resolve(), *main.resolve().parents):
        raise AppLoadError(
            f"folder {source!r} has no file {main.name!r}; add it, or name the app's Python file "
            f'as "main" in its {FILE}'
        )
    module_name = (
        f"posthog_jobs_app_{hashlib.sha256(str(main.resolve()).encode()).hexdigest()[:16]}"
    )
    spec = importlib.util.spec_from_file_location(
        module_name, main, submodule_search_locations=[str(path)] if path.is_dir() else None
    )
    if spec is None or spec.loader is None:
        raise AppLoadError(f"{str(main)!r} is not a Python file; an app's file ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        # a folder's dots are part of its name, and "." is named by where it is
        fallback = (path.name or path.resolve().name) if path.is_dir() else path.stem
        app_name = _app_name(manifest, fallback, source)
        return define_app(app_name, source, vars(module), manifest)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, (AppLoadError, KeyboardInterrupt)):
            raise
        raise _import_failed(source, error) from error


def _manifest(folder: Path) -> Manifest:
    """Return what the plugin.json of an app's folder says."""
    file = folder / FILE
    return Manifest.parse(_read(file), str(file)) if file.is_file() else NO_MANIFEST


def _manifest_of(module: Path) -> Manifest:
    """Return what the plugin.json beside a module says, if it is that module's."""
    file = module.parent / FILE
    declared = _read(file) if file.is_file() else None
    main = declared.get("main") if isinstance(declared, dict) else None
    # not resolved, since in a file that may be anybody's it may be what no file can be called
    if not isinstance(main, str) or normpath(module.parent / main) != normpath(module):
        if isinstance(main, str) and Path(main).suffix in _JAVASCRIPT:
            logger.warning(
                '%s is not read for %s: its "main" is %r; if it is this app\'s, make that %r',
                file,
                module,
                main,
                module.name,
            )
        return NO_MANIFEST
    return Manifest.parse(declared, str(file))


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AppLoadError(f"{file} cannot be read as JSON: {error}") from None


def _app_name(manifest: Manifest, fallback: str, source: str) -> str:
    written = fallback if manifest.name is None else manifest.name
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", written.strip())
    if not _APP_NAME.match(name):
        raise AppLoadError(
            f"{source}: {written!r} gives no app name for tasks; rename the file, or set "
            f'"name" in its {FILE}, starting with a letter, up to 200 characters'
        )
    return name


def _import_failed(source: str, error: BaseException) -> AppLoadError:
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    else:
        place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return AppLoadError(f"importing {source!r} raised {reason}{place}; mend the app's code")
