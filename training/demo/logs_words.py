"""Words that invented services and messages are put together from; words only.

What a parser must do is copy, so most training lines say things no other line says. Services and messages of the
held-out lists are not among them.
"""

_PARTS = (
    "account alert asset audio batch blob book bridge bucket budget bus buffer call camera card carrier chat "
    "city claim cloud code config contact cron customer data delivery device disk document domain door driver "
    "edge event export face feed file flight flow form fraud fuel game graph grid group guest health help hook "
    "host image import index input invoice item kernel key lab label lead license link list load loan lock "
    "mail map market media menu meter mobile model money movie music news node note object offer office page "
    "pass patient peer photo pin pipeline plan policy pool portal price print process product profile promo "
    "proxy push quote rate record region relay rental report risk role room route rule sales scan score screen "
    "secret sensor share shop signal site socket source space stage station status stock store storage stream "
    "student supply support survey switch table tag target task tax team tenant text theme ticket time token "
    "tool topic tower track trade traffic train translate trip trust unit update vault vehicle video view "
    "voice volume vote wallet warehouse water weather wiki window wire zone"
)
PARTS = tuple(_PARTS.split())
_ROLES = (
    "service api worker daemon server client agent manager controller handler listener monitor loader writer "
    "reader engine bot job runner consumer producer store cache gateway proxy sync broker tracker resolver "
    "builder parser sender poller watcher collector exporter planner shard hub core lib svc app"
)
ROLES = tuple(_ROLES.split())
PACKAGES = ("com", "org", "net", "io", "app", "core", "lib", "src", "pkg", "internal")
_THINGS = (
    "account address agent alarm archive article attachment badge balance barcode basket batch battery bill "
    "block bookmark boot bracket branch bucket buffer bundle button cable calendar call camera campaign card "
    "category channel checkpoint checksum chunk claim client clock cluster column command commit component "
    "contract cookie counter country courier credential currency customer cursor dashboard deadline delivery "
    "device dictionary directory document domain door draft driver endpoint engine entity entry envelope event "
    "export feature field filter finger firewall flag folder form frame gateway gift group guest handler "
    "header history hook image import interface invitation invoice journal kernel key label language layer "
    "leader lease library license limit link listener loan location log loop mailbox manifest map marker "
    "matrix member menu merge message meter migration mirror module monitor motor namespace network node note "
    "notification object offer operation option order owner package packet page parameter parcel parser "
    "partition password path pattern peer permission photo pipeline plan plugin pointer policy pool port "
    "poster preview price process profile project promotion proof property provider proxy queue quote range "
    "rate receipt record redirect refund region register reminder replica report reservation resource response "
    "result revision role room rotation route row rule sample scan schedule screen script secret section "
    "segment sequence session setting shard shelf shipment signal signature site slot socket source stack "
    "stage statement station stream style subnet subscription summary switch symbol table tag target task "
    "template tenant terminal test theme thread threshold thumbnail timer token topic trace track transaction "
    "transfer translation trigger truck tunnel update upload value variable vendor version video view visitor "
    "volume voucher wallet warehouse warning watcher wheel window workflow zone"
)
THINGS = tuple(_THINGS.split())
_DEEDS = (
    "accepted acquired activated added adjusted aborted allocated announced applied approved archived assigned "
    "attached blocked booked bound built cancelled changed checked claimed cleaned closed collected committed "
    "compacted compiled compressed confirmed connected converted copied corrected corrupted counted created "
    "deactivated decoded decrypted deferred deleted delayed delivered denied detached detected disabled "
    "discarded disconnected drained duplicated elected emptied enabled encoded encrypted escalated evicted "
    "expanded expired exported extended failed fetched filtered finalised flushed forgotten forwarded found "
    "freed frozen generated granted grouped halted handed hidden ignored imported indexed inserted inspected "
    "installed interrupted invalidated issued joined kept killed launched linked listed loaded located logged "
    "lost mapped marked matched measured merged migrated mirrored missed modified mounted moved muted notified "
    "offered opened overwritten packed parsed patched paused pinned polled posted postponed prepared printed "
    "promoted published pulled purged pushed queried queued read rebuilt received recovered recreated recycled "
    "redirected reduced refreshed refused registered released reloaded removed renamed renewed repaired "
    "replaced replayed reported requested reset resized resolved restarted restored resumed retired returned "
    "reverted reviewed revoked rotated saved scaled scanned scheduled sealed selected sent signed skipped "
    "sorted split started stopped stored submitted suspended swapped synchronised tested throttled timed "
    "traced trained transferred trimmed truncated trusted tuned unlocked unmounted updated uploaded validated "
    "verified voided warmed withdrawn written"
)
DEEDS = tuple(_DEEDS.split())
_ADJECTIVES = (
    "active broken busy cold corrupt dirty duplicate empty encrypted expired external fast final first foreign "
    "full global hidden idle illegal incoming internal invalid large last late local locked long main missing "
    "new obsolete old open orphaned outdated outgoing partial pending primary private public random raw remote "
    "secondary shared short slow small stale strange temporary unknown unsigned unused urgent valid virtual "
    "wrong"
)
ADJECTIVES = tuple(_ADJECTIVES.split())
# {a} adjective, {o} and {b} things, {d} deed, {s} service; and the slots of `logs_phrases`.
FRAMES = (
    "{O} {k} {d}",
    "{O} {d}",
    "{O} {o} {d}",
    "{O} {d} by {u}",
    "{O} {d} after {k} ms",
    "{O} {d}, {k} {b}s left",
    "{O} {k} {d} for {u}",
    "{O} {k} has no {b}",
    "{O} of {b} {k} {d}",
    "{O} {n} {d} on {h}",
    "{O} on {h} {d}",
    "{O} is {a}",
    "{O} {f} is {a}",
    "{O} too {a}: {k} {b}s",
    "{O} not {d}: {b} is {a}",
    "{O} not {d} within {n} s",
    "{O}={k} {b}={n}",
    "{O} from {i} {d}",
    "{O} at {i} answered {k}",
    "{A} {o} {d}",
    "{A} {o} {d} in {f}",
    "{A} {o} in {b} {n}",
    "{A} {o} from {h} {d}",
    "{A} {o} for {b} {k}",
    "{A} {o}, {b} {d}",
    "{D} {k} {o}s",
    "{D} {o} {k} to {h}",
    "{D} {a} {o} from {i}",
    "{D} {n} {a} {o}s in {k} ms",
    "{D} {o} {f}",
    "no {a} {o} for {u}",
    "no {o} left in {b} {n}",
    "could not find {o} {k} on {h}",
    "cannot read {a} {o} {f}",
    "failed to fetch {o} from {h}: {b} {d}",
    "waiting for {o} {k}",
    "expected {n} {o}s, got {k}",
    "{u} {d} {o} {k}",
    "{k} {o}s {d}, {n} {a}",
    "{k} of {o} {b} {d}",
    "{o}: {a} {b} {d}",
    "({n}/{k}) {o}s {d}",
)
# What may follow a message, so that none of its words tells its end.
TAILS = (
    " on {h}",
    " from {h}",
    " at {i}",
    " by {u}",
    " for {u} on {h}",
    " in {f}",
    " to {f}",
    " via {b} {n}",
    " in {n} s by {h}",
    " after {k} ms on {h}",
    " for {n} {b}s",
    " of {b} {k}",
    " with {a} {b}",
    " without {b}",
    " because of {a} {b}",
    ", {n} more to come",
    ", {b} {k}",
    " ({a} {b})",
    " ({k} {b}s)",
    " [{b}={k}]",
    " as {u}",
    " during {b}",
    " near {b} {n}",
    " under {a} {b}",
    " until {b} {k}",
    "; {b} from {h}",
    " -> {h}",
    "!",
    "...",
)
