"""A static page that runs a bundle's variants side by side in a browser."""

from .site import write_site

__all__ = ["write_site"]
