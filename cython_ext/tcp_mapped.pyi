from cython_ext.tcp import TcpTransport

PAGE: int

class MappedTcpTransport(TcpTransport): ...
