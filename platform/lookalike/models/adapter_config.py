"""Check the LoRA settings of peft: each one is applied exactly or refused by name."""

from collections.abc import Mapping
from typing import Any

from lookalike.errors import InputError

_EXACT = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "use_dora",
    "lora_bias",
)
_NO_EFFECT = (
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "megatron_core",  # without megatron_config
    "qalora_group_size",  # without use_qalora
    "fan_in_fan_out",  # peft turns it off for linear layers
    "eva_config",  # with init_lora_weights=eva
    "ensure_weight_tying",  # of modules_to_save
)
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the weights of the base
_UNSET: tuple[Any, ...] = (None, False, "", "none", [], {}, ())


def check_settings(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the arguments of ``peft.LoraConfig`` that are equivalent to ``values`` (an ``adapter_config.json``).

    Fields that this version of peft does not have are ignored if they are unset.

    Raises:
        InputError: another method than LoRA, an unsupported setting, an invalid value, or no rank, alpha or targets.
    """
    method = str(values.get("peft_type") or "LORA").upper().removeprefix("PEFTTYPE.")
    if method != "LORA":
        raise InputError(
            f"the adapter's method is {method}, not LoRA", value=origin, fix="use a LoRA, or merge it into its base"
        )
    for name in ("r", "lora_alpha", "target_modules"):
        if values.get(name) in _UNSET and (name != "lora_alpha" or values.get(name) is None):
            raise InputError(
                f"the settings of the LoRA have no {name}", value=origin, fix="copy adapter_config.json again"
            )
    initialisation = values.get("init_lora_weights", True)
    if initialisation not in _INITIALISATIONS:
        raise _unsupported("init_lora_weights", f"{initialisation} changes the weights of the base", origin)
    for name, value in values.items():
        known = name in _EXACT or name in _NO_EFFECT or name == "init_lora_weights"
        if not known and not any(value == unset for unset in _UNSET):
            raise _unsupported(name, value, origin)
    result = {name: values[name] for name in _EXACT if values.get(name) is not None}
    try:
        result["r"], result["lora_alpha"] = int(result["r"]), float(result["lora_alpha"])
        ranks = [result["r"], *dict(result.get("rank_pattern") or {}).values()]
        if any(type(rank) is not int or rank < 1 for rank in ranks) or result["r"] != values["r"]:
            raise ValueError("a rank is not a whole number of 1 or more")
        for alpha in (result["lora_alpha"], *dict(result.get("alpha_pattern") or {}).values()):
            if not -1e9 < float(alpha) < 1e9:
                raise ValueError("an alpha is not a finite number")
        peft_config(result)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the settings of the LoRA are invalid ({error})", value=origin, fix="correct adapter_config.json"
        ) from error
    check_alphas(result, origin)
    return result


def check_alphas(settings: Mapping[str, Any], origin: str) -> None:
    """Raise InputError if every alpha is 0: such a LoRA has no effect."""
    if not any([settings["lora_alpha"], *(settings.get("alpha_pattern") or {}).values()]):
        raise InputError(
            "the alpha of the LoRA is 0: it has no effect", value=origin, fix="train it with an alpha above 0"
        )


def peft_config(settings: Mapping[str, Any]) -> Any:
    """Make peft's configuration, with which injecting a LoRA does not change the base."""
    from peft import LoraConfig

    return LoraConfig(**settings, bias="none", init_lora_weights=True)


def _unsupported(name: str, value: Any, origin: str) -> InputError:
    shown = str(value)
    return InputError(
        f"the adapter needs {name} ({shown[:80]}), which is not supported",
        value=origin,
        fix="merge it into its base with peft (merge_and_unload) and set the result as pipe.transformer",
    )
