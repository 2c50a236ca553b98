"""What decoding a stranger's bytes may raise.

msgspec's decoders raise MsgspecError for a wrong document, but UnicodeDecodeError for a string that is not UTF-8 and
RecursionError for one nested too deeply. Whoever decodes what somebody else has written (a registry, an archive, a
disk after a power loss) catches them all.
"""

import msgspec

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
