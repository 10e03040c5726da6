#!/bin/sh
# Puts the converted base and the kernels that the image brings along into the cache on the volume, as links, then runs
# its arguments. What the cache has already stays.
set -eu

SHIPPED=${SHIPPED:-/opt/lora-relay/cache}
for item in "$SHIPPED"/*/*; do
    place=$RELAY_CACHE/${item#"$SHIPPED"/}
    if [ ! -e "$place" ]; then
        mkdir -p "${place%/*}"
        ln -sfn "$item" "$place" # also over a link that leads to what an older image had
    fi
done
exec "$@"
