"""What workers, tools and the coordinator say to each other, and how it is written as bytes.

`messages` holds the vocabulary, `phases` the parts of a step that are timed, `codec` the bytes. The room knows no
socket, no clock and no thread: whoever owns a socket hands frames in and takes frames out.
"""
