"""What may be said about an adapter, and how a refusal names the field."""

import json
from typing import Any

import pytest

from expert_store import InvalidManifest, ManifestDraft, parse_draft
from expert_store.manifest import MAX_DRAFT_BYTES, parse_manifest

from .samples import CHOOSY

TRAINING = {"recipe": "see", "seed": 0, "data_digest": "sha256:" + "a" * 64, "rows": 400, "epochs": 2.5}


def test_an_empty_draft_is_complete() -> None:
    assert parse_draft("{}") == parse_draft({}) == ManifestDraft()


def test_a_draft_survives_its_bytes() -> None:
    draft = parse_draft(
        {
            "name": "sql",
            "samples": ["wie viele Nutzer gibt es? ✓"],
            "indicators": {},
            "training": TRAINING | {"parent_version": 3, "parameters": {"rate": 1e-4, "rank": 16, "kind": "alora"}},
            "quality": {"exact_match": 0.5},
        }
    )
    assert draft.indicators == CHOOSY.indicators
    assert parse_draft(draft.to_bytes()) == draft


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": "Not a name"}, "name"),
        ({"name": "../../etc"}, "name"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"samples": ["x"] * 17}, "samples"),
        ({"samples": [""]}, "samples.0"),
        ({"samples": ["x" * 5000]}, "samples.0"),
        ({"samples": ["\ud800"]}, "samples.0"),
        ({"samples": "one"}, "samples"),
        ({"description": "x" * 5000}, "description"),
        ({"indicators": {"accept": "x", "reject": "x"}}, "indicators"),
        ({"indicators": {"accept": ""}}, "indicators.accept"),
        ({"indicators": {"acept": "x"}}, "indicators.acept"),
        ({"quality": {"exact_match": float("inf")}}, "quality.exact_match"),
        ({"quality": {str(i): 0.0 for i in range(65)}}, "quality"),
        ({"training": {"recipe": "see"}}, "training.seed"),
        ({"training": TRAINING | {"data_digest": "md5:0"}}, "training.data_digest"),
        ({"training": TRAINING | {"rows": -1}}, "training.rows"),
        ({"treshold": 0.5}, "treshold"),
        ({"version": 7}, "version"),
        ({"files": {}}, "files"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_that_cannot_be_names_its_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidManifest) as refusal:
        parse_draft(values)
    assert refusal.value.field == field
    assert field in refusal.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', b"\xff", "[" * 100_000, '{"samples": ["\\ud800"]}'])
def test_text_that_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidManifest) as refusal:
        parse_draft(text)
    assert len(refusal.value.message) < 500


def test_unknown_fields_are_told_the_known_ones() -> None:
    with pytest.raises(InvalidManifest, match="threshold"):
        parse_draft({"colour": "red"})


def test_a_huge_draft_is_not_parsed() -> None:
    with pytest.raises(InvalidManifest, match=str(MAX_DRAFT_BYTES)):
        parse_draft("x" * (MAX_DRAFT_BYTES + 1))


def test_a_kind_that_contradicts_its_tokens_is_refused() -> None:
    digest = "sha256:" + "0" * 64
    values = {"name": "a", "version": 1, "kind": "alora", "rank": 1, "target_modules": ["q"], "parameters": 1}
    rest: dict[str, Any] = {
        "invocation_tokens": None,
        "base_fingerprint": digest,
        "files": {},
        "created_at": "2025-01-01T00:00:00Z",
    }
    said = json.loads(ManifestDraft().to_bytes())
    del said["name"], said["base_fingerprint"]
    with pytest.raises(InvalidManifest, match="contradicts"):
        parse_manifest(json.dumps(values | rest | said).encode())
    assert parse_manifest(json.dumps(values | rest | said | {"kind": "lora"}).encode()).rank == 1
