"""Load the pipeline of a bundle by its reference."""

import diffusers
import transformers

from lookalike.bundles.manifest import BundleReference
from lookalike.bundles.transfer import local_folders
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.documents import decoding
from lookalike.models.components import REPAIR


def load_pipeline(bundle: BundleReference, device: str) -> SubjectPipeline:
    """Load a bundle, and the base of a personal one, onto ``device``; without progress bars.

    Raises InputError if the bundle is damaged or was replaced, or the base is not the one of the adapter.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with decoding("a loadable bundle", bundle.uri, fix=REPAIR):
        folder, base = local_folders(bundle)
        pipe = SubjectPipeline.from_pretrained(folder, base=base)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe
