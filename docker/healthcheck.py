"""Exits with 0 when the server in this container answers /readyz with 200. Needs the standard library alone."""

import http.client
import os
import sys

TIMEOUT_SECONDS = 4


def main() -> int:
    # http.client and not urllib: a proxy in the environment must not come between.
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("RELAY_PORT") or 8000), timeout=TIMEOUT_SECONDS
    )
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"/readyz: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    print(f"/readyz: {answer.status} {body}")
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
