# The rest are C functions that the verbs transports share.
EVENTS: dict[str, int]
