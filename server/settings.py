"""What an operator can set, and the only code that reads the environment or a config file. Builds nothing.

Sources, strongest first: command-line flags, RELAY_* variables, the TOML file, the defaults below. A name that no
setting has is an error, so that a typing mistake never passes for a setting.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ByteSize, Field, PositiveInt, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from server.errors import SettingsError

ENVIRONMENT_PREFIX = "RELAY_"
CONFIG_VARIABLE = "RELAY_CONFIG"
URL_VARIABLE = "RELAY_URL"
DEFAULT_URL = "http://127.0.0.1:8000"

MAX_SHORTLIST = 4096
MAX_GRADIENT_EXPERTS = 16
MAX_BASE_WEIGHT = 10


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error


Directory = Annotated[Path, AfterValidator(_expanded)]


def _home(variable: str, fallback: str) -> Path:
    """The XDG base directory of that name, with our own folder in it."""
    return Path(os.environ.get(variable) or fallback).expanduser() / "lora-relay"


class Settings(BaseSettings):
    """Everything `relay serve` can be told. Valid once constructed, and never changed."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    store: Directory = Field(
        default_factory=lambda: _home("XDG_DATA_HOME", "~/.local/share") / "store",
        description="Folder of the expert store; made if it is not there.",
    )
    base: str = Field(
        "bundled",
        description="Base model: `bundled`, a transformers folder, a `.gguf` file, or a hub id, org/name@revision.",
    )
    dtype: Literal["auto", "bf16", "fp32", "int8"] = Field(
        "auto",
        description="Number format of the base's weights; auto is bf16 where the processor or the kernels multiply it, "
        "else fp32. int8, on a CPU alone, is faster for a few requests at a time and rounds.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; auto is CUDA where there is one.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Processor threads the engine computes with; 0 takes OMP_NUM_THREADS, or else every processor.",
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto",
        description="auto compiles kernels for bf16 steps on this processor, where there is a C compiler; torch does "
        "without.",
    )
    router: Literal["chain", "gradient", "learned", "none"] = Field(
        "chain", description="Router of a request that names neither router nor expert."
    )
    no_demo: bool = Field(False, description="Leave a new store empty instead of seeding it with the demo experts.")
    kv_memory: ByteSize = Field(
        ByteSize(1024**3),
        ge=1024**2,
        description="Bytes for keys and values of all running requests, such as 1GiB.",
    )
    no_prefix_cache: bool = Field(
        False, description="Compute every prompt from its beginning, also where an earlier request began alike."
    )
    no_decode_graphs: bool = Field(
        False, description="On a GPU, launch decode steps kernel by kernel instead of as CUDA graphs."
    )
    step_tokens: int | None = Field(
        None,
        ge=16,
        le=65536,
        description="Most tokens the engine computes in one step; by default 512, on a GPU 4096.",
    )
    expert_slots: int = Field(
        64, ge=1, le=4096, description="Expert slots on the device; an expert of rank r takes ceil(r / 8)."
    )
    expert_memory: ByteSize = Field(
        ByteSize(1024**3),
        ge=1024**2,
        description="Bytes for weights of experts kept in host memory beside the slots, such as 1GiB.",
    )
    max_rank: int = Field(64, ge=1, le=512, description="Highest LoRA rank a registration may have.")
    max_running: int = Field(64, ge=1, le=4096, description="Most requests computed at a time.")
    max_queue: int = Field(
        256, ge=0, le=65536, description="Most requests waiting behind those; the next one gets 429."
    )
    max_new_tokens: int = Field(1024, ge=1, le=1_000_000, description="Most new tokens one request may ask for.")
    chain_window: PositiveInt = Field(8, le=256, description="Activated experts the chain probes together.")
    plain_window: PositiveInt = Field(2, le=64, description="Plain LoRA experts the chain probes together.")
    shortlist: int = Field(
        0, ge=0, le=MAX_SHORTLIST, description="Experts that a prompt's words choose for the chain to ask; 0 asks all."
    )
    no_guard: bool = Field(
        False,
        description="Ask experts also where their guards say that a prompt is unlike all that they were trained on.",
    )
    gradient_experts: int = Field(
        2, ge=1, le=MAX_GRADIENT_EXPERTS, description="Experts the gradient router mixes, the nearest ones."
    )
    gradient_base_weight: float | None = Field(
        None,
        ge=0,
        le=MAX_BASE_WEIGHT,
        description="Weight of the base adapter in the gradient router's mixtures; by default 1 / experts of the pool.",
    )
    max_body_bytes: ByteSize = Field(
        ByteSize(1024**2), ge=1024, description="Largest request body in bytes, uploads apart, such as 1MiB."
    )
    max_upload_bytes: ByteSize = Field(
        ByteSize(512 * 1024**2),
        ge=1024,
        description="Largest registration of an expert or router in bytes, such as 512MiB.",
    )
    cache: Directory = Field(
        default_factory=lambda: _home("XDG_CACHE_HOME", "~/.cache"),
        description="Folder for what can be made again: converted/ (GGUF bases), centroids/, kernels/.",
    )
    chat_template: Directory | None = Field(
        None, description="File with a Jinja chat template to use instead of the base model's own."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Log lines for people, or one JSON object a line."
    )

    @model_validator(mode="after")
    def _max_rank_fits_the_slots(self) -> "Settings":
        together = max(self.chain_window, self.plain_window)
        needed = together * -(-self.max_rank // 8)
        if needed > self.expert_slots:
            raise ValueError(
                f"{together} experts of max_rank {self.max_rank} asked together need {needed} expert slots, "
                f"expert_slots is {self.expert_slots}: raise expert_slots, or lower max_rank or chain_window"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(flags: Mapping[str, Any], *, config: Path | None = None) -> Settings:
    """Settings from all sources; `flags` holds only what was really given. Raises SettingsError."""
    _refuse_unknown_variables(os.environ)
    file = config or _config_from_environment()
    if file is not None:
        _check_readable(file)

    class Configured(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return Configured(**flags)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def read_chat_template(settings: Settings) -> str | None:
    """The template's text; None: the base's own is to be used. Raises SettingsError."""
    if settings.chat_template is None:
        return None
    try:
        return settings.chat_template.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--chat-template: {settings.chat_template} cannot be read: {error}") from error


def server_url(given: str | None) -> str:
    """Where a client command finds the server: the flag, RELAY_URL, or the default address."""
    return (given or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")


def _config_from_environment() -> Path | None:
    value = os.environ.get(CONFIG_VARIABLE)
    try:
        return _expanded(Path(value)) if value else None
    except ValueError as error:
        raise SettingsError(f"{CONFIG_VARIABLE}={error}") from error


def _check_readable(file: Path) -> None:
    try:
        tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"config file {file} cannot be read: {error}") from error


def _refuse_unknown_variables(environment: Iterable[str]) -> None:
    known = {ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields} | {
        CONFIG_VARIABLE,
        URL_VARIABLE,
    }
    for name in sorted(environment):
        if name.upper().startswith(ENVIRONMENT_PREFIX) and name.upper() not in known:
            raise SettingsError(f"environment variable {name} is not a setting: `relay serve --help` lists them")


def _explain(error: ValidationError) -> str:
    """One line a problem: the setting as a flag, what is wrong, and what was given."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        flag = "--" + name.replace("_", "-") if name in Settings.model_fields else name
        given = "" if problem["type"] in ("missing", "value_error") else f" (given: {problem['input']!r})"
        lines.append(f"{flag}: {problem['msg'].removeprefix('Value error, ')}{given}" if name else problem["msg"])
    return "\n".join(lines)
