from typing_extensions import Buffer

WAYS: tuple[str, ...]

def crc32(data: Buffer, *, start: int = 0, way: str | None = None) -> int: ...
