"""A backend that imports a package which is not installed."""

import package_that_is_absent  # type: ignore[import-not-found]  # noqa: F401  fails on import
