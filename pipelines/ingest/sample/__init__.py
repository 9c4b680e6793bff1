"""The sample world: subjects that exist only in a renderer, so that everything about every photo is known."""
