"""The SFA recipe on a tiny base: the averaging's arithmetic, an expert's next version, resumption, mistakes."""

import json
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from expert_store import ExpertStore, ExpertVersion, inspect_adapter, parse_draft, read_profile
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.feature import PromptFeature
from tests.support.tiny import publish, write_adapter, write_base
from training.averaging import Averaging, averaging_steps, freeze_down_projections
from training.commands import app
from training.data import read_rows
from training.errors import Diverged, InvalidRun
from training.guard import fit_guard
from training.sfa import NextVersion, SfaOptions, find_parent, train_sfa


class Watcher:
    """A run's observer; stops it after so many steps, as a crash would."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.losses: list[float] = []
        self._fail_after = fail_after

    def begin(self, *, done: int, total: int) -> None: ...

    def step(self, *, loss: float, tokens: int) -> None:  # noqa: ARG002
        if len(self.losses) == self._fail_after:
            raise KeyboardInterrupt
        self.losses.append(loss)


# --- the arithmetic ---


@pytest.mark.parametrize(
    ("num_steps", "share", "due"),
    [
        (12, 0.25, {3, 6, 9, 12}),
        (10, 0.25, {2, 4, 6, 10}),
        (38, 0.25, {10, 20, 30, 38}),
        (125, 0.25, {31, 62, 93, 125}),
        (100, 0.3, {30, 60, 90, 100}),
        (12, 1.0, {12}),
        (7, 0.5, {4, 7}),
        (3, 0.01, {1, 2, 3}),
    ],
)
def test_averages_after_every_share_and_at_the_end(num_steps: int, share: float, due: set[int]) -> None:
    assert averaging_steps(num_steps, share) == due


def test_weights_are_averaged_with_those_of_the_start() -> None:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    averaging = Averaging(layer, num_steps=4, share=0.5, beta=0.25)
    for made, found in enumerate([3.0, 3.0, 5.0, 5.0], start=1):
        nn.init.constant_(layer.weight, found)
        averaging.after_step(made)
        expected = {2: 0.75 * 3 + 0.25 * 1, 4: 0.75 * 5 + 0.25 * 1}.get(made, found)
        torch.testing.assert_close(layer.weight, torch.full((1, 2), expected))


def test_averaging_b_under_a_frozen_a_averages_what_the_adapter_adds(base_folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    freeze_down_projections(model)
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    before = [layer.get_delta_weight("default").clone() for layer in layers]
    averaging = Averaging(model, num_steps=1, share=1, beta=0.3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "lora_B" in name
            parameter.data += torch.randn_like(parameter)
    tuned = [layer.get_delta_weight("default").clone() for layer in layers]
    averaging.after_step(1)
    for layer, old, new in zip(layers, before, tuned, strict=True):
        torch.testing.assert_close(layer.get_delta_weight("default"), 0.7 * new + 0.3 * old)


# --- a run ---


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def load(folder: Path) -> Base:
    return load_base(str(folder), dtype="fp32", device="cpu", cache=folder)


@pytest.fixture
def store(tmp_path: Path, base_folder: Path) -> Path:
    """Two experts: a plain one without indicators, an activated one with them."""
    root = tmp_path / "store"
    base = load(base_folder)
    experts = ExpertStore.open(root)
    wake = ChatFormat(base.tokenizer).generation_prompt
    plain = write_adapter(tmp_path / "plain", base_folder, kind="lora", targets=["q_proj", "v_proj"])
    activated = write_adapter(tmp_path / "activated", base_folder, kind="alora", invocation=wake)
    publish(experts, base, plain, "plain", indicators=False)
    publish(experts, base, activated, "activated", threshold=0.7)
    return root


def write_rows(path: Path, word: str, count: int = 12, *, answers: bool = True) -> Path:
    rows = [{"id": i, "input": f"{word} {i}", **({"output": f"{i} dogs"} if answers else {})} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(
    base_folder: Path,
    parent: ExpertVersion,
    data: list[Path],
    out: Path,
    *,
    negatives: tuple[Path, ...] = (),
    resume: bool = False,
    watcher: Watcher | None = None,
    share: float = 0.25,
    beta: float = 0.5,
    rate: float = 1e-2,
) -> NextVersion:
    return train_sfa(
        load(base_folder),
        parent,
        [read_rows(path, answers=True) for path in data],
        SfaOptions(share=share, beta=beta, learning_rate=rate, batch_size=3, epochs=2, seed=5),
        negatives=[read_rows(path, answers=False) for path in negatives],
        command="relay train sfa ...",
        out=out,
        resume=resume,
        observer=watcher or Watcher(),
    )


def deltas(base_folder: Path, folder: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    return {n: m.get_delta_weight("default").float() for n, m in model.named_modules() if hasattr(m, "lora_A")}


@pytest.mark.parametrize("name", ["plain", "activated"])
def test_the_next_version_knows_its_parent_and_moved_from_it(
    store: Path, base_folder: Path, tmp_path: Path, name: str
) -> None:
    parent = find_parent(store, name)
    watcher = Watcher()
    run(base_folder, parent, [write_rows(tmp_path / "new.jsonl", "jump")], tmp_path / "out", watcher=watcher)
    assert watcher.losses[-1] < watcher.losses[0]
    draft = parse_draft((tmp_path / "out" / "manifest.json").read_bytes())
    assert draft.training is not None
    assert (draft.name, draft.training.recipe, draft.training.parent_version) == (name, "sfa", 1)
    assert draft.training.parameters["parent_digest"] == parent.digest
    assert (draft.training.parameters["share"], draft.training.parameters["beta"]) == (0.25, 0.5)
    assert (draft.indicators, draft.threshold) == (parent.manifest.indicators, parent.manifest.threshold)
    info = inspect_adapter(tmp_path / "out", load(base_folder).spec, max_rank=8)
    assert (info.kind, info.invocation_tokens) == (parent.kind, parent.invocation_tokens)
    old, new = deltas(base_folder, parent.folder), deltas(base_folder, tmp_path / "out")
    assert old.keys() == new.keys()
    assert max(float((new[n] - old[n]).abs().max()) for n in old) > 1e-3


def test_its_guard_knows_the_new_rows_too(store: Path, base_folder: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    chat = ChatFormat(base.tokenizer)
    feature = PromptFeature(base, chat)
    experts = ExpertStore.open(store)
    letters = list(islice(combinations("bcdefghijk", 3), 60))
    prompts = {
        word: [chat.render([{"role": "user", "content": f"{word} {' '.join(some)}"}]).tokens for some in letters]
        for word in ("lazy", "jump", "brown")
    }
    features = {word: [feature.of(tokens) for tokens in some] for word, some in prompts.items()}
    guard = fit_guard(features["lazy"], [], features["brown"])
    assert guard is not None
    profile = feature.profile(prompts["lazy"])
    new = [write_rows(tmp_path / "more.jsonl", "lazy", 120), write_rows(tmp_path / "new.jsonl", "jump b c d", 1)]
    for name, given in (("guarded", guard), ("unguarded", None)):
        adapter = write_adapter(tmp_path / name, base_folder, kind="lora", targets=["q_proj"])
        (adapter / "profile.safetensors").write_bytes(replace(profile, guard=given).to_bytes())
        parent = publish(experts, base, adapter, name)
        run(base_folder, parent, new, tmp_path / f"{name}-next")
    assert not guard.knows(np.stack(features["jump"])).any()
    wider = read_profile(tmp_path / "guarded-next" / "profile.safetensors").guard
    assert wider is not None
    assert wider.least < guard.least
    assert wider.knows(np.stack(features["jump"][:1])).all(), "one row beside 120 that it knew already"
    left, kept = ((tmp_path / name / "profile.safetensors").read_bytes() for name in ("unguarded", "unguarded-next"))
    assert left == kept


def test_beta_one_changes_nothing_and_a_larger_beta_stays_nearer(
    store: Path, base_folder: Path, tmp_path: Path
) -> None:
    parent = find_parent(store, "plain")
    data = [write_rows(tmp_path / "new.jsonl", "jump")]
    old = deltas(base_folder, parent.folder)
    moved = []
    for beta in (0.0, 0.5, 1.0):
        run(base_folder, parent, data, tmp_path / f"{beta}", beta=beta)
        new = deltas(base_folder, tmp_path / f"{beta}")
        moved.append(sum(float((new[n] - old[n]).square().sum()) for n in old) ** 0.5)
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] == pytest.approx(0, abs=1e-2), "but for rounding to bf16"


def test_data_sets_in_turn_are_runs_in_turn(store: Path, base_folder: Path, tmp_path: Path) -> None:
    """What is averaged with in the second data set is the first one's result, not the parent."""
    first, second = (write_rows(tmp_path / f"{word}.jsonl", word) for word in ("jump", "lazy"))
    parent = find_parent(store, "plain")
    run(base_folder, parent, [first, second], tmp_path / "both")
    run(base_folder, parent, [first], tmp_path / "first")
    draft = parse_draft((tmp_path / "first" / "manifest.json").read_bytes())
    with ExpertStore.open(store).stage() as staged:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (staged.folder / file).write_bytes((tmp_path / "first" / file).read_bytes())
        info = inspect_adapter(staged.folder, load(base_folder).spec, max_rank=8)
        middle = ExpertStore.open(store).publish(staged, draft, info, name="plain")
    run(base_folder, middle, [second], tmp_path / "second")
    both, apart = deltas(base_folder, tmp_path / "both"), deltas(base_folder, tmp_path / "second")
    for name, delta in both.items():
        torch.testing.assert_close(delta, apart[name], rtol=0.05, atol=0.02)


def test_an_interrupted_run_resumes_to_the_same_bytes(store: Path, base_folder: Path, tmp_path: Path) -> None:
    data = [write_rows(tmp_path / f"{word}.jsonl", word, 24) for word in ("jump", "lazy")]
    parent = find_parent(store, "activated")
    whole = Watcher()
    run(base_folder, parent, data, tmp_path / "whole", watcher=whole)
    assert len(whole.losses) == 32
    for cut_at in (12, 28):  # in the first data set, and in the second
        out = tmp_path / f"cut{cut_at}"
        with pytest.raises(KeyboardInterrupt):
            run(base_folder, parent, data, out, watcher=Watcher(cut_at))
        rest = Watcher()
        run(base_folder, parent, data, out, resume=True, watcher=rest)
        assert rest.losses == whole.losses[-len(rest.losses) :]
        assert len(rest.losses) < 32 - cut_at + 11, "it did not begin anew"
        for file in ("adapter_model.safetensors", "manifest.json"):
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_negatives_teach_a_self_selecting_expert_alone(store: Path, base_folder: Path, tmp_path: Path) -> None:
    new = write_rows(tmp_path / "new.jsonl", "jump")
    other = write_rows(tmp_path / "other.jsonl", "lazy", answers=False)
    made = run(base_folder, find_parent(store, "activated"), [new], tmp_path / "a", negatives=(other,))
    assert made.num_rows == 24
    with pytest.raises(InvalidRun, match="plain@1 does not reject queries by itself"):
        run(base_folder, find_parent(store, "plain"), [new], tmp_path / "b", negatives=(other,))


def test_a_diverging_run_stops_says_where_and_keeps_its_checkpoint(
    store: Path, base_folder: Path, tmp_path: Path
) -> None:
    new = write_rows(tmp_path / "new.jsonl", "jump", 60)
    with pytest.raises(Diverged, match=r"in step \d+ of 40 "):
        run(base_folder, find_parent(store, "activated"), [new], tmp_path / "out", rate=1e30)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (tmp_path / "out" / "checkpoints" / "run.json").exists()


@pytest.mark.parametrize(("share", "beta", "named"), [(0.0, 0.5, "--p 0"), (1.5, 0.5, "--p 1.5"), (1, 1.1, "--beta 1")])
def test_shares_and_weights_have_their_range(share: float, beta: float, named: str) -> None:
    with pytest.raises(InvalidRun, match=named):
        SfaOptions(share=share, beta=beta)


# --- the command ---


def command(folder: Path, base_folder: Path, *options: str) -> tuple[int, str]:
    given = ["sfa", "--store", folder / "store", "--out", folder / "out", "--base", base_folder, "--device", "cpu"]
    result = CliRunner().invoke(app, [str(part) for part in (*given, *options)])
    return result.exit_code, " ".join(result.output.split())


def test_the_command_makes_a_version_and_names_its_parent(store: Path, base_folder: Path, tmp_path: Path) -> None:
    assert store == tmp_path / "store"
    data = write_rows(tmp_path / "new.jsonl", "jump")
    code, said = command(tmp_path, base_folder, "--expert", "plain@1", "--data", str(data), "--p", "0.5")
    assert code == 0, said
    assert "made of plain@1 and 12 rows" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--expert", "nobody"], "there is no expert 'nobody'"),
        (["--expert", "plain@7"], "plain"),
        (["--expert", "plain", "--p", "2"], "--p 2.0: a share of the steps"),
        (["--expert", "plain", "--store", "nowhere"], "--store nowhere: there is no expert store"),
    ],
)
@pytest.mark.usefixtures("store")
def test_mistakes_are_named_before_anything_is_trained(
    base_folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    data = write_rows(tmp_path / "new.jsonl", "jump")
    code, output = command(tmp_path, base_folder, "--data", str(data), *options)
    assert code == 1
    assert said in output
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("store")
def test_a_row_without_an_answer_is_named_by_its_line(base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"id": 1, "input": "x", "output": "y"}\n{"id": 2, "input": "z"}\n')
    code, output = command(tmp_path, base_folder, "--expert", "plain", "--data", str(tmp_path / "new.jsonl"))
    assert code == 1
    assert 'line 2: "output" is missing' in output
    assert not (tmp_path / "out").exists()
