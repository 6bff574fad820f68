"""A run's result to the hub, with the model card that tells what it was made from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, ConfigError
from alignkit.run_folder import RunRecord, StageRecord, open_run

EXPORT = "export"
"""The verb whose folder is pushed as it is, where the run has made one of its newest policy."""


def push(run: str | Path, repo: str, *, private: bool = False, message: str = "") -> str:
    """Put the newest policy of a run on the hub: a plain Hugging Face folder, adapter merged, and its model card.

    Where to, and as whom, is `huggingface_hub`'s: HF_ENDPOINT, HF_TOKEN, `hf auth login`.

    Args:
        run: the run's folder.
        repo: "USER/NAME"; made where there is none.
        private: make it a private one. One that is there stays what it is.
        message: of the commit; default what was pushed.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: no run folder, a run without a policy, or a name that is none.
        DataError: a run of another format, or one whose record is torn.
        AlignkitError: the hub refuses, or cannot be reached.
    """
    record = open_run(Path(run))
    policies = [stage for stage in record.stages if "policy" in stage.made]
    if not policies:
        raise ConfigError("the run has no policy yet", where=str(run), remedy="run its script to the end first")
    _check_name(repo)
    with tempfile.TemporaryDirectory(prefix="alignkit-push-") as scratch:
        folder = _exported(record, policies[-1]) or _export(record, policies[-1], Path(scratch) / "model")
        return _upload(folder, repo, private, message or f"{policies[-1].name} of {record.name}, by alignkit")


def _check_name(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{repo!r} is no name of a repository: {said}", where="push", remedy="USER/NAME") from None


def _exported(record: RunRecord, policy: StageRecord) -> Path | None:
    """The folder that the run exported this policy to, if it did."""
    made = [stage for stage in record.stages if stage.verb == EXPORT and policy.key in str(stage.inputs.get("policy"))]
    return made[-1].folder / "model" if made else None


def _export(record: RunRecord, stage: StageRecord, folder: Path) -> Path:
    from alignkit.models import Policy
    from alignkit.stages.card import lineage, model_card

    Policy.load(stage.model).export(folder)
    card = model_card(stage.name, lineage(record.folder, stage.key), record.seed or 0, record.precision)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _upload(folder: Path, repo: str, private: bool, message: str) -> str:
    from huggingface_hub import HfApi, errors
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    transport: Any = getattr(errors, "HTTPError", OSError)  # of the client that this version of it uses
    api: Any = HfApi(library_name="alignkit")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except OfflineModeIsEnabled:
        raise _failed(repo, "HF_HUB_OFFLINE is set", "unset it, and try again") from None
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        remedy = "hf auth login, or HF_TOKEN with the right to write there"
        raise _failed(repo, " ".join(str(error).split())[:300], remedy) from None
    except (transport, OSError) as error:
        said = f"the hub cannot be reached ({type(error).__name__})"
        raise _failed(repo, said, "look at the network, HF_ENDPOINT and HTTPS_PROXY") from None
    return str(commit.commit_url)


def _failed(repo: str, what: str, remedy: str) -> AlignkitError:
    return AlignkitError(what, where=f"push to {repo}", effect="The run is as it was.", remedy=remedy)
