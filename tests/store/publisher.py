"""A process of its own for the tests of concurrency: publishes placeholder files and says each number it got.

Usage: python publisher.py ROOT NAME COUNT
"""

import sys
from pathlib import Path

from expert_store import ExpertStore, Indicators, ManifestDraft
from expert_store.adapter import AdapterInfo


def main(root: str, name: str, count: str) -> None:
    store = ExpertStore.open(Path(root))
    info = AdapterInfo("lora", 2, ("q_proj",), 64, None, "sha256:" + "0" * 64)
    for number in range(int(count)):
        with store.stage() as staged:
            (staged.folder / "adapter_config.json").write_text("{}")
            (staged.folder / "adapter_model.safetensors").write_bytes(bytes(1000 + number))
            version = store.publish(staged, ManifestDraft(indicators=Indicators()), info, name=name)
        print(version.version, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
