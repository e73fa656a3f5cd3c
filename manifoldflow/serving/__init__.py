"""Any task over HTTP: a bounded queue, a process that holds the models, limits on everything, and a page for people.

A task describes itself as a :class:`Service`: which requests there are and what they hold (schemas), how one becomes a
:class:`Job` that may share a call of the model with others, and how a model answers such a call in the worker process.
Routes, checks, queueing, restarts, time-outs, documentation and the command are the same for all.

Importing this package needs nothing beyond the library; serving needs the extra ``manifoldflow[serve]``.
"""

from manifoldflow.serving.calls import Answer, Call, Served
from manifoldflow.serving.errors import Refused
from manifoldflow.serving.jobs import Job
from manifoldflow.serving.service import Endpoint, Service

__all__ = ["Answer", "Call", "Endpoint", "Job", "Refused", "Served", "Service"]
