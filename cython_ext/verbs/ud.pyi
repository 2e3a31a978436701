from cython_ext.verbs.verbs_path import VerbsTransport

class UdSendTransport(VerbsTransport):
    @property
    def slides(self) -> int: ...
