"""The researcher's side as a library: check a task locally, build a submission, talk to the farm over HTTP."""
