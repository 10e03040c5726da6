"""What a round asks: prompts of common words, and which model each goes to. Sends nothing.

Popularity of the models, after Punica (arXiv 2310.18547): `distinct` deals them in turn, `uniform` draws them, `zipf`
draws the k-th with a weight of 1/k, `identical` takes the first alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Popularity = Literal["distinct", "uniform", "zipf", "identical"]
POPULARITIES: tuple[Popularity, ...] = get_args(Popularity)

_TEXT = """
apple autumn basket bird blue board bread bridge brother butter candle carpet castle chair cheese city cloud coat
coffee copper corner cotton country cousin dance desert dinner dream early earth evening family farm feather field
finger fire floor flower forest friend garden glass gold grass green harbour heart hill honey horse house island
journey kitchen ladder lake letter light little market meadow milk mirror money moon morning mountain music needle
night number ocean orange paper pencil people picture pocket question quiet rain river road salt school shadow ship
silver sister sleep snow song spring stone story street summer sugar table teacher thunder tower train tree uncle
valley village voice walk water weather whisper wind window winter wood word yellow
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Work:
    """What every round of a run consists of. `template` holds `{}` where the words go."""

    num_requests: int
    prompt_words: int
    max_tokens: int
    popularity: Popularity
    template: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One request."""

    model: str
    prompt: str
    max_tokens: int


def jobs(work: Work, models: Sequence[str], round_number: int) -> list[Job]:
    """One round's requests: the same for every server, and new in every round, so that no prefix cache knows them."""
    rng = random.Random(f"{work.seed} {round_number}")
    chosen = deal(work.popularity, len(models), work.num_requests, rng)
    prompts = [" ".join(rng.choices(WORDS, k=work.prompt_words)) for _ in range(work.num_requests)]
    return [
        Job(models[index], work.template.replace("{}", prompt), work.max_tokens)
        for index, prompt in zip(chosen, prompts, strict=True)
    ]


def deal(popularity: Popularity, num_models: int, num_requests: int, rng: random.Random) -> list[int]:
    """The index of each request's model."""
    if popularity == "distinct":
        return [request % num_models for request in range(num_requests)]
    if popularity == "identical":
        return [0] * num_requests
    weights = [1 / (1 + index) if popularity == "zipf" else 1.0 for index in range(num_models)]
    return rng.choices(range(num_models), weights, k=num_requests)
