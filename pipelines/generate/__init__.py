"""Generation on Ray Data: prompts and references in, images with their provenance out."""

from pipelines.generate.config import GenerateConfig
from pipelines.generate.many import generate_many
from pipelines.generate.run import generate

__all__ = ["GenerateConfig", "generate", "generate_many"]
