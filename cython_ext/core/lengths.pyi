MOST_ENTRIES: int
ROOM: int

def read_entries(size: int) -> int: ...
