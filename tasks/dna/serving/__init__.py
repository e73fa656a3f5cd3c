"""The sequence designer over HTTP: a queue, a worker process with the models, and a page."""
