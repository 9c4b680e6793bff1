"""The sample world: rendered subjects, so that the truth about every photo is known."""
