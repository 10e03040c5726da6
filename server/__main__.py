"""`python -m server` is `relay`."""

from server.cli import app

if __name__ == "__main__":
    app(prog_name="relay")
