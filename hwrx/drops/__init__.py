"""Where packets die: a closed balance of one experiment, sent = delivered + lost, every loss at its place.

`places` is the catalogue, in the order of a packet's way; `books` counts and closes the balance; `provoke` makes each
place drop, one after the other.
"""
