"""The SEE recipe on a tiny base: exact gradients, exact resumption, and a folder the store and PEFT both take."""

import json
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from expert_store import WEIGHTS_FILE, BaseSpec, Indicators, inspect_adapter, parse_draft, read_profile
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.feature import PromptFeature
from tests.support.tiny import write_base
from training import batches
from training.batches import Collator, Step, StepRows
from training.calibrate import TOLERANCE, at_threshold, calibrate, sigmoid
from training.data import DataFile, Encoder, Row
from training.errors import Diverged, InvalidRun
from training.quality import examine
from training.see import SeeOptions, train_see
from training.selection import About, SelectionData, Trained
from training.suffix import SuffixRunner

Kind = Literal["alora", "lora"]
DEMO = Path(__file__).parents[2] / "expert_store" / "demo"
DEMO_BYTES = 2_500_000
MARGINS = st.floats(-4.0, 4.0).map(lambda margin: round(margin, 1))
SILENT = SeeOptions(rank=4, learning_rate=5e-3, batch_size=4, epochs=2, seed=7)


class Recorder:
    """A run's observer; stops it after `fail_after` steps, as a crash would."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.losses: list[float] = []
        self.done: int | None = None
        self._fail_after = fail_after

    def begin(self, *, done: int, total: int) -> None:
        assert done <= total
        self.done = done

    def step(self, *, loss: float, tokens: int) -> None:
        assert tokens > 0
        if len(self.losses) == self._fail_after:
            raise KeyboardInterrupt
        self.losses.append(loss)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def load(folder: Path) -> Base:
    return load_base(str(folder), dtype="fp32", device="cpu", cache=folder)


def rows(prefix: str, count: int, *, answers: bool) -> tuple[Row, ...]:
    return tuple(
        Row(f"{prefix}{i}", f"{prefix} {'fox ' * (i % 4)}{i}", f"{i} dogs" if answers else None, i + 1)
        for i in range(count)
    )


def varied(word: str, count: int) -> tuple[Row, ...]:
    """Rows no two of which have the same tokens."""
    letters = islice(combinations("bcdefghijk", 3), count)
    return tuple(Row(f"{word}{i}", f"{word} {' '.join(some)}", "dogs", i + 1) for i, some in enumerate(letters))


@pytest.fixture
def data(tmp_path: Path) -> SelectionData:
    own = tmp_path / "own.jsonl"
    own.write_text("own")
    negatives = tmp_path / "negatives.jsonl"
    negatives.write_text("negatives")
    return SelectionData(
        own=DataFile(own, rows("jump", 20, answers=True)),
        negatives=(DataFile(negatives, rows("lazy", 20, answers=False)),),
    )


def run(
    base_folder: Path,
    data: SelectionData,
    out: Path,
    *,
    options: SeeOptions = SILENT,
    about: About | None = None,
    resume: bool = False,
    observer: Recorder | None = None,
    start: Path | None = None,
) -> Trained:
    return train_see(
        load(base_folder),
        data,
        options,
        about or About(),
        out=out,
        resume=resume,
        observer=observer or Recorder(),
        start=start,
    )


# --- exactness ---


def plain_loss(model: PeftModel, examples: StepRows, step: Step) -> torch.Tensor:
    """The obvious loop: every row alone, whole sequence, PEFT's own forward, all logits."""
    total = torch.zeros(())
    weights = iter([weight for part in step["parts"] for weight in part["weight_L"].tolist()])
    for example in (*examples.accepted, *examples.rejected):
        tokens = torch.tensor([example.tokens])
        logits = model(input_ids=tokens).logits[0]
        for at in range(example.target_start, len(example.tokens)):
            total = total + next(weights) * functional.cross_entropy(logits[at - 1], tokens[0, at])
    return total


def adapted(folder: Path, kind: Kind, invocation: tuple[int, ...], attention: str) -> PeftModel:
    """The base with a random adapter; the same weights for both kinds."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        alora_invocation_tokens=list(invocation) if kind == "alora" else None,
    )
    return get_peft_model(model, config)


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("part_tokens", [1024, 40])
@pytest.mark.parametrize(
    ("family", "kind", "attention", "shares"),
    [
        ("llama", "alora", "eager", True),
        ("llama", "lora", "eager", False),
        ("qwen3", "alora", "sdpa", False),
        ("gemma2", "alora", "eager", False),
    ],
)
def test_loss_and_gradients_are_those_of_pefts_full_forward(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    kind: Kind,
    attention: str,
    shares: bool,
    part_tokens: int,
) -> None:
    monkeypatch.setattr(batches, "_PART_TOKENS", part_tokens)
    folder = write_base(tmp_path, family)
    chat = ChatFormat(load(folder).tokenizer)
    encoder = Encoder(chat, chat.indicator_tokens(Indicators()), eos=1, max_tokens=512)
    examples = StepRows(
        accepted=tuple(encoder.example(row) for row in rows("jump", 5, answers=True)),
        rejected=tuple(encoder.example(row) for row in rows("quick brown", 4, answers=False)),
    )
    shared = examples.accepted[0].tokens[:3] if shares else ()
    step = Collator(activated=kind == "alora", decision_weight=1.5, pad=1, num_shared=len(shared)).collate(examples)

    assert (len(step["parts"]) > 2) == (part_tokens == 40)
    expected_model = adapted(folder, kind, chat.generation_prompt, attention)
    expected = plain_loss(expected_model, examples, step)
    expected.backward()
    model = adapted(folder, "lora", (), attention)
    loss = torch.zeros(())
    for term in SuffixRunner(model, shared).step_losses(step):
        term.backward()
        loss += term.detach()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted = gradients(expected_model)
    found = gradients(model)
    assert wanted.keys() == found.keys()
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-3
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["alora", "lora"])
def test_verdicts_are_those_of_pefts_full_forward(tmp_path: Path, kind: Kind) -> None:
    folder = write_base(tmp_path)
    chat = ChatFormat(load(folder).tokenizer)
    tokens = chat.indicator_tokens(Indicators())
    encoder = Encoder(chat, tokens, eos=1, max_tokens=512)
    examples = [encoder.example(row) for row in (*rows("jump", 3, answers=True), *rows("lazy", 3, answers=False))]
    collator = Collator(activated=kind == "alora", decision_weight=1.0, pad=1)
    oracle = adapted(folder, kind, chat.generation_prompt, "eager")
    runner = SuffixRunner(adapted(folder, "lora", (), "eager"))
    verdicts = examine(runner, examples, indicators=tokens, collator=collator)
    for example, verdict in zip(examples, verdicts, strict=True):
        logits = oracle(input_ids=torch.tensor([example.tokens])).logits[0, example.decision - 1]
        margin = float((logits[tokens.accept_token] - logits[tokens.reject_token]).detach())
        assert verdict.margin == pytest.approx(margin, abs=1e-4)


def test_rows_are_brought_to_where_the_model_is(tmp_path: Path) -> None:
    """On a device without numbers, which refuses tensors of the CPU as a GPU does."""
    folder = write_base(tmp_path)
    chat = ChatFormat(load(folder).tokenizer)
    tokens = chat.indicator_tokens(Indicators())
    encoder = Encoder(chat, tokens, eos=1, max_tokens=512)
    examples = [encoder.example(row) for row in rows("jump", 3, answers=True)]
    collator = Collator(activated=True, decision_weight=1.0, pad=1)
    model = adapted(folder, "lora", (), "eager").to("meta")
    runner = SuffixRunner(model)
    (loss,) = runner.step_losses(collator.collate(StepRows(tuple(examples), ())))
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        examine(runner, examples, indicators=tokens, collator=collator)  # all but the reading of numbers


# --- a run ---


@pytest.fixture(scope="module")
def trained(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    folder = tmp_path_factory.mktemp("trained")
    for name in ("own", "negatives"):
        (folder / name).write_text(name)
    data = SelectionData(
        own=DataFile(folder / "own", rows("jump", 24, answers=True)),
        negatives=(DataFile(folder / "negatives", rows("lazy", 24, answers=False)),),
    )
    recorder = Recorder()
    about = About("fox", "Counts dogs.", ("jump 3",), "relay train see ...")
    options = SeeOptions(rank=4, learning_rate=2e-2, batch_size=4, epochs=6, seed=1)
    run(base_folder, data, folder / "out", options=options, about=about, observer=recorder)
    return folder / "out", recorder


def test_the_folder_holds_four_files_that_the_store_accepts(trained: tuple[Path, Recorder], base_folder: Path) -> None:
    folder, _ = trained
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "profile.safetensors",
    ]
    base = load(base_folder)
    info = inspect_adapter(folder, base.spec, max_rank=8)
    assert (info.kind, info.rank) == ("alora", 4)
    assert info.invocation_tokens == ChatFormat(base.tokenizer).generation_prompt


def test_the_profile_is_that_of_the_rows_it_was_trained_on(trained: tuple[Path, Recorder], base_folder: Path) -> None:
    base = load(base_folder)
    chat = ChatFormat(base.tokenizer)
    feature = PromptFeature(base, chat)
    texts = [row.input for row in rows("jump", 20, answers=True)]
    whole = feature.profile(chat.render([{"role": "user", "content": text}]).tokens for text in texts)
    profile = read_profile(trained[0] / "profile.safetensors")
    assert (profile.base_fingerprint, profile.feature) == (base.spec.fingerprint, feature.name)
    assert float(profile.vector_D @ whole.vector_D) > 0.99, "but for the held-out rows"


def test_rows_enough_give_a_guard_that_the_server_can_ask(
    trained: tuple[Path, Recorder], base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    few = read_profile(trained[0] / "profile.safetensors")
    assert few.guard is None
    assert "guard_leaves_out" not in parse_draft((trained[0] / "manifest.json").read_bytes()).quality
    own = DataFile(data.own.path, varied("jump the fox", 60))
    found = run(base_folder, replace(data, own=own), tmp_path / "guarded")
    assert found.guard_leaves_out == 1
    assert parse_draft((tmp_path / "guarded" / "manifest.json").read_bytes()).quality["guard_leaves_out"] == 1
    guard = read_profile(tmp_path / "guarded" / "profile.safetensors").guard
    assert guard is not None
    further = run(base_folder, replace(data, own=own), tmp_path / "further", start=tmp_path / "guarded")
    assert further.guard_leaves_out is None, "what it was trained on before is not here to be known"
    base = load(base_folder)
    chat = ChatFormat(base.tokenizer)
    feature = PromptFeature(base, chat)
    known = {}
    for word in ("jump the fox", "what is Paris"):
        prompts = [row.input for row in varied(word, 60)]
        features = [feature.of(chat.render([{"role": "user", "content": text}]).tokens) for text in prompts]
        known[word] = int(guard.knows(np.stack(features)).sum())
    assert known["jump the fox"] >= 59, "all but one in a hundred"
    assert known["what is Paris"] == 0


def test_the_manifest_says_where_the_expert_came_from(trained: tuple[Path, Recorder], base_folder: Path) -> None:
    draft = parse_draft((trained[0] / "manifest.json").read_bytes())
    assert draft.name == "fox"
    assert draft.description == "Counts dogs."
    assert draft.samples == ("jump 3",)
    assert draft.indicators == Indicators()
    assert draft.base_fingerprint == load(base_folder).spec.fingerprint
    assert 0.05 <= draft.threshold <= 0.95
    assert draft.training is not None
    assert (draft.training.recipe, draft.training.seed, draft.training.epochs) == ("see", 1, 6)
    assert draft.training.rows == 46
    assert draft.training.parameters["learning_rate"] == 2e-2
    assert draft.training.command == "relay train see ..."
    assert {"accept_rate", "reject_rate", "exact_match"} <= draft.quality.keys()


def test_the_loss_falls_and_the_expert_knows_its_own(trained: tuple[Path, Recorder]) -> None:
    folder, recorder = trained
    assert sum(recorder.losses[-5:]) < 0.5 * sum(recorder.losses[:5])
    quality = parse_draft((folder / "manifest.json").read_bytes()).quality
    assert quality["accept_rate"] == quality["reject_rate"] == 1.0


def test_no_path_of_this_machine_is_saved(trained: tuple[Path, Recorder], base_folder: Path) -> None:
    config = json.loads((trained[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base_folder.name
    assert str(base_folder.parent) not in (trained[0] / "adapter_config.json").read_text()


def test_peft_loads_the_folder_and_decides_as_measured(trained: tuple[Path, Recorder], base_folder: Path) -> None:
    base = load(base_folder)
    chat = ChatFormat(base.tokenizer)
    tokens = chat.indicator_tokens(Indicators())
    model = PeftModel.from_pretrained(base.model, trained[0])
    margins = {}
    for text in ("jump 5", "lazy 5"):
        prompt = chat.render([{"role": "user", "content": text}]).tokens + tokens.shared
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        margins[text] = float(logits[tokens.accept_token] - logits[tokens.reject_token])
    assert margins["jump 5"] > 0 > margins["lazy 5"]


def test_an_expert_woken_by_the_indicator_decides_as_measured(
    base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    options = SeeOptions(rank=4, alpha=32, learning_rate=2e-2, batch_size=4, epochs=6, seed=1, wake="indicator")
    run(base_folder, data, tmp_path / "late", options=options)
    base = load(base_folder)
    chat = ChatFormat(base.tokenizer)
    tokens = chat.indicator_tokens(Indicators())
    config = json.loads((tmp_path / "late" / "adapter_config.json").read_text())
    assert tuple(config["alora_invocation_tokens"]) == tokens.shared
    quality = parse_draft((tmp_path / "late" / "manifest.json").read_bytes()).quality
    assert quality["accept_rate"] == quality["reject_rate"] == 1.0
    model = PeftModel.from_pretrained(base.model, tmp_path / "late")
    margins = []
    for text in ("jump 5", "lazy 5"):
        prompt = chat.render([{"role": "user", "content": text}]).tokens + tokens.shared
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        margins.append(float(logits[tokens.accept_token] - logits[tokens.reject_token]))
    assert margins[0] > 0 > margins[1]


def test_a_run_can_begin_with_a_trained_adapter(
    trained: tuple[Path, Recorder], base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    folder, first = trained
    options = SeeOptions(rank=4, learning_rate=1e-4, batch_size=4, epochs=1, seed=2)
    again = Recorder()
    run(base_folder, data, tmp_path / "again", options=options, observer=again, start=folder)
    assert sum(again.losses[:3]) < 0.5 * sum(first.losses[:3])
    training = parse_draft((tmp_path / "again" / "manifest.json").read_bytes()).training
    assert training is not None
    assert str(training.parameters["start"]).startswith("sha256:")


def test_a_further_run_can_be_averaged_with_what_it_began_with(
    trained: tuple[Path, Recorder], base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    folder, _ = trained
    whole, half = (
        SeeOptions(rank=4, learning_rate=1e-3, batch_size=4, epochs=1, seed=2, average=average) for average in (0, 0.5)
    )
    run(base_folder, data, tmp_path / "whole", options=whole, start=folder)
    run(base_folder, data, tmp_path / "half", options=half, start=folder)
    before, after, between = (load_file(at / WEIGHTS_FILE) for at in (folder, tmp_path / "whole", tmp_path / "half"))
    for name, tensor in between.items():
        expected = (before[name].float() + after[name].float()) / 2
        torch.testing.assert_close(tensor.float(), expected, rtol=2**-7, atol=2e-3)
    assert any(not torch.equal(between[name], before[name]) for name in between)


def test_averaging_needs_something_to_average_with(base_folder: Path, data: SelectionData, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match=r"--average 0\.5: .*--start"):
        run(base_folder, data, tmp_path / "out", options=SeeOptions(rank=4, average=0.5))


def test_only_an_adapter_of_the_same_shape_can_be_begun_with(
    trained: tuple[Path, Recorder], base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    for options in (SeeOptions(rank=8), SeeOptions(rank=4, targets=("q_proj",))):
        with pytest.raises(InvalidRun, match="another rank or other targets"):
            run(base_folder, data, tmp_path / str(options.rank), options=options, start=trained[0])
    with pytest.raises(InvalidRun, match=r"scaled by 2\.0, this run's by 0\.25: set --alpha"):
        run(base_folder, data, tmp_path / "scaled", options=SeeOptions(rank=4, alpha=1), start=trained[0])
    with pytest.raises(InvalidRun, match=r"--start .*nowhere"):
        run(base_folder, data, tmp_path / "out", start=tmp_path / "nowhere")


def test_a_plain_expert_has_nothing_to_wake_up(base_folder: Path, data: SelectionData, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match="--wake indicator"):
        run(base_folder, data, tmp_path / "out", options=SeeOptions(kind="lora", wake="indicator"))


def test_an_interrupted_run_resumes_to_the_same_bytes(base_folder: Path, data: SelectionData, tmp_path: Path) -> None:
    whole = Recorder()
    run(base_folder, data, tmp_path / "whole", observer=whole)
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, data, tmp_path / "cut", observer=Recorder(fail_after=15))
    second = Recorder()
    run(base_folder, data, tmp_path / "cut", resume=True, observer=second)
    assert second.done == 10
    assert second.losses == whole.losses[10:]
    for name in ("adapter_model.safetensors", "manifest.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize("left", [None, '{"global_step": 2'], ids=["missing", "cut off"])
def test_a_checkpoint_that_was_cut_off_while_written_is_passed_over(
    base_folder: Path, data: SelectionData, tmp_path: Path, left: str | None
) -> None:
    whole = Recorder()
    options = replace(SILENT, epochs=3)
    run(base_folder, data, tmp_path / "whole", options=options, observer=whole)
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, data, tmp_path / "cut", options=options, observer=Recorder(fail_after=25))
    state = tmp_path / "cut" / "checkpoints" / "checkpoint-20" / "trainer_state.json"
    state.unlink()
    if left is not None:
        state.write_text(left)
    rest = Recorder()
    run(base_folder, data, tmp_path / "cut", options=options, resume=True, observer=rest)
    assert rest.done == 10
    assert rest.losses == whole.losses[10:]
    assert (tmp_path / "whole" / WEIGHTS_FILE).read_bytes() == (tmp_path / "cut" / WEIGHTS_FILE).read_bytes()


def test_a_run_without_a_whole_checkpoint_begins_anew(base_folder: Path, data: SelectionData, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, data, tmp_path / "cut", observer=Recorder(fail_after=15))
    (tmp_path / "cut" / "checkpoints" / "checkpoint-10" / "trainer_state.json").unlink()
    rest = Recorder()
    run(base_folder, data, tmp_path / "cut", resume=True, observer=rest)
    assert rest.done == 0
    assert len(rest.losses) == 20


def test_a_run_is_not_resumed_with_its_files_in_other_roles(
    base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("other")
    more = DataFile(other, rows("quick", 4, answers=False))
    trained_on = replace(data, negatives=(*data.negatives, more))
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, trained_on, tmp_path / "cut", observer=Recorder(fail_after=2))
    with pytest.raises(InvalidRun, match="differs from this run"):
        run(base_folder, replace(data, held_out_negatives=more), tmp_path / "cut", resume=True)


def test_one_row_a_step_is_enough(base_folder: Path, data: SelectionData, tmp_path: Path) -> None:
    recorder = Recorder()
    run(base_folder, data, tmp_path / "out", options=replace(SILENT, batch_size=1, epochs=1), observer=recorder)
    assert len(recorder.losses) <= 38, "steps that would have had no row are left out"


def test_an_unfinished_run_is_neither_overwritten_nor_mixed(
    base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, data, tmp_path / "cut", observer=Recorder(fail_after=2))
    with pytest.raises(InvalidRun, match="pass --resume"):
        run(base_folder, data, tmp_path / "cut")
    with pytest.raises(InvalidRun, match="differs from this run"):
        run(base_folder, data, tmp_path / "cut", resume=True, options=SeeOptions(rank=4, batch_size=4, seed=8))


def test_a_trained_expert_is_not_overwritten(
    trained: tuple[Path, Recorder], base_folder: Path, data: SelectionData
) -> None:
    with pytest.raises(InvalidRun, match="already holds a trained expert"):
        run(base_folder, data, trained[0])


def test_a_diverging_run_stops_and_keeps_its_checkpoint(base_folder: Path, data: SelectionData, tmp_path: Path) -> None:
    wild = SeeOptions(rank=4, learning_rate=1e30, batch_size=4, epochs=4)
    with pytest.raises(Diverged, match=r"in step \d+ of \d+.*lower --lr"):
        run(base_folder, data, tmp_path / "out", options=wild)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (tmp_path / "out" / "checkpoints" / "run.json").exists()


def test_unknown_targets_are_refused_with_the_known_ones(
    base_folder: Path, data: SelectionData, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRun, match=r"--targets z_proj: the base has down_proj, gate_proj"):
        run(base_folder, data, tmp_path / "out", options=SeeOptions(targets=("q_proj", "z_proj")))
    assert not (tmp_path / "out").exists()


# --- calibration ---


def test_a_threshold_of_one_half_stays_where_it_separates() -> None:
    found = calibrate([3.0, 5.0, 9.0], [-4.0, -2.0, -1.0])
    assert found.threshold == 0.5
    assert (found.accept_rate, found.reject_rate, found.balanced_accuracy) == (1.0, 1.0, 1.0)


def test_a_few_rows_are_no_reason_to_move_the_threshold() -> None:
    own, foreign = [8.0] * 100, [-8.0] * 97 + [1.0] * 3
    assert calibrate(own, foreign).threshold == 0.5
    assert calibrate(own, foreign + [1.0] * 3).threshold == pytest.approx(sigmoid(4.5), abs=0.04)


def test_the_threshold_moves_to_the_middle_of_the_nearest_good_gap() -> None:
    found = calibrate([2.0, 3.0], [-2.0, 1.0])
    assert found.threshold == pytest.approx(sigmoid(1.5))
    assert found.balanced_accuracy == 1.0


def test_the_threshold_stays_between_its_bounds() -> None:
    assert calibrate([3.6], [2.7]).threshold == 0.95
    assert calibrate([-2.7], [-3.6]).threshold == 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(MARGINS, min_size=1, max_size=20), st.lists(MARGINS, min_size=1, max_size=20))
def test_no_threshold_is_better_by_more_than_the_tolerance(own: list[float], foreign: list[float]) -> None:
    found = calibrate(own, foreign)
    best = max(at_threshold(own, foreign, t / 100).balanced_accuracy for t in range(5, 96))
    assert found.balanced_accuracy >= best - TOLERANCE - 1e-9
    assert found == at_threshold(own, foreign, found.threshold)


def test_calibration_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="held-out rows to accept and rows to reject"):
        calibrate([], [1.0])


def test_sigmoid_survives_extreme_margins() -> None:
    assert sigmoid(-1e6) == pytest.approx(0.0)
    assert sigmoid(1e6) == 1.0


# --- the shipped experts ---

SMOLLM2_SHAPES = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576)}
SMOLLM2_MLP = {"gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}


def smollm2() -> BaseSpec:
    attention = {f"self_attn.{n}_proj": shape for n, shape in SMOLLM2_SHAPES.items()}
    mlp = {f"mlp.{n}_proj": shape for n, shape in SMOLLM2_MLP.items()}
    linears = {f"model.layers.{i}.{n}": s for i in range(30) for n, s in (attention | mlp).items()}
    return BaseSpec(fingerprint="sha256:" + "0" * 64, linears=linears)


@pytest.mark.parametrize("task", ["dates", "contacts", "sql", "logs", "sentiment"])
def test_a_shipped_demo_expert_is_small_sound_and_described(task: str) -> None:
    folder = DEMO / task
    info = inspect_adapter(folder, smollm2(), max_rank=64)
    assert info.kind == ("lora" if task == "sentiment" else "alora")
    assert sum(p.stat().st_size for p in folder.iterdir()) <= DEMO_BYTES
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    draft = parse_draft((folder / "manifest.json").read_bytes())
    assert draft.name == task
    assert draft.description
    assert len(draft.samples) == 4
    assert draft.indicators is not None
    assert draft.training is not None
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
