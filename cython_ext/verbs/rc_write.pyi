from cython_ext.verbs.verbs_path import VerbsTransport

CHECKED_LIMIT: int

class RcWriteTransport(VerbsTransport):
    def go_on(self) -> None: ...
