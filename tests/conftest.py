"""What holds in every process that runs tests. Comes before torch and consoles are there."""

import os

from server.threads import spin_briefly

spin_briefly()  # processes that share the processors and spin keep each other from computing
os.environ["COLUMNS"] = "200"  # what commands print is looked for in unbroken lines
pytest_plugins = ["tests.support.kernels"]
