"""The continual-learning bench: methods on one stream of tasks, trained in resumable units, answered by the server."""
