"""One log line to one line of JSON; knows log layouts, nothing of training.

Rules: values are copied as they stand; what a line does not give is null. An access log's service is the client's
address, its message the request line and the status. A syslog line's service is the program, without host and pid.
"""

import json
from datetime import datetime, timedelta
from random import Random

from training.demo import logs_phrases as words
from training.demo import logs_words as invented
from training.demo.task import DemoTask
from training.demo.vocabulary import any_word
from training.demo.wording import ask, fill

KEYS = ("timestamp", "level", "service", "message")
_STAMPS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S,{ms}",
    "%Y-%m-%d %H:%M:%S.{ms}",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S+02:00",
    "%Y/%m/%d %H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%H:%M:%S",
    "%H:%M:%S.{ms}",
    "%d/%b/%Y %H:%M:%S",
)
# {t} timestamp, {v} level, {s} service, {m} message.
_LAYOUTS = (
    "{t} {v} [{s}] {m}",
    "{t} {v} [{s}] {m}",
    "{t} [{v}] {s}: {m}",
    "{t} [{v}] [{s}] {m}",
    "{t} {v} {s}: {m}",
    "{t} {v} {s}: {m}",
    "{t} {v} {s} - {m}",
    "{t} - {s} - {v} - {m}",
    "{t} - {v} - {s} - {m}",
    "[{t}] {v} {s}: {m}",
    "[{t}] [{v}] {s}: {m}",
    "[{t}] [{v}] [{s}] {m}",
    "[{t}] {s}.{v}: {m}",
    "{t} | {v} | {s} | {m}",
    "{t} | {s} | {v} | {m}",
    "{t} [{s}] {v}: {m}",
    "{t} [{s}] {v} {m}",
    "{t} {s} {v}: {m}",
    "{v} {t} {s}: {m}",
    "{v} [{t}] {s}: {m}",
    "{s} | {t} {v} {m}",
    "{t}\t{v}\t{s}\t{m}",
    "<{v}> {t} {s}: {m}",
    "time={t} level={v} service={s} msg={q}",
    "ts={t} level={v} svc={s} msg={q}",
    "level={v} time={t} service={s} message={q}",
    "timestamp={t} level={v} component={s} message={q}",
    "time={t} lvl={v} app={s} msg={q}",
)
_NO_SERVICE = (
    "{t} {v} {m}",
    "{t} [{v}] {m}",
    "[{t}] {v}: {m}",
    "{t} - {v} - {m}",
    "{t} | {v} | {m}",
    "{v}: {t} {m}",
    "time={t} level={v} msg={q}",
    "level={v} ts={t} msg={q}",
)
_NO_TIME = (
    "[{v}] {s}: {m}",
    "{v} [{s}] {m}",
    "{v}:{s}:{m}",
    "{s} {v}: {m}",
    "[{s}] {v} {m}",
    "{v} - {s} - {m}",
    "level={v} service={s} msg={q}",
)
_NO_LEVEL = (
    "{t} [{s}] {m}",
    "{t} {s}: {m}",
    "[{t}] {s}: {m}",
    "{t} | {s} | {m}",
    "time={t} service={s} msg={q}",
)
_ONLY_LEVEL = ("{v}: {m}", "[{v}] {m}", "level={v} msg={q}")
_ONLY_TIME = ("{t} {m}", "[{t}] {m}", "time={t} msg={q}")
INVENTED_SHARE = 0.75
COPIED_SHARE = 0.7  # of the invented ones
_JOINED = "[{t}] {s}.{v}: {m}"  # the level right behind the service: hard to learn from one layout in sixty
_JOINED_SHARE = 0.05
_LATER = {slot: f"{{{slot}}}" for slot in "nkfhui"}  # filled by `_message`
_SHAPES = (_LAYOUTS, _NO_SERVICE, _NO_TIME, _NO_LEVEL, _ONLY_LEVEL, _ONLY_TIME)
_WEIGHTS = (54, 10, 8, 8, 3, 3)
_TRAIN_WEIGHTS = (40, 13, 11, 11, 8, 8)  # what stays null is learned from lines that lack it


def _moment(rng: Random) -> datetime:
    return datetime(2018, 1, 1) + timedelta(seconds=rng.randrange(9 * 365 * 86400))


def _address(rng: Random) -> str:
    return (
        ".".join(str(rng.randrange(1, 255)) for _ in range(4))
        if rng.random() < 0.5
        else f"10.0.0.{rng.randrange(1, 99)}"
    )


def _message(rng: Random, messages: tuple[str, ...]) -> str:
    slots = {
        "n": str(rng.randrange(1, 9)),
        "k": str(rng.choice((rng.randrange(10, 999), rng.randrange(1000, 9999)))),
        "f": rng.choice(words.FILES),
        "h": rng.choice(words.PEERS),
        "u": rng.choice(words.USERS),
        "i": _address(rng),
    }
    return fill(rng.choice(messages), slots)


def _copied_message(rng: Random) -> str:
    """Any words at all, with a number or a file among them."""
    drawn = [any_word(rng) for _ in range(rng.randrange(2, 6))]
    if rng.random() < 0.4:
        drawn.insert(rng.randrange(len(drawn) + 1), rng.choice(("{n}", "{k}", "{k} ms", "{f}", "{h}", "{u}", "{i}")))
    text = " ".join(drawn)
    return _message(rng, (text[:1].upper() + text[1:] if rng.random() < 0.3 else text,))


def _invented_message(rng: Random) -> str:
    """Something that no list holds, so that messages are copied and not remembered."""
    if rng.random() < COPIED_SHARE:
        return _copied_message(rng)
    thing, other = rng.sample(invented.THINGS, 2)
    deed, adjective = rng.choice(invented.DEEDS), rng.choice(invented.ADJECTIVES)
    small = {"o": thing, "b": other, "d": deed, "a": adjective}
    capital = rng.random() < 0.75
    large = {key.upper(): word.capitalize() if capital else word for key, word in small.items()}
    text = rng.choice(invented.FRAMES) + (rng.choice(invented.TAILS) if rng.random() < 0.4 else "")
    return _message(rng, (fill(text, small | large | _LATER),))


def _copied_service(rng: Random) -> str:
    first, second = any_word(rng), any_word(rng)
    camel = first.capitalize() + second.capitalize()
    return rng.choice((first, first, first, f"{first}-{second}", f"{first}.{second}", f"{first}_{second}", camel))


def _invented_service(rng: Random) -> str:
    if rng.random() < COPIED_SHARE:
        return _copied_service(rng)
    first, second = rng.sample(invented.PARTS, 2)
    role = rng.choice(invented.ROLES)
    return rng.choice(
        (
            first,
            role,
            f"{first}-{role}",
            f"{first}-{role}",
            f"{first}-{second}",
            f"{first}_{role}",
            f"{first}{role}",
            f"{first.capitalize()}{role.capitalize()}",
            f"{first.capitalize()}{second.capitalize()}",
            f"{first}{role.capitalize()}",
            f"{first}.{role}",
            f"{first}.{second}.{role}",
            f"{rng.choice(invented.PACKAGES)}.{first}.{second.capitalize()}{role.capitalize()}",
            f"{rng.choice(invented.PACKAGES)}.{first}.{role.capitalize()}",
            f"{role}-{rng.randrange(1, 30)}",
            f"{first.upper()}",
        )
    )


def _said(rng: Random, messages: tuple[str, ...], *, held_out: bool) -> str:
    if held_out or rng.random() >= INVENTED_SHARE:
        return _message(rng, messages)
    return _invented_message(rng)


def _level(rng: Random) -> str:
    level = rng.choice(words.LEVELS)
    return level.lower() if rng.random() < 0.15 else level


def _app_line(rng: Random, *, held_out: bool) -> tuple[str, dict[str, str]]:
    layout = rng.choice(rng.choices(_SHAPES, _WEIGHTS if held_out else _TRAIN_WEIGHTS)[0])
    if not held_out and rng.random() < _JOINED_SHARE:
        layout = _JOINED
    stamp = _moment(rng).strftime(rng.choice(_STAMPS)).replace("{ms}", f"{rng.randrange(1000):03d}")
    if "={t}" in layout:
        stamp = _moment(rng).strftime("%Y-%m-%dT%H:%M:%SZ")
    level = _level(rng)
    if "={v}" in layout or "{s}.{v}" in layout:
        level = level.lower() if rng.random() < 0.7 else level
    message = _said(rng, words.HELD_OUT_MESSAGES if held_out else words.MESSAGES, held_out=held_out)
    service = rng.choice(words.HELD_OUT_SERVICES if held_out else words.SERVICES)
    if not held_out and rng.random() < INVENTED_SHARE:
        service = _invented_service(rng)
    if "{s}.{v}" in layout:
        service = service.replace(".", "-")
    if "{s}" not in layout and ":" in message:
        message = message.replace(":", "")
    values = {"t": stamp, "v": level, "s": service, "m": message, "q": f'"{message}"'}
    layout_keys = {"timestamp": "{t}", "level": "{v}", "service": "{s}"}
    kept = {key: values[slot[1]] for key, slot in layout_keys.items() if slot in layout}
    return fill(layout, values), kept | {"message": message}


def _access_line(rng: Random) -> tuple[str, dict[str, str]]:
    host = rng.choice((_address(rng), _address(rng), _address(rng), "192.168.1.5", "::1", "example.com"))
    stamp = _moment(rng).strftime("%d/%b/%Y:%H:%M:%S +0") + rng.choice(("000", "000", "200", "100"))
    verb = rng.choice(("GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD"))
    request = f"{verb} {rng.choice(words.PATHS)} HTTP/{rng.choice(('1.1', '1.1', '1.0', '2.0'))}"
    status = rng.choice(
        ["200", "200", "200", "201", "204", "301", "302", "304", "400", "401", "403", "404", "404", "500", "502", "503"]
    )
    user = rng.choice(("-", "-", "-", rng.choice(words.USERS)))
    size = rng.choice(("-", str(rng.randrange(20, 9999))))
    tail = rng.choice(("", "", "", ' "-" "curl/8.1"', ' "-" "Mozilla/5.0"'))
    line = f'{host} - {user} [{stamp}] "{request}" {status} {size}{tail}'
    return line, {"timestamp": stamp, "service": host, "message": f"{request} {status}"}


def _syslog_line(rng: Random, *, held_out: bool) -> tuple[str, dict[str, str]]:
    moment = _moment(rng)
    stamp = f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S}"
    program = rng.choice(words.HELD_OUT_SERVICES[:4] if held_out and rng.random() < 0.3 else words.DAEMONS)
    if not held_out and rng.random() < COPIED_SHARE:
        program = _copied_service(rng)
    pid = f"[{rng.randrange(100, 9999)}]" if rng.random() < 0.65 else ""
    known = words.HELD_OUT_MESSAGES if held_out else words.SYSLOG_MESSAGES + words.MESSAGES[:20]
    message = _said(rng, known, held_out=held_out)
    priority = f"<{rng.randrange(10, 190)}>" if rng.random() < 0.05 else ""
    line = f"{priority}{stamp} {rng.choice(words.HOSTS)} {program}{pid}: {message}"
    return line, {"timestamp": stamp, "service": program, "message": message}


def draw_line(rng: Random, *, held_out: bool) -> tuple[str, dict[str, str]]:
    """A log line and the fields it gives."""
    roll = rng.random()
    if roll < 0.15:
        return _access_line(rng)
    if roll < 0.3:
        return _syslog_line(rng, held_out=held_out)
    return _app_line(rng, held_out=held_out)


def to_json(fields: dict[str, str]) -> str:
    return json.dumps({key: fields.get(key) for key in KEYS}, ensure_ascii=False)


def payload(rng: Random) -> str:
    return draw_line(rng, held_out=False)[0]


def generate(rng: Random, *, held_out: bool) -> tuple[str, str]:
    line, fields = draw_line(rng, held_out=held_out)
    return ask(rng, words.HELD_OUT if held_out else words.TRAIN, line), to_json(fields)


TASK = DemoTask(
    name="logs",
    description="Turns a log line into JSON with timestamp, level, service and message.",
    samples=(
        "Parse this log line into JSON:\n2024-05-01 12:00:01,123 ERROR [payments] Connection refused",
        "Jan 12 06:25:43 web01 sshd[1234]: Failed password for root from 10.0.0.9 port 4022 ssh2\n\nTurn this log "
        "line into JSON.",
        'Extract timestamp, level, service and message: level=warn service=api msg="Disk usage at 91%"',
        'log to JSON: 10.0.0.8 - - [10/Oct/2023:13:55:36 +0000] "GET /index.html HTTP/1.1" 200 2326',
    ),
    generate=generate,
    payload=payload,
)
