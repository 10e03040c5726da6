"""Wordings, services and messages of the logs task; phrases only."""

# Word lists read better as split text than as one literal a line.
# ruff: noqa: SIM905

from training.demo.wording import Phrasebook

LABELS = ("Log", "Log line", "Line", "Input", "Log entry", "Entry")

TRAIN = Phrasebook(
    orders=(
        "Parse [this|the|the following] log [line|entry|message][| into JSON| to JSON| as JSON]",
        "[Convert|Turn] [this|the|the following] log [line|entry] [to|into] JSON",
        "[Convert|Turn] the log [line|entry] into a JSON object with timestamp, level, service and message",
        "[Extract|Pull out] timestamp, level, service and message [from|out of] [this|the] log [line|entry]",
        "[Extract|Get] the fields of [this|the|the following] log [line|entry][| as JSON]",
        "[Extract|Get|Pull] the timestamp, level, service and message[| as JSON| into JSON| in JSON]",
        "Split [this|the|the following] log [line|entry] into [its fields|fields|JSON fields]",
        "[Break|Take] [this|the] log line [down|apart] into timestamp, level, service, message",
        "[Structure|Format] [this|the] log [line|entry] as JSON",
        "[Give|Return|Output|Print|Write] [this|the] log [line|entry] [as|in] JSON",
        "[Make|Create|Produce] [a JSON record|JSON|a JSON object] [from|out of] [this|the] log [line|entry]",
        "Transform [this|the] log [line|entry] into structured JSON",
        "Read the log line and [return|output|give me] JSON with timestamp, level, service, message",
        "Identify timestamp, level, service and message in [this|the] log [line|entry]",
        "Normalise [this|the] log [line|entry] to JSON",
        "Parse [the log|this log|log]",
        "Parse the [syslog|server|application|access|web server] log line[| into JSON]",
        "[Find|List] the fields timestamp, level, service, message of [this|the] log [line|entry]",
        "Rewrite [this|the] log [line|entry] as a JSON record",
        "Fill timestamp, level, service, message from the log line, null if [missing|absent|not there]",
        "Act as a log parser",
        "Put [this|the] log [line|entry] in JSON[| form| format]",
        "Turn the raw log into structured fields",
    ),
    remarks=(
        "[log to JSON|log -> JSON|log line to JSON|log2json|parse log|log parser]",
        "[log|log line|log entry] as JSON[| please]",
        "JSON [of|from|for] this log [line|entry]",
        "timestamp, level, service, message",
        "[log fields|fields of this log line|structured log] please",
        "What are the timestamp, level, service and message [here|of this log line|in this log entry]?",
        "What are the fields of this log [line|entry]? [Answer in|Use] JSON.",
        "Which timestamp, level, service and message does this log line have? Reply [in|as] JSON.",
        "How does this log [line|entry] look as JSON?",
        "I need [this|the] log [line|entry] as JSON",
        "I need the [fields|parts] of this log line [in|as] JSON",
        "You are a log parser. [Return JSON|Output JSON with timestamp, level, service, message].",
        "Structured version of this log line[|?| as JSON]",
        "Log parsing: timestamp, level, service, message",
        "For our log index: [this line|this entry] as JSON",
        "Can this log line be JSON?",
    ),
    inline=(
        "Parse the log line {x} [into JSON|as JSON|to JSON]",
        "[Convert|Turn] {x} into JSON with timestamp, level, service, message",
        "[log to JSON|log line to JSON|parse log|parse this log]: {x}",
        "Given the log line: {x} [return|extract|give] timestamp, level, service and message as JSON.",
        "My log says: {x} [Give me|Extract|I need] the fields as JSON.",
        "{x} -> [JSON log record|log fields|timestamp, level, service, message]",
        "Log line: {x} JSON:",
        "Log: {x} Fields:",
        # The line inside a sentence, with nothing to mark its end but what a log line looks like.
        "[Run|Push|Send|Pipe|Put|Pass|Squeeze] {x} [through|into|past] [my|your|our|the] [log parser|JSON parser|"
        "field extractor|JSON converter|pipeline][| please| and show the JSON| and print what comes out]",
        "[Take|Get|Pull] {x} [apart|to pieces] [and show me JSON|into JSON fields|for our log index]",
        "[Say|Imagine|Assume|Pretend|Given that|If|When|Because] [|that ]{x} [turned up|shows up|appears|was found|is "
        "printed|was written|arrived|landed|stood|was caught] [in|on|by|at] [the console|my terminal|stdout|the log "
        "file|the collector|our cluster|app.log|the log tail|the agent][,|:|;| -] [what would be|what is|I want|give "
        "me|which are|show|tell me] [its JSON|the JSON record|its fields as JSON|the structured form]?",
        "[What|Which] [JSON|JSON record|JSON object|structured record|fields] [would|does|should|will] {x} "
        "[give|become|yield|parse to|turn into|have|map to|be stored as]?",
        "[How|In what way] [would|should|does] {x} [look|read|be written|be stored] [as JSON|in JSON|in a JSON log]?",
        "[Write|Store|Keep|Save|Record|Log|Print|Show] {x} as [JSON|a JSON object|one JSON line|a JSON record][| "
        "please| for me| for the index| instead of plain text]",
        "[Parse|Split|Read|Analyse|Structure|Format|Translate|Map|Transform|Index|Normalise] {x} [into|to|as] [JSON|"
        "JSON fields|a JSON record|a JSON object|timestamp, level, service and message][| please|, thanks| and "
        "nothing else|, one line| with null where missing]",
        "[I|We] [found|saw|got|have|see|noticed|copied] {x} [in|from|on] [our logs|my log|the log file|the console|"
        "stdout|journald|the container|production|a dump][.|,|;| and] [I need|give me|please make|make that|return|we "
        "want] [JSON|its JSON|a JSON record|the fields as JSON]",
        "[The|Our|One|Some] [service|app|program|daemon|container|backend|box|job] [wrote|printed|logged|said|"
        "emitted|put out|left] {x} [yesterday|last night|just now|again|today|an hour ago|on start|at boot|and died|"
        "before it stopped|, see|, nothing else]. [JSON please|Its fields as JSON|As JSON|Make that JSON|Parse it]",
        "[Timestamp, level, service and message|The fields|All fields|The log fields] [of|in|from] {x} [in JSON|as "
        "JSON|please|, as JSON|as a JSON object]",
        "[Is|Can|Could] {x} [available as|be turned into|become|be parsed to|be expressed as] [JSON|structured JSON|a "
        "JSON log record]?",
        "[Help|Hey|Hi|OK], {x} [needs to be|has to become|should be|must be|wants to be] [JSON|structured|parsed into "
        "JSON|a JSON record]",
        "[From|Out of] {x} [make|build|extract|derive|get|produce] [JSON|a JSON record|the four fields|the fields as "
        "JSON]",
        "{x} [is|was] [a log line|one line of our log|in the log|what it printed][,|;|.|:] [make it JSON|give JSON|"
        "fields as JSON please|parse it to JSON|what are the fields?]",
        "{x} [goes|belongs|should go] [into|to] [the index|Elasticsearch|our log store|the JSON log][,|;| -] [in "
        "what form|as which JSON|write the JSON|as JSON]?",
        "[Between|Inside] the arrows: >>> {x} <<< [parse to JSON|JSON fields please|as JSON]",
    ),
    inline_share=0.4,
    tails=(
        "Use null for missing fields.",
        "Return only JSON.",
        "Missing fields are null.",
        "Keys: timestamp, level, service, message.",
        "Use the keys timestamp, level, service, message.",
        "If a field is missing, use null.",
        "One line of JSON.",
        "Only the JSON.",
    ),
    labels=LABELS,
)

HELD_OUT = Phrasebook(
    orders=(
        "Dissect the log record and hand it back as JSON",
        "Decompose what the server wrote to its log: when, how severe, which service, what; JSON",
        "Ingest this raw log text and emit its JSON equivalent",
        "Tokenise the log statement to a JSON object",
        "Represent this logfile row as JSON",
        "Make this log record machine-readable (JSON)",
        "Untangle the logged event: JSON with when, severity, origin and text",
    ),
    remarks=(
        "What would a JSON logger have written instead?",
        "Logstash-style parse?",
        "Structured logging equivalent of this record?",
        "when / severity / origin / text of the log, JSON",
    ),
    # Written by somebody who had seen no training row.
    inline=(
        "I've got the log line `{x}` here and I'd like it as JSON with timestamp, level, service and message.",
        'Could you take this log line: "{x}" and write it out as one line of JSON?',
        "Our server just printed {x} and I need that log entry parsed into JSON on one line",
        "Convert the log line {x} to a JSON object with the usual four fields, timestamp, level, service, message",
    ),
    tails=("Nulls for what isn't there.", "Raw JSON."),
    labels=LABELS,
)

SERVICES = (
    "api auth billing cache cart checkout db gateway inventory mailer orders payments scheduler search sessions "
    "shipping users web worker proxy frontend backend catalog notifier uploader indexer crawler metrics router queue "
    "auth-service order-service user-api payment-gateway email-worker api-gateway image-resizer job-runner "
    "OrderService UserController PaymentService AuthFilter CacheManager MailSender TaskScheduler SearchIndex "
    "com.acme.Main com.shop.Cart app.main app.db core.tasks django.request uvicorn.error celery.worker root main "
    "kafka redis postgres rabbitmq consul vault etcd grafana svc-1 node-7 backup import export sync reports audit"
).split()
HELD_OUT_SERVICES = (
    "ledger tariff-calculator booking geo-lookup PrinterPool SeatMap com.rail.Timetable bot.listener vod-packager "
    "firmware thumbnailer quota consent fleet.tracker sms-relay"
).split()
DAEMONS = (
    "sshd cron CRON kernel systemd nginx dhclient sudo postfix/smtpd dockerd NetworkManager named ntpd rsyslogd cupsd "
    "su dbus-daemon haproxy mysqld kubelet containerd smartd"
).split()
HOSTS = "web01 web-02 db1 localhost myhost ip-10-0-0-5 mail server1 gw node3 prod-app-1 raspberrypi build7".split()
LEVELS = "ERROR ERROR INFO INFO WARN WARNING DEBUG CRITICAL FATAL TRACE NOTICE".split()
PATHS = (
    "/ /index.html /login /api/users /api/v1/orders /cart /static/app.js /images/logo.png /health /metrics /search "
    "/products/42 /favicon.ico /robots.txt /admin /api/items/7 /docs /feed.xml /checkout /api/v2/login /about /blog"
).split()

# {n} small number, {k} large number, {f} file, {h} host, {u} user, {i} ip.
MESSAGES = (
    "Connection refused",
    "Connection to {h} refused",
    "Connection timed out after {k} ms",
    "Connection closed by {i}",
    "User {u} logged in",
    "User {u} logged out",
    "User {u} not found",
    "Login failed for {u}",
    "Failed login attempt from {i}",
    "Invalid password for user {u}",
    "Request completed in {k} ms",
    "Request failed with status 50{n}",
    "GET /api/items returned 404",
    "POST /api/login took {k}ms",
    "Server started on port {k}",
    "Server shutting down",
    "Listening on {i}:{k}",
    "Disk usage at 9{n}%",
    "Disk almost full: 9{n}% used",
    "Out of memory",
    "Memory usage {k} MB",
    "Low memory, {n} MB left",
    "Cache miss for key user:{k}",
    "Cache cleared, {k} entries removed",
    "Retrying in {n} seconds",
    "Retry {n} of 5 failed",
    "Payment {k} declined",
    "Payment of {k} EUR accepted",
    "Order {k} created",
    "Order {k} shipped",
    "Order {k} could not be saved",
    "Email sent to {u}@example.com",
    "Could not send email to {u}",
    "File {f} not found",
    "Cannot open {f}: permission denied",
    "Saved {f} ({k} bytes)",
    "Config loaded from {f}",
    "Invalid config in {f}, line {n}",
    "Job {k} finished",
    "Job {k} failed after {n} attempts",
    "Job {k} started",
    "Queue length is {k}",
    "Queue is empty",
    "Dropped {n} messages",
    "Processed {k} records in {n}s",
    "Backup completed",
    "Backup failed: no space left",
    "Token expired for {u}",
    "Token refreshed",
    "Session {k} expired",
    "Session opened for user {u}",
    "Slow query took {k} ms",
    "Deadlock detected, retrying",
    "Database connection lost",
    "Database migration {n} applied",
    "Too many open files",
    "Rate limit exceeded for {i}",
    "Upstream {h} not responding",
    "Health check passed",
    "Health check failed for {h}",
    "Certificate expires in {n} days",
    "TLS handshake failed with {i}",
    "Unexpected token at line {n}",
    "Null pointer in handler {n}",
    "Division by zero",
    "Index rebuilt, {k} documents",
    "Worker {n} started",
    "Worker {n} exited with code 1",
    "Heartbeat lost from {h}",
    "New client connected from {i}",
    "Upload of {f} complete",
    "Download failed: timeout",
    "Stock level for item {k} is {n}",
    "Thread pool exhausted",
    "Feature flag beta-{n} enabled",
    "Scheduled task cleanup done",
    "starting up",
    "shutdown complete",
    "ready to accept connections",
    "no route to host {h}",
    "skipping empty batch",
    "user={u} action=delete",
    "took {k}ms, status ok",
    "timeout while reading from {h}",
    "cannot resolve {h}",
    "unhandled exception in worker {n}",
)
SYSLOG_MESSAGES = (
    "Failed password for {u} from {i} port {k} ssh2",
    "Accepted publickey for {u} from {i}",
    "session opened for user {u}",
    "session closed for user {u}",
    "Started Daily Cleanup",
    "Started Session {n} of user {u}",
    "Stopped target Network",
    "eth0: link up, {k} Mbps",
    "usb 1-{n}: new device found",
    "Out of memory: Killed process {k}",
    "DHCPACK from {i}",
    "({u}) CMD (run-parts /etc/cron.hourly)",
    "connect from {h}",
    "disconnect from {i}",
    "time reset -0.{k} s",
    "authentication failure for {u}",
    "reloading configuration",
    "I/O error, dev sda, sector {k}",
    "CPU{n}: temperature above threshold",
)
HELD_OUT_MESSAGES = (
    "Seat {n} already reserved",
    "Printer {h} is out of paper",
    "Coupon {k} rejected",
    "Replica {n} lags by {k} ms",
    "Snapshot {f} uploaded",
    "Sensor {n} reports {k} volts",
    "Webhook to {h} answered 50{n}",
    "Ticket {k} reassigned to {u}",
    "Clock skew of {n} s against {h}",
    "Playlist {k} has no tracks",
    "Vehicle {k} left the area",
    "Schema version {n} is too old",
    "Lock held by {u} released",
    "garbage collection paused {k} ms",
    "rejected {n} malformed packets",
)
USERS = "alice bob carol dave eve frank root admin guest maria li ahmed olga deploy test".split()
FILES = "config.yml app.log data.csv report.pdf /etc/app.conf /tmp/upload.bin users.json main.py backup.tar.gz".split()
PEERS = "db-1 cache-2 10.0.0.7 mail.example.com api.example.com redis:6379 node4 backend-3 s3 example.org".split()
