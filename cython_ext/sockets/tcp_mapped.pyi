from cython_ext.sockets.tcp import TcpTransport

PAGE: int

class MappedTcpTransport(TcpTransport): ...
