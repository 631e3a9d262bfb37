"""Whether a package is installed, and new enough; looked up without importing it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def older(package: str, least: tuple[int, ...]) -> bool:
    """Whether the installed ``package`` says that it is older than ``least``; one that does not say is taken as new."""
    match = re.match(r"\d+(\.\d+)*", _version(package))
    return match is not None and tuple(map(int, match.group().split("."))) < least


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
