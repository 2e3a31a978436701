"""Where every message spends its time, and every copy of every byte: what the stamps of a run's traced twins say.

`traced` runs a trial's twin with the programs of `hwrx.probes` attached, `counted` one that counts processor time;
`join` brings events to messages and messages to timelines, `copies` bytes to copies per byte, `tables` both into the
run. `walk` follows one message, `perfetto` writes timelines for a viewer.
"""
