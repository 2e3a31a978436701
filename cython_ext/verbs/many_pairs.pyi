from cython_ext.core.connections import Connections
from cython_ext.verbs.verbs_path import VerbsTransport

class ManyPairsTransport(VerbsTransport):
    connections: Connections
