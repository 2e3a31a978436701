from cython_ext.sockets.tcp import TcpTransport

class MptcpTransport(TcpTransport):
    def fell_back(self) -> bool: ...
