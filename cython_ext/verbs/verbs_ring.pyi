# Nothing for Python: C functions that the verbs transports share.
