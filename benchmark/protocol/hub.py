"""Uploading a results repository. Who may write where is the client's business: no credential is read here."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cilbench.errors import RequestError


def uploader(hub: str) -> Callable[[Path], str]:
    """What uploads a folder to `hub` (huggingface:OWNER/NAME) and returns its address.

    Raises RequestError, here and in what is returned: one line that says what is allowed or what went wrong.
    """
    match = re.fullmatch(r"huggingface:([\w.-]+/[\w.-]+)", hub)
    if match is None:
        raise RequestError(f"--hub {hub}: allowed is huggingface:OWNER/NAME")
    repo = match[1]
    try:
        library: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise RequestError(f"--hub {hub} needs `pip install 'cilbench[hf]'`") from None

    def upload(folder: Path) -> str:
        client = library.HfApi()
        try:
            client.create_repo(repo, repo_type="dataset", exist_ok=True)
            place = {"repo_id": repo, "repo_type": "dataset", "commit_message": "Results of cilbench publish"}
            return str(client.upload_folder(folder_path=str(folder), **place))
        except Exception as error:  # a network, a server, a missing login: nearly anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.150}"
            raise RequestError(f"--hub {hub}: {reason}; {folder} is whole, try again (`hf auth login`)") from error

    return upload
