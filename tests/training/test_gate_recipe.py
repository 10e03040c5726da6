"""The gate recipe on a tiny base: a plain LoRA comes out untouched, with a gate beside it that knows its queries."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from expert_store import ExpertStore, ExpertVersion, Indicators, ManifestDraft, inspect_adapter, parse_draft
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from tests.support import tiny
from tests.training.test_see import Recorder, rows
from training.data import DataFile, Encoder
from training.errors import InvalidRun
from training.gate import GateOptions, Parent, read_parent, train_gate
from training.selection import About, SelectionData, Trained

FILES = ("adapter_config.json", "adapter_model.safetensors")
OPTIONS = GateOptions(learning_rate=2e-2, batch_size=4, epochs=6, seed=1)
SHORT = GateOptions(learning_rate=5e-3, batch_size=4, epochs=2, seed=7)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def plain(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain LoRA trained elsewhere."""
    return tiny.write_adapter(tmp_path_factory.mktemp("plain"), base_folder, kind="lora", targets=["v_proj"])


def load(folder: Path) -> Base:
    return load_base(str(folder), dtype="fp32", device="cpu", cache=folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SelectionData:
    """Without an answer in any row."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("own", "negatives"):
        (folder / name).write_text(name)
    return SelectionData(
        own=DataFile(folder / "own", rows("jump", 24, answers=False)),
        negatives=(DataFile(folder / "negatives", rows("lazy", 24, answers=False)),),
    )


def run(
    base_folder: Path,
    parent: Parent,
    data: SelectionData,
    out: Path,
    *,
    options: GateOptions = SHORT,
    resume: bool = False,
    observer: Recorder | None = None,
) -> Trained:
    return train_gate(
        load(base_folder),
        parent,
        data,
        options,
        About("fox", "Counts dogs.", ("jump 3",), "relay train gate ..."),
        out=out,
        resume=resume,
        observer=observer or Recorder(),
    )


@pytest.fixture(scope="module")
def trained(
    base_folder: Path, plain: Path, data: SelectionData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Trained]:
    out = tmp_path_factory.mktemp("trained") / "out"
    return out, run(base_folder, read_parent(plain), data, out, options=OPTIONS)


def test_the_folder_holds_the_lora_as_it_was_and_a_gate(
    trained: tuple[Path, Trained], plain: Path, base_folder: Path
) -> None:
    out, _ = trained
    held = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert held == [*FILES, *(f"gate/{name}" for name in FILES), "manifest.json", "profile.safetensors"]
    for name in FILES:
        assert (out / name).read_bytes() == (plain / name).read_bytes()
    base = load(base_folder)
    info = inspect_adapter(out, base.spec, max_rank=8)
    assert info.kind == "lora"
    assert info.gate is not None
    assert info.gate.rank == 4
    assert info.gate.invocation_tokens == ChatFormat(base.tokenizer).generation_prompt
    assert str(base_folder.parent) not in (out / "gate/adapter_config.json").read_text()


def test_the_manifest_says_where_gate_and_expert_came_from(trained: tuple[Path, Trained], plain: Path) -> None:
    out, result = trained
    draft = parse_draft((out / "manifest.json").read_bytes())
    assert (draft.name, draft.description, draft.samples) == ("fox", "Counts dogs.", ("jump 3",))
    assert draft.indicators == Indicators()
    assert draft.threshold == result.calibration.threshold
    assert draft.training is not None
    assert (draft.training.recipe, draft.training.seed, draft.training.rows) == ("gate", 1, 46)
    assert draft.training.command == "relay train gate ..."
    assert draft.training.parameters["parent_sha256"] == read_parent(plain).sha256
    assert draft.training.parent_version is None
    assert "exact_match" not in draft.quality
    assert result.exact_match is None


def test_the_gate_knows_the_queries_and_peft_decides_as_measured(
    trained: tuple[Path, Trained], base_folder: Path
) -> None:
    out, result = trained
    assert (result.calibration.accept_rate, result.calibration.reject_rate) == (1.0, 1.0)
    base = load(base_folder)
    chat = ChatFormat(base.tokenizer)
    tokens = chat.indicator_tokens(Indicators())
    model = PeftModel.from_pretrained(base.model, out / "gate")
    margins = {}
    for text in ("jump 5", "lazy 5"):
        prompt = chat.render([{"role": "user", "content": text}]).tokens + tokens.shared
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        margins[text] = float(logits[tokens.accept_token] - logits[tokens.reject_token])
    assert margins["jump 5"] > 0 > margins["lazy 5"]


def test_the_target_is_the_indicator_alone(base_folder: Path) -> None:
    chat = ChatFormat(load(base_folder).tokenizer)
    tokens = chat.indicator_tokens(Indicators())
    encoder = Encoder(chat, tokens, eos=1, max_tokens=512)
    [row] = rows("jump", 1, answers=False)
    for accepts, indicator in ((True, tokens.accept), (False, tokens.reject)):
        example = encoder.example(row, accepts=accepts)
        assert example.tokens[example.target_start :] == (*indicator, 1)
        assert example.accepts == accepts
        assert example.tokens[example.decision] == (tokens.accept_token if accepts else tokens.reject_token)


def test_an_interrupted_run_resumes_to_the_same_bytes(
    base_folder: Path, plain: Path, data: SelectionData, tmp_path: Path
) -> None:
    parent = read_parent(plain)
    run(base_folder, parent, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, parent, data, tmp_path / "cut", observer=Recorder(fail_after=15))
    with pytest.raises(InvalidRun, match="pass --resume"):
        run(base_folder, parent, data, tmp_path / "cut")
    second = Recorder()
    run(base_folder, parent, data, tmp_path / "cut", resume=True, observer=second)
    assert second.done == 10
    for name in ("gate/adapter_model.safetensors", "manifest.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_run_is_not_resumed_for_another_expert(
    base_folder: Path, plain: Path, data: SelectionData, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, read_parent(plain), data, tmp_path / "cut", observer=Recorder(fail_after=2))
    other = tiny.write_adapter(tmp_path / "other", base_folder, kind="lora", targets=["v_proj"], seed=2)
    with pytest.raises(InvalidRun, match="differs from this run"):
        run(base_folder, read_parent(other), data, tmp_path / "cut", resume=True)


def published(base_folder: Path, root: Path, adapter: Path, draft: ManifestDraft) -> ExpertVersion:
    store = ExpertStore.open(root)
    with store.stage() as staged:
        for name in FILES:
            (staged.folder / name).write_bytes((adapter / name).read_bytes())
        info = inspect_adapter(staged.folder, load(base_folder).spec, max_rank=8)
        return store.publish(staged, draft, info, name="fox")


def test_the_expert_may_be_a_version_of_a_store_which_is_then_the_parent(
    base_folder: Path, plain: Path, data: SelectionData, tmp_path: Path
) -> None:
    draft = ManifestDraft(description="Counts.", quality={"exact_match": 0.5, "guard_leaves_out": 0.5})
    version = published(base_folder, tmp_path / "store", plain, draft)
    options = GateOptions(rank=2, batch_size=8)
    train_gate(
        load(base_folder),
        read_parent(version.folder),
        data,
        options,
        About(),
        out=tmp_path / "out",
        resume=False,
        observer=Recorder(),
    )
    said = parse_draft((tmp_path / "out/manifest.json").read_bytes())
    assert said.training is not None
    assert (said.training.parent_version, said.name, said.description) == (1, "fox", "Counts.")
    assert said.quality["exact_match"] == 0.5, "measured on the plain LoRA, which is the same"
    assert "guard_leaves_out" not in said.quality, "measured with a guard that so few rows do not give"


@pytest.mark.parametrize(
    ("kind", "manifest", "reason"),
    [
        ("alora", None, "which is asked as it is"),
        ("lora", {"indicators": {}}, "accepts and rejects by itself"),
        ("missing", None, "is not there"),
    ],
)
def test_who_has_no_use_for_a_gate_is_refused(
    base_folder: Path, tmp_path: Path, kind: str, manifest: dict[str, object] | None, reason: str
) -> None:
    folder = tmp_path / "expert"
    if kind != "missing":
        tiny.write_adapter(folder, base_folder, kind="alora" if kind == "alora" else "lora", invocation=[0])
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidRun, match=reason):
        read_parent(folder)


def test_a_new_gate_may_replace_an_old_one(trained: tuple[Path, Trained]) -> None:
    assert read_parent(trained[0]).said.indicators == Indicators()


def test_an_expert_of_another_base_or_in_the_way_is_refused_before_training(
    base_folder: Path, plain: Path, data: SelectionData, tmp_path: Path
) -> None:
    foreign = Parent(plain, ManifestDraft(base_fingerprint="sha256:" + "1" * 64))
    with pytest.raises(InvalidRun, match="was trained on base sha256:1111"):
        run(base_folder, foreign, data, tmp_path / "out")
    with pytest.raises(InvalidRun, match="the folder of the expert itself"):
        run(base_folder, read_parent(plain), data, plain)
    assert not (tmp_path / "out").exists()
