"""Which files make up a version, and which of them lie in a folder. Knows names alone; nothing of what files hold."""

from pathlib import Path

from expert_store.disk import is_plain_folder
from expert_store.peft_config import CONFIG_FILE
from expert_store.weights import WEIGHTS_FILE

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
GATE_FOLDER = "gate"
GATE_FILES = tuple(f"{GATE_FOLDER}/{name}" for name in ADAPTER_FILES)


def version_files(*, gated: bool) -> tuple[str, ...]:
    """The files of a version, by their path in its folder; its manifest comes on top."""
    return (*ADAPTER_FILES, *GATE_FILES) if gated else ADAPTER_FILES


def gate_file(file_name: str) -> str | None:
    """What a version's file is called inside its gate; None if it is not one of the gate's."""
    folder, _, name = file_name.partition("/")
    return name if folder == GATE_FOLDER and name else None


def entries(folder: Path) -> set[str]:
    """What lies in a version's folder, by path in it. No folder but the gate's is looked into, and no link."""
    found: set[str] = set()
    for path in folder.iterdir():
        inside = path.iterdir() if path.name == GATE_FOLDER and is_plain_folder(path) else ()
        found |= {f"{path.name}/{child.name}" for child in inside} or {path.name}
    return found
