from cython_ext.core.connections import Connections
from cython_ext.core.transport import Transport
from cython_ext.core.trial import Trial

def run_connections(trial: Trial, transport: Transport, connections: Connections, role: str) -> int: ...
