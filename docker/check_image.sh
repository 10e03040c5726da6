#!/usr/bin/env bash
# Builds the image and tries it as docker-compose.yml confines it, and without any network. Docker, or else Podman.
#
# ENGINE, BUILD_FLAGS and RUN_FLAGS from the environment change the program and add to its command lines.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=lora-relay:check
CONTAINER=lora-relay-check-$$
VOLUME=$CONTAINER
READY_SECONDS=300
read -ra build_flags <<<"${BUILD_FLAGS:-}"
read -ra run_flags <<<"${RUN_FLAGS:-}"

engine() {
    if [[ -n ${ENGINE:-} ]]; then
        "$ENGINE" "$@"
    elif docker info >/dev/null 2>&1; then
        docker "$@"
    else
        podman "$@"
    fi
}

inside() { engine exec "$CONTAINER" "$@"; }

fail() {
    echo "check_image: $*" >&2
    engine logs "$CONTAINER" >&2 || true
    exit 1
}

clean_up() {
    engine rm --force "$CONTAINER" >/dev/null 2>&1 || true
    engine volume rm "$VOLUME" >/dev/null 2>&1 || true
}

wait_until_ready() {
    local deadline=$((SECONDS + READY_SECONDS))
    until inside python /opt/lora-relay/healthcheck.py >/dev/null 2>&1; do
        [[ $(engine inspect --format '{{.State.Running}}' "$CONTAINER") == true ]] || fail "the container has ended"
        ((SECONDS < deadline)) || fail "not ready within $READY_SECONDS s"
        sleep 2
    done
}

trap clean_up EXIT

engine build "${build_flags[@]}" --tag "$IMAGE" .
engine run --detach --name "$CONTAINER" --network none --read-only --tmpfs /tmp --cap-drop ALL \
    --security-opt no-new-privileges --volume "$VOLUME:/data" "${run_flags[@]}" "$IMAGE" >/dev/null
wait_until_ready

[[ $(inside id -u):$(inside id -g) == 10001:10001 ]] || fail "runs as $(inside id)"
inside touch /data/writable || fail "/data is not writable"
if inside touch /opt/lora-relay/writable 2>/dev/null; then fail "the image is writable"; fi
if inside python -m pip --version 2>/dev/null; then fail "pip is in the image"; fi
inside relay experts verify
inside relay route "Write the date as ISO 8601: the third of May 2024"
experts=$(inside relay experts list --json)

engine restart --time 40 "$CONTAINER" >/dev/null
wait_until_ready
[[ $(inside relay experts list --json) == "$experts" ]] || fail "a restart changed the experts"

engine stop --time 40 "$CONTAINER" >/dev/null
status=$(engine inspect --format '{{.State.ExitCode}}' "$CONTAINER")
[[ $status == 0 ]] || fail "exit status $status after a stop"
echo "check_image: the image is as it should be"
