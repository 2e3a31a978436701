from cython_ext.frames.link import FrameLink

BROADCAST: str
QUESTIONS: int
ANSWER_S: float

def resolve_mac(link: FrameLink, ours: str, address: str) -> str: ...
