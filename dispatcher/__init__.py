"""Puts each asynchronous GPU-inference request, once, on the queue of the AWS Region that will serve it soonest."""

__version__ = "0.1.0"
