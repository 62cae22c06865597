"""The version of this package, as its metadata has it."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the version; "unknown" where the package is on the path without having been installed."""
    try:
        return version("taxbreak-vllm")
    except PackageNotFoundError:
        return "unknown"
