"""The sequence designer over HTTP: what :mod:`manifoldflow.serving` needs to know of it, and the page."""
