"""Human preference: a page of blind pairs for judges, and the statistics of their choices."""

from pipelines.preference.config import MakeConfig, ReadConfig
from pipelines.preference.make import make
from pipelines.preference.read import read
from pipelines.preference.text import to_text

__all__ = ["MakeConfig", "ReadConfig", "make", "read", "to_text"]
