"""What a trial over the kernel's TLS says of its cipher."""

from __future__ import annotations

from cython_ext.sockets.tcp_tls import cipher_driver

CIPHERS = """name         : gcm(aes)
driver       : gcm_base(ctr(aes-generic),ghash-generic)
module       : gcm
priority     : 100

name         : __gcm(aes)
driver       : __generic-gcm-aesni
priority     : 401

name         : gcm(aes)
driver       : generic-gcm-aesni
module       : aesni_intel
priority     : 400

name         : sha256
driver       : sha256-generic
priority     : 900
"""


def test_the_cipher_that_the_kernel_takes_is_the_one_of_highest_priority() -> None:
    assert cipher_driver(CIPHERS) == "generic-gcm-aesni"
    assert cipher_driver(CIPHERS.partition("name         : __gcm")[0]).startswith("gcm_base(")
    assert cipher_driver("name         : sha256\ndriver       : x\npriority     : 1\n") == ""
