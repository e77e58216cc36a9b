"""Part of building a wheel: it carries the kernels' library where `make kernels` has built one, and says so in its tag.

Without a library the wheel is for any platform, `py3-none-any`; with one it is for this machine's, for instance
`py3-none-linux_x86_64`. The platform is the plain one: a manylinux tag promises that the library loads on older systems
than the one that it was built on.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags


class Hook(BuildHookInterface[Any]):
    """What hatchling calls before it builds a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add library and tag to the wheel; an editable install finds the library in the checkout."""
        if version == "editable":
            return
        build, kernels = _build(Path(self.root)), Path(self.root, "kernels")
        library = build.prebuilt(kernels, build.source_hash(kernels))
        if library and build.is_whole(library):
            build_data["force_include"][str(library)] = f"hpcmcodec/data/kernels/{library.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"


def platform_tag() -> str:
    """This machine's, without a promise about the system's libraries."""
    return next(t.platform for t in sys_tags() if not t.platform.startswith(("manylinux", "musllinux")))


def _build(root: Path) -> ModuleType:
    """The package's own module of that name, which knows where libraries are. The package is not installed here."""
    spec = importlib.util.spec_from_file_location("hpcmcodec_build", root / "hpcmcodec" / "native" / "build.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {root / 'hpcmcodec' / 'ops' / 'build.py'}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
