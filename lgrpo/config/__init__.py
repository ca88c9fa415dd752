"""All settings, how they are given, and what ties them together. Settings are imported from here."""

from lgrpo.config.settings import *  # noqa: F403
