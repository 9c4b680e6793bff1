"""The reference to a bundle that jobs, workers and the registry pass around."""

from dataclasses import dataclass

from lookalike.models.presets import Preset


@dataclass(frozen=True)
class BundleReference:
    """Where a bundle is and which content it has; refers to the weights without reading them."""

    uri: str
    """Location of the bundle's folder."""
    sha256: str
    """Its identity, see :func:`lookalike.bundles.manifest.bundle_sha256`."""
    base: "BundleReference | None" = None
    """The bundle that a personal bundle's adapter was trained on; None for a whole bundle."""
    preset: Preset | None = None
    """What the model was made from; None while the ``bundle.json`` at ``uri`` has not been read."""

    @property
    def max_references(self) -> int:
        """Maximum number of reference images that the model reads for one image."""
        return self._preset.references.max_references

    @property
    def stages(self) -> str:
        """Name of the denoising schedule that the model uses unless overridden."""
        return self._preset.stages

    @property
    def _preset(self) -> Preset:
        assert self.preset is not None, "read the manifest with locate_bundle first"
        return self.preset
