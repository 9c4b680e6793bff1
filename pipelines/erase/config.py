"""The configurations of `jobs/erase.py`, one for each subcommand."""

from dataclasses import field

from lookalike.config import POSITIONAL
from lookalike.values import NonNegative, configuration


@configuration()
class PlanConfig:
    """Show what an erasure would remove: objects and bytes by kind, entries in MLflow, shared data. Changes nothing."""

    customer: str
    """Id of the customer."""
    store: str
    """URI of the store, as its finetunes named it."""
    subject: str | None = None
    """Id of one of its subjects; by default all of them, and the customer's own entries."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI. Name the database itself (sqlite:, postgresql:) if it can be
    reached from here: only then runs are removed for good, as by ``mlflow gc``."""
    search: list[str] = field(default_factory=list)
    """URIs to search for what lies outside of the customer's prefix: images and scores that its models made, shared
    data sets that hold its photos, models that learned from them. May be repeated; by default the store. The price is
    one listing of each."""
    requests: list[str] = field(default_factory=list)
    """URIs of folders of requests (``jobs/finetune_fleet.py --requests``), whose files of the customer are removed with
    what a fleet recorded of them. May be repeated. The price is one read of each file."""
    take_down: str | None = None
    """URI of the take-down list that shared data sets are curated with (``filters.taken_down.list``). Photos that a
    shared data set holds are added to it."""


@configuration()
class EraseConfig(PlanConfig):
    """Erase a customer, or one of its subjects. Killed at any moment, the same command completes it.

    Needs the operator's Ed25519 key in LOOKALIKE_SIGNING_KEY, which signs the receipt.
    """

    receipts: str | None = None
    """URI for receipts; by default ``receipts`` in the store. A receipt contains no names."""
    wait_s: NonNegative = 180
    """Seconds to wait until jobs that work for the customer have stopped. A job on a lost machine counts as stopped a
    minute after its last heartbeat."""
    webhook: str | None = None
    """URL that receives the event ``finetune.erased``, signed as those of a finetune. Requests do not store theirs. A
    receiver that does not answer is tried for two hours, while new requests are refused; a kill does not matter."""


@configuration()
class SweepConfig:
    """Erase every subject whose finetunes have all expired (``expires_at`` in their ``request.json``)."""

    store: str
    """URI of the store."""
    tracking: str | None = None
    """As in ``run``."""
    search: list[str] = field(default_factory=list)
    """As in ``run``."""
    requests: list[str] = field(default_factory=list)
    """As in ``run``."""
    take_down: str | None = None
    """As in ``run``."""
    receipts: str | None = None
    """As in ``run``."""
    wait_s: NonNegative = 180
    """As in ``run``."""
    delete: bool = False
    """Erase. Without it the job only lists what is due, and what is not, with its reason."""


@configuration()
class VerifyConfig:
    """Check the signature of a receipt, and whose erasure it records."""

    receipt: str = field(metadata=POSITIONAL)
    """URI of the receipt."""
    public_key: str | None = None
    """The operator's public key in base64, or a file with it in base64 or PEM. Without it the key beside the receipt is
    used, which whoever can write there could have replaced."""
    customer: str | None = None
    """Check that the receipt is of this customer."""
    subject: str | None = None
    """Check that it is of this subject."""
