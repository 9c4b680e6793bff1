"""Load the models of a bundle in a local folder. Light at import: data workers load the preprocessor without torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.bundles.manifest import read_preset
from lookalike.bundles.verification import open_bundle
from lookalike.models.preprocess import Preprocessor
from lookalike.process_wide import alone_in_process

if TYPE_CHECKING:
    import torch

    from lookalike.models.subject import SubjectModel


def load_preprocessor(bundle_dir: Path) -> Preprocessor:
    """Load what writes prompts and images as the bundle's models read them.

    Raises InputError if the folder has no tokenizer, or one that does not fit the MLLM.
    """
    return Preprocessor.from_folder(bundle_dir, read_preset(bundle_dir))


def build_model(bundle_dir: Path, dtype: "torch.dtype | None" = None) -> "SubjectModel":
    """Build a bundle's architecture without its weights, by default in float32.

    As :meth:`~lookalike.models.subject.SubjectModel.from_config`, it works inside ``deepspeed.zero.Init`` and under
    ``torch.device("meta")``.
    """
    from lookalike.models.subject import SubjectModel

    return SubjectModel.from_config(bundle_dir, read_preset(bundle_dir).references, dtype)


@alone_in_process()
def load_model(bundle_dir: Path, base_dir: Path | None = None, dtype: "torch.dtype | None" = None) -> "SubjectModel":
    """Build a bundle's model and load its weights strictly, with its adapter if it has one; in evaluation mode.

    Raises InputError if the bundle is damaged or has another base, or a tensor is missing, unknown or of another shape.
    """
    from lookalike.models.adapters import load_lora
    from lookalike.models.weights import load_weights

    components, adapter = open_bundle(bundle_dir, base_dir)
    model = build_model(components, dtype)
    load_weights(model, components)
    if adapter is not None:
        load_lora(model.transformer, adapter)
        model.set_trainable(())
    return model.eval()
